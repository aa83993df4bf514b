"""Opening and closing pod sandboxes: an address, the namespaces, and letting go of both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from penstock.box.node import linux
from penstock.box.node.addresses import AddressPool, hardware_address
from penstock.box.node.channel import OpenSandbox, PodNetwork
from penstock.box.node.forks import CannotStart, Spawner, pipe_to_read, read_all
from penstock.box.node.records import Sandbox, new_id
from penstock.box.node.wire import cri_pb2 as cri

BRIDGE = "cni0"
GATEWAY = "10.244.0.1"
PREFIX = 16
_PATIENCE = 20.0
_NAMESPACES = (("net", linux.CLONE_NEWNET), ("ipc", linux.CLONE_NEWIPC), ("uts", linux.CLONE_NEWUTS))


@dataclass(slots=True)
class Pods:
    """Opens and closes sandboxes."""

    spawner: Spawner
    addresses: AddressPool

    async def open(self, config: Any) -> Sandbox:
        """Make a pod's namespaces; raises ValueError for what the box cannot offer, CannotStart when it fails."""
        refuse_host_ports(config)
        options = config.linux.security_context.namespace_options
        sandbox = Sandbox(new_id(), config, time.time_ns())
        on_node = options.network == cri.NamespaceMode.NODE
        if not on_node:
            sandbox.address = self.addresses.take()
        request = OpenSandbox(
            hostname=config.hostname, network=None if on_node else pod_network(sandbox),
            sysctls=tuple(config.linux.sysctls.items()), shared_pids=options.pid == cri.NamespaceMode.POD,
            own_ipc=options.ipc != cri.NamespaceMode.NODE,
        )  # fmt: skip
        try:
            await self._hold(sandbox, request)
        except BaseException:
            self.close(sandbox)
            raise
        return sandbox

    async def _hold(self, sandbox: Sandbox, request: OpenSandbox) -> None:
        report, report_end = pipe_to_read()
        keep_end, keep = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                pid = await self.spawner.fork(request, (report_end, keep_end), lambda _code: None)
            finally:
                os.close(report_end)
                os.close(keep_end)
            # "ok" and not the end of the pipe: a shared pid namespace's first process never ends by itself.
            said = await read_all(report, _PATIENCE)
            if said != b"ok":
                name = f"{sandbox.config.metadata.namespace}/{sandbox.config.metadata.name}"
                raise CannotStart(f"cannot make the namespaces of pod {name}: {said.decode(errors='replace')}")
            if request.shared_pids:
                sandbox.holder = pid
            self._open_namespaces(sandbox, request, pid)
        finally:
            os.close(keep)

    def _open_namespaces(self, sandbox: Sandbox, request: OpenSandbox, pid: int) -> None:
        kept = {"net": request.network is not None, "uts": request.network is not None, "ipc": request.own_ipc}
        for name, flag in _NAMESPACES:
            if kept[name]:
                sandbox.namespaces[flag] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self, sandbox: Sandbox) -> None:
        """Let go of namespaces and address; the containers must be gone. Twice does no harm."""
        sandbox.ready = False
        if sandbox.holder is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(sandbox.holder, signal.SIGKILL)
            sandbox.holder = None
        for fd in sandbox.namespaces.values():
            os.close(fd)
        sandbox.namespaces.clear()
        if sandbox.address is not None:
            self.addresses.give_back(sandbox.address)
            sandbox.address = None


def pod_network(sandbox: Sandbox) -> PodNetwork:
    """The interface of a sandbox that has an address."""
    assert sandbox.address is not None
    return PodNetwork(
        address=sandbox.address, prefix=PREFIX, gateway=GATEWAY, mac=hardware_address(sandbox.address),
        bridge=BRIDGE, host_link=f"veth{sandbox.id[:10]}",
    )  # fmt: skip


def refuse_host_ports(config: Any) -> None:
    """The box has no host ports: say so at once rather than leave a port that nobody answers."""
    for port in config.port_mappings:
        if port.host_port and config.linux.security_context.namespace_options.network != cri.NamespaceMode.NODE:
            raise ValueError(
                f"pod {config.metadata.namespace}/{config.metadata.name} asks for hostPort {port.host_port}: "
                "the box has no host ports; use a Service, or hostNetwork: true"
            )


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set or `seconds` have passed; says whether it is set."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
