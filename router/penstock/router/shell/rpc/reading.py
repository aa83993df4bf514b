"""Bytes that are no message: refused as the caller's mistake, in a sentence, and not logged as ours.

gRPC's own server lets a failing deserializer end the call as `UNKNOWN` with a traceback in the log. A peer of another
version, or of none, would fill the log and look like a defect of the router. So messages are read here: what cannot be
read becomes an `Unreadable`, and whoever would have got the message refuses it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from penstock.router.shell.rpc.refusals import Refused, abort, invalid


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Takes the place of a message that could not be read."""

    kind: str
    size: int

    @property
    def refusal(self) -> Refused:
        """What to say to the caller."""
        return invalid(f"the {self.size} bytes sent are no {self.kind}; encode one as router.proto describes it")


class CarefulServer:
    """Takes a service's handlers in place of the server it is given, and hands them on with careful reading."""

    def __init__(self, server: grpc.aio.Server) -> None:
        """Register with this server."""
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Handlers by their full names: the same as those that come registered."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """A service's handlers by method."""
        careful = {name: _careful(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, careful),))


def _careful(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """The handler, reading carefully; one that reads a stream gets `Unreadable`s and answers them itself."""
    read = _reader(handler.request_deserializer)
    if handler.unary_unary is not None:
        return handler._replace(request_deserializer=read, unary_unary=_refusing_call(handler.unary_unary))
    if handler.unary_stream is not None:
        return handler._replace(request_deserializer=read, unary_stream=_refusing_stream(handler.unary_stream))
    return handler._replace(request_deserializer=read)


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    kind = str(deserialize(b"").DESCRIPTOR.name)  # empty bytes are every message's default

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable(kind, len(data))

    return read


def _refusing_call(call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(message: Any, context: grpc.aio.ServicerContext) -> Any:
        if isinstance(message, Unreadable):
            await abort(context, message.refusal)
        return await call(message, context)

    return answer


def _refusing_stream(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def answer(message: Any, context: grpc.aio.ServicerContext) -> Any:
        if isinstance(message, Unreadable):
            await abort(context, message.refusal)
        async for each in call(message, context):
            yield each

    return answer
