"""The client's calls: pick, release, explain, watch; with retries, their jitter, and one deadline over all of them."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc
from penstock.router.client.errors import RouterError, of_call
from penstock.router.client.stream import PickSession
from penstock.router.v1 import router_pb2, router_pb2_grpc

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM contents. `roots` None: the machine's own; certificate and key where the router asks clients for one."""

    roots: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str | None = None
    """Name in the router's certificate, where it is not the one that is dialled."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is repeated, and how long it waits before (seconds). The deadline ends it in any case."""

    attempts: int = 5
    backoff: float = 0.05
    """Ceiling of the first wait; doubles. A wait is drawn between half of the ceiling and all of it."""
    max_backoff: float = 2.0

    def wait(self, attempt: int, error: RouterError) -> float:
        """Seconds before attempt number `attempt` + 1: at least what the router asks for, and never all at once."""
        ceiling = min(self.max_backoff, self.backoff * 2.0 ** (attempt - 1))
        return (error.retry_after or 0.0) + ceiling * random.uniform(0.5, 1.0)


@dataclass(slots=True)
class Lease:
    """A pick being used; what is set here is told at its release."""

    pick: router_pb2.PickResponse
    outcome: router_pb2.Outcome = router_pb2.OUTCOME_COMPLETED
    usage: router_pb2.Usage | None = None


class RouterClient:
    """One router, over one connection. Use it as an async context manager, or `close` it."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        retries: Retries = Retries(),
    ) -> None:
        """`target` is host:port. `token` is sent as a bearer token with every call."""
        self._channel = _channel(target, tls)
        self._stub = router_pb2_grpc.RouterStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._retries = retries

    async def __aenter__(self) -> Self:
        """Nothing is connected before the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end with `RouterError`."""
        await self._channel.close()

    async def pick(self, request: router_pb2.PickRequest, timeout: float = 5.0) -> router_pb2.PickResponse:
        """A worker for a request, within `timeout` seconds in all; raises `RouterError`."""
        return await self._repeat(lambda left: self._stub.Pick(request, timeout=left, metadata=self._metadata), timeout)

    async def prefilled(self, lease_id: str, usage: router_pb2.Usage | None = None, timeout: float = 5.0) -> bool:
        """Say that the prompt has run, with the prefill leg's usage: frees its worker's place. The lease goes on.

        False when it was not held any more. Safe to repeat.
        """
        message = router_pb2.ReleaseRequest(lease_id=lease_id, usage=usage, prefilled=True)
        call: Callable[[float], Awaitable[router_pb2.ReleaseResponse]] = lambda left: self._stub.Release(  # noqa: E731
            message, timeout=left, metadata=self._metadata
        )
        return (await self._repeat(call, timeout)).released

    async def release(
        self,
        lease_id: str,
        outcome: router_pb2.Outcome = router_pb2.OUTCOME_COMPLETED,
        usage: router_pb2.Usage | None = None,
        timeout: float = 5.0,
    ) -> bool:
        """Free what a pick held; False when it was not held any more. Safe to repeat."""
        message = router_pb2.ReleaseRequest(lease_id=lease_id, outcome=outcome, usage=usage)
        call: Callable[[float], Awaitable[router_pb2.ReleaseResponse]] = lambda left: self._stub.Release(  # noqa: E731
            message, timeout=left, metadata=self._metadata
        )
        return (await self._repeat(call, timeout)).released

    async def explain(self, request_id: str, timeout: float = 5.0) -> router_pb2.ExplainResponse:
        """Why a recent request went where it went; `RouterError` NOT_FOUND when the router does not remember."""
        message = router_pb2.ExplainRequest(request_id=request_id)
        return await self._repeat(
            lambda left: self._stub.Explain(message, timeout=left, metadata=self._metadata), timeout
        )

    async def watch(self, model: str = "", interval_ms: int = 0) -> AsyncGenerator[router_pb2.WatchResponse, None]:
        """The fleet now and whenever it has changed; ends with `RouterError` when the connection does."""
        message = router_pb2.WatchRequest(model=model, interval_ms=interval_ms)
        call = self._stub.Watch(message, metadata=self._metadata)
        try:
            async for state in call:
                yield state
        except grpc.aio.AioRpcError as error:
            raise of_call(error) from None
        finally:
            call.cancel()

    @asynccontextmanager
    async def leased(self, request: router_pb2.PickRequest, timeout: float = 5.0) -> AsyncIterator[Lease]:
        """A pick for as long as a block runs; see the package's own words."""
        lease = Lease(await self.pick(request, timeout))
        try:
            yield lease
        except BaseException:
            if lease.outcome == router_pb2.OUTCOME_COMPLETED:
                lease.outcome = router_pb2.OUTCOME_CANCELLED
            raise
        finally:
            # Also when this task is being cancelled: the release must not be cut off by the same cancellation.
            await asyncio.shield(self.release(lease.pick.lease_id, lease.outcome, lease.usage, timeout))

    def session(self, max_pending: int = 256) -> PickSession:
        """Picks and releases over one stream, at most `max_pending` of them unanswered at once."""
        return PickSession(self._stub.PickStream(metadata=self._metadata), max_pending)

    async def _repeat(self, call: Callable[[float], Awaitable[T]], timeout: float) -> T:
        """Call until it succeeds, is refused for good, or the time is over."""
        until = time.monotonic() + timeout
        for attempt in range(1, self._retries.attempts + 1):
            try:
                return await call(max(0.0, until - time.monotonic()))
            except grpc.aio.AioRpcError as failed:
                error = of_call(failed)
            wait = self._retries.wait(attempt, error)
            if not error.worth_repeating or attempt == self._retries.attempts or time.monotonic() + wait >= until:
                raise error
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target)
    credentials = grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)
    options = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
    return grpc.aio.secure_channel(target, credentials, options)
