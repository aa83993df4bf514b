"""Many picks over one stream: questions go out as they come, answers find their question by its number."""

import asyncio
import contextlib
import itertools
from typing import Any, Self

import grpc
from penstock.router.client.errors import RouterError, of_call, of_refusal
from penstock.router.v1 import router_pb2

Answer = router_pb2.PickStreamResponse
_LAST_WORD_SECONDS = 1.0


class PickSession:
    """One open `PickStream`. Use it as an async context manager; when it breaks, open another."""

    def __init__(self, call: Any, max_pending: int) -> None:
        """`call` is the stream; `max_pending` bounds the unanswered questions, more of them wait."""
        self._call = call
        self._room = asyncio.Semaphore(max_pending)
        self._writing = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._broken: RouterError | None = None
        self._reader: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        """Begin to read answers."""
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Say that no more questions come, take the last answers, end."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            if self._broken is None:
                await self._call.done_writing()
        if self._reader is not None:
            await self._reader

    async def pick(self, request: router_pb2.PickRequest, timeout: float = 5.0) -> router_pb2.PickResponse:
        """A worker for a request within `timeout` seconds; raises `RouterError`, also for a refusal."""
        answer = await self._ask(router_pb2.PickStreamRequest(pick=request), timeout)
        return answer.pick

    async def prefilled(self, lease_id: str, usage: router_pb2.Usage | None = None, timeout: float = 5.0) -> bool:
        """As `RouterClient.prefilled`."""
        message = router_pb2.ReleaseRequest(lease_id=lease_id, usage=usage, prefilled=True)
        answer = await self._ask(router_pb2.PickStreamRequest(release=message), timeout)
        return answer.release.released

    async def release(
        self,
        lease_id: str,
        outcome: router_pb2.Outcome = router_pb2.OUTCOME_COMPLETED,
        usage: router_pb2.Usage | None = None,
        timeout: float = 5.0,
    ) -> bool:
        """Free what a pick held; False when it was not held any more."""
        message = router_pb2.ReleaseRequest(lease_id=lease_id, outcome=outcome, usage=usage)
        answer = await self._ask(router_pb2.PickStreamRequest(release=message), timeout)
        return answer.release.released

    async def _ask(self, question: router_pb2.PickStreamRequest, timeout: float) -> Answer:
        number = question.correlation_id = next(self._numbers)
        try:
            async with asyncio.timeout(timeout), self._room:
                answer = await self._exchange(number, question)
        except TimeoutError:
            text = f"no answer within {timeout} s"
            raise RouterError(grpc.StatusCode.DEADLINE_EXCEEDED, "", text) from None
        if answer.WhichOneof("answer") == "error":
            raise of_refusal(answer.error)
        return answer

    async def _exchange(self, number: int, question: router_pb2.PickStreamRequest) -> Answer:
        if self._broken is not None:
            raise self._broken
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with self._writing:
                await self._call.write(question)
            return await answer
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # A stream that broke under a write says so without a cause; the reader is about to learn the real one.
            if self._reader is not None:
                await asyncio.wait({self._reader}, timeout=_LAST_WORD_SECONDS)
            raise self._broken or _ended() from None
        finally:
            self._waiting.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at, so that nobody is told that nobody did

    async def _read(self) -> None:
        """Hand out answers until the stream ends; whoever still waits then is told why."""
        broken = _ended()
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                self._hand_out(answer)
        except grpc.aio.AioRpcError as error:
            # A connection lost under a write is INTERNAL in gRPC's own words, and no fault of the router's.
            broken = of_call(error) if error.code() is not grpc.StatusCode.INTERNAL else _ended()
        finally:
            self._broken = broken
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(broken)

    def _hand_out(self, answer: Answer) -> None:
        waiting = self._waiting.get(answer.correlation_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
        elif answer.WhichOneof("answer") == "pick":
            # Who asked has given up meanwhile; what was reserved for it must not wait for its time to run out.
            self._abandon(answer.pick.lease_id)

    def _abandon(self, lease_id: str) -> None:
        task = asyncio.ensure_future(self._send_release(lease_id))
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def _send_release(self, lease_id: str) -> None:
        message = router_pb2.ReleaseRequest(lease_id=lease_id, outcome=router_pb2.OUTCOME_CANCELLED)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async with self._writing:
                await self._call.write(router_pb2.PickStreamRequest(release=message))


def _ended() -> RouterError:
    return RouterError(grpc.StatusCode.UNAVAILABLE, "", "the stream has ended; open another")
