"""gRPC services from their descriptors: a method of the protocol is served by the method of its name in snake case."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

log = logging.getLogger(__name__)


class RpcError(Exception):
    """Refuse a call with a gRPC status code and a sentence."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def not_found(what: str) -> RpcError:
    """The kubelet treats this as "already gone", so it may only be said of things that are."""
    return RpcError(grpc.StatusCode.NOT_FOUND, what)


def snake_case(name: str) -> str:
    """RunPodSandbox -> run_pod_sandbox."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def handlers(service: Any, implementation: object) -> grpc.GenericRpcHandler:
    """Handlers for the methods of the service descriptor that `implementation` has; the rest are unimplemented."""
    table = {}
    for method in service.methods:
        function = getattr(implementation, snake_case(method.name), None)
        if function is None:
            continue
        parse = GetMessageClass(method.input_type).FromString
        serialize = GetMessageClass(method.output_type).SerializeToString
        if inspect.isasyncgenfunction(function):
            handler = grpc.unary_stream_rpc_method_handler(_streaming(function), parse, serialize)
        else:
            handler = grpc.unary_unary_rpc_method_handler(_unary(function), parse, serialize)
        table[method.name] = handler
    return grpc.method_handlers_generic_handler(service.full_name, table)


def _unary(function: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def serve(request: Any, context: Any) -> Any:
        try:
            return await function(request)
        except RpcError as error:
            await context.abort(error.code, str(error))
        except (ValueError, OSError, RuntimeError) as error:
            log.warning("%s failed: %s", function.__name__, error)
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return serve


def _streaming(function: Callable[[Any], AsyncIterator[Any]]) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def serve(request: Any, _context: Any) -> AsyncIterator[Any]:
        async for message in function(request):
            yield message

    return serve
