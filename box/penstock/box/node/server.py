"""The node's server: the runtime at its socket, then the streaming server, the device plugin and the kubelet."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import socket
from pathlib import Path

import grpc
from penstock.box.node import gpus, images, kubelet, rootfs, rpc
from penstock.box.node.addresses import AddressPool
from penstock.box.node.containers import Containers
from penstock.box.node.forks import Spawner
from penstock.box.node.imageservice import ImageService
from penstock.box.node.plan import HostView
from penstock.box.node.pods import Pods
from penstock.box.node.records import Shelf
from penstock.box.node.runtime import RuntimeService
from penstock.box.node.spec import NodeSpec
from penstock.box.node.streaming import StreamingServer, Streams
from penstock.box.node.wire import cri_pb2 as cri

log = logging.getLogger(__name__)

_CONTROL = kubelet.ROOT / "streaming-control.sock"
_STREAMS = kubelet.ROOT / "streaming-runtime.sock"


def main(spec: NodeSpec, channel: socket.socket) -> int:
    """Serve until killed. Runs in a process of its own, with the spawner at the other end of `channel`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _raise_file_limit()
    asyncio.run(_serve(spec, channel))
    return 1


async def _serve(spec: NodeSpec, channel: socket.socket) -> None:
    spawner = Spawner(channel)
    spawner.start()
    shelf, containers = Shelf(), Containers(spawner)
    table = images.table(str(spec.venv), spec.images)
    runtime = RuntimeService(
        shelf, Pods(spawner, AddressPool(spec.pod_cidr)), containers, table, host_view(spec), StreamingServer(_CONTROL)
    )
    server = await _listen(runtime, ImageService(table, str(spec.state_dir)))
    streaming = (
        str(spec.bin_dir / "cri-streaming"), f"--control={_CONTROL}", f"--runtime={_STREAMS}",
    )  # fmt: skip
    config = kubelet.write_configuration(spec)
    plugins = kubelet.ROOT / "device-plugins"
    plugins.mkdir(exist_ok=True)
    log.info("node %s: runtime listens at %s, starting the kubelet", spec.name, kubelet.CRI_SOCKET)
    async with asyncio.TaskGroup() as group:
        group.create_task(Streams(shelf, containers).serve(_STREAMS))
        group.create_task(kubelet.keep_running(spawner, "cri-streaming", streaming, spec.log_dir / "cri-streaming.log"))
        argv = kubelet.arguments(spec, config)
        group.create_task(kubelet.keep_running(spawner, "kubelet", argv, spec.log_dir / "kubelet.log", fake_chown=True))
        group.create_task(kubelet.trim_logs([spec.log_dir / "kubelet.log", spec.log_dir / "cri-streaming.log"]))
        if spec.gpus is not None and spec.gpus.count:
            group.create_task(gpus.offer(spec.gpus.resource, spec.gpus.count, plugins))
        group.create_task(server.wait_for_termination())


async def _listen(runtime: RuntimeService, image_service: ImageService) -> grpc.aio.Server:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    services = cri.DESCRIPTOR.services_by_name
    server.add_generic_rpc_handlers(
        (rpc.handlers(services["RuntimeService"], runtime), rpc.handlers(services["ImageService"], image_service))
    )
    kubelet.CRI_SOCKET.unlink(missing_ok=True)
    server.add_insecure_port(f"unix://{kubelet.CRI_SOCKET}")
    await server.start()
    return server


def host_view(spec: NodeSpec) -> HostView:
    """What of this machine the node's containers see."""
    scratch = spec.state_dir / "root"
    scratch.mkdir(exist_ok=True)
    folders = rootfs.outermost((*rootfs.system_folders(), *rootfs.python_folders(spec.venv)))
    return HostView(str(scratch), rootfs.system_links(), folders, _tools(spec.venv))


def _tools(venv: Path) -> tuple[tuple[str, str], ...]:
    """A stand-in for curl where the machine has none."""
    if shutil.which("curl", path=images.SYSTEM_PATH):
        return ()
    return (("curl", f'#!/bin/sh\nexec {venv}/bin/python -m penstock.box.node.curl "$@"\n'),)


def _raise_file_limit() -> None:
    """Every container costs a handful of descriptors here."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o022)
