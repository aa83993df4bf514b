"""The node's simulated GPUs, as a device plugin: so the kubelet itself counts, assigns and refuses them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from penstock.box.node import rpc
from penstock.box.node.wire import deviceplugin_pb2 as api

log = logging.getLogger(__name__)

_REGISTER = "/v1beta1.Registration/Register"
_LOOK_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class DevicePlugin:
    """Serves `count` devices that never fail."""

    count: int

    async def get_device_plugin_options(self, request: Any) -> Any:
        """No option is needed."""
        return api.DevicePluginOptions()

    async def list_and_watch(self, request: Any) -> AsyncIterator[Any]:
        """All devices once; then the stream stays open, for its end would mean they are gone."""
        yield api.ListAndWatchResponse(devices=[api.Device(ID=f"gpu-{n}", health="Healthy") for n in range(self.count)])
        await asyncio.Event().wait()

    async def allocate(self, request: Any) -> Any:
        """What a container with GPUs sees: their indices, as NVIDIA's runtime says them."""
        answers = [
            api.ContainerAllocateResponse(envs={"NVIDIA_VISIBLE_DEVICES": visible_devices(wish.devices_ids)})
            for wish in request.container_requests
        ]
        return api.AllocateResponse(container_responses=answers)


def visible_devices(ids: list[str]) -> str:
    """Device ids as a list of indices in ascending order: gpu-3, gpu-0 -> 0,3."""
    return ",".join(str(index) for index in sorted(int(name.removeprefix("gpu-")) for name in ids))


async def offer(resource: str, count: int, folder: Path) -> None:
    """Serve the plugin in the kubelet's `folder`, and register it with every kubelet that appears there."""
    name = "penstock-gpus.sock"
    known: tuple[int, int] | None = None
    server: grpc.aio.Server | None = None
    while True:
        socket = _identity(folder / "kubelet.sock")
        if socket is not None and socket != known:
            # A kubelet that starts empties the folder, our socket included.
            if server is not None:
                await server.stop(None)
            (folder / name).unlink(missing_ok=True)
            server = await _serve(count, folder / name)
            known = socket if await _register(resource, name, folder / "kubelet.sock") else None
        await asyncio.sleep(_LOOK_EVERY)


async def _serve(count: int, path: Path) -> grpc.aio.Server:
    server = grpc.aio.server()
    service = api.DESCRIPTOR.services_by_name["DevicePlugin"]
    server.add_generic_rpc_handlers((rpc.handlers(service, DevicePlugin(count)),))
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    return server


async def _register(resource: str, endpoint: str, kubelet: Path) -> bool:
    request = api.RegisterRequest(version="v1beta1", endpoint=endpoint, resource_name=resource)
    async with grpc.aio.insecure_channel(f"unix://{kubelet}") as channel:
        call = channel.unary_unary(
            _REGISTER,
            request_serializer=api.RegisterRequest.SerializeToString,
            response_deserializer=api.Empty.FromString,
        )
        try:
            await call(request, timeout=5.0)
        except grpc.aio.AioRpcError as error:
            log.warning("cannot register %s with the kubelet yet: %s", resource, error.details())
            return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns
