"""What the RPCs do: questions into leases, leases into answers.

Every handler picks and reserves without waiting in between, on the loop that owns the fleet: that makes it atomic.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
from msgspec.structs import replace
from penstock.core.fleet import Fleet, Rejection, Request
from penstock.router.decisions import SplitLimits
from penstock.router.decisions.explain import ExplainLog
from penstock.router.decisions.leases import Lease, Leases, slots_named
from penstock.router.decisions.policies import reads_prompts
from penstock.router.shell.adapters import Adapters
from penstock.router.shell.metrics import Counters
from penstock.router.shell.models import ModelTable, ServedModel
from penstock.router.shell.prompts import Prompts
from penstock.router.shell.rpc.forms import (
    check_request,
    completion_body,
    explanation_message,
    pick_message,
    read_ending,
    read_request,
    worker_state,
)
from penstock.router.shell.rpc.reading import Unreadable
from penstock.router.shell.rpc.refusals import Refused, abort, invalid
from penstock.router.v1 import router_pb2, router_pb2_grpc

log = logging.getLogger("penstock.router.rpc")

_WATCH_MS = 1000
_MIN_WATCH_MS = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """How much callers may hold at once. Times in seconds."""

    leases: int = 65536
    streams: int = 256
    split: SplitLimits | None = None
    """When prefill and decode run on two workers; None: never."""
    lease_seconds: float = 300.0
    max_lease_seconds: float = 3600.0


class RouterService(router_pb2_grpc.RouterServicer):
    """`penstock.router.v1.Router` over a fleet."""

    def __init__(
        self,
        fleet: Fleet,
        models: ModelTable,
        counters: Counters,
        explanations: ExplainLog,
        limits: Limits,
        clock: Callable[[], float],
        prompts: Prompts | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """`clock` is the one the fleet's times are on, in seconds; all but the limits is shared with other doors."""
        self._prompts = prompts
        self._adapters = adapters or Adapters(fleet)
        self.leases = Leases(fleet)
        self.draining = False
        """Whether new picks are refused because this process is about to end."""
        self.streams = 0
        """PickStream and Watch calls open now."""
        self._fleet = fleet
        self._models = models
        self._counters = counters
        self._limits = limits
        self._clock = clock
        self._explanations = explanations
        self._seeds = itertools.count(1)
        self._id_prefix = secrets.token_hex(6)

    # ---- the RPCs -----------------------------------------------------------------------------

    async def Pick(  # noqa: N802
        self, message: router_pb2.PickRequest, context: grpc.aio.ServicerContext
    ) -> router_pb2.PickResponse:
        """Choose a worker and reserve a place on it."""
        try:
            lease, answer = self.decide(message, await self.describe(message, context.time_remaining()))
        except Refused as refused:
            await abort(context, refused)
        context.add_done_callback(lambda over: self._undelivered(over, lease))
        return answer

    async def PickStream(  # noqa: N802
        self, messages: AsyncIterator[router_pb2.PickStreamRequest | Unreadable], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[router_pb2.PickStreamResponse]:
        """Picks and releases, one answer for each question."""
        await self._open_stream(context)
        try:
            async for message in messages:
                lease, answer = await self._answer(message)
                try:
                    yield answer
                except BaseException:
                    self._give_back(lease)
                    raise
        finally:
            self.streams -= 1

    async def Release(  # noqa: N802
        self, message: router_pb2.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> router_pb2.ReleaseResponse:
        """Free what a pick held."""
        try:
            return self._release(message)
        except Refused as refused:
            await abort(context, refused)

    async def Explain(  # noqa: N802
        self, message: router_pb2.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> router_pb2.ExplainResponse:
        """Why a recent request went where it went."""
        if not message.request_id:
            await abort(context, invalid("request_id is empty; give the id of a picked request"))
        known = self._explanations.find(message.request_id)
        if not known:
            kept = len(self._explanations)
            text = f"request {message.request_id[:128]!r} is not among the last {kept} picks of this router"
            await abort(
                context, Refused(grpc.StatusCode.NOT_FOUND, "RequestNotFound", f"{text}; ask another, or sooner")
            )
        return explanation_message(known, self._clock())

    async def Watch(  # noqa: N802
        self, message: router_pb2.WatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[router_pb2.WatchResponse]:
        """The fleet, now and whenever it has changed."""
        interval = message.interval_ms or _WATCH_MS
        if interval < _MIN_WATCH_MS:
            await abort(context, invalid(f"interval_ms is {interval}; it must be at least {_MIN_WATCH_MS}, or 0"))
        await self._open_stream(context)
        try:
            said: router_pb2.WatchResponse | None = None
            while True:
                state = self._state(message.model)
                if said is None or _news(said) != _news(state):
                    yield state
                    said = state
                await asyncio.sleep(interval / 1000)
        finally:
            self.streams -= 1

    # ---- leases -------------------------------------------------------------------------------

    def expire(self) -> None:
        """Give up leases whose time is over."""
        for lease in self.leases.expire(self._clock()):
            self._counters.leases[(lease.request.model, "Expired")] += 1

    async def describe(self, message: router_pb2.PickRequest, remaining: float | None) -> Request:
        """The request a message asks for; raises `Refused`. `remaining` are the seconds the call itself has left.

        Waits for a tokenizer where the policy reads prompts and the caller sent no hashes, and for nothing else.
        """
        if self.draining:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "Draining", "this router is about to end; ask another one", 0.0)
        check_request(message)
        adapter = None if self._models.get(message.model) is not None else self._adapters.find(message.model)
        model = self._served(message.model if adapter is None else adapter.base)
        made_id = f"{self._id_prefix}-{next(self._seeds):x}"
        request = read_request(message, model, made_id, _deadline(message, remaining, self._clock()))
        if adapter is not None:
            request = replace(request, adapter=adapter.key)
        if self._prompts is None or not reads_prompts(model.policy):
            return request
        body = completion_body(message)
        if body is not None:
            return await self._prompts.describe(request, body, chat=False)
        self._prompts.follow(model.name)
        return request

    def decide(self, message: router_pb2.PickRequest, request: Request) -> tuple[Lease, router_pb2.PickResponse]:
        """Grant a lease; raises `Refused`. Picks and reserves without waiting in between."""
        model = self._served(request.model)
        ttl, now = self._ttl(message), self._clock()
        if len(self.leases) >= self._limits.leases:
            text = f"this router holds {len(self.leases)} leases, as many as it may; release some, or try again"
            raise self._refuse(request, Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TooManyLeases", text, 1.0))
        excluded = slots_named(self._fleet, tuple(message.exclude_workers)) | self._unable(request)
        lease_id, seed = secrets.token_urlsafe(16), next(self._seeds)
        granted = self.leases.grant(lease_id, request, model.policy, now, seed, ttl, excluded, self._limits.split)
        if isinstance(granted, Rejection):
            raise self._refuse(request, Refused.of(granted))
        self._counters.picks[(granted.pick.policy, granted.pick.reason)] += 1
        self._explanations.remember(request, granted.pick, 1, now)
        if self._prompts is not None:
            self._prompts.picked(request, granted.pick)
        log.debug("picked", extra={"request": request.id, "lease": lease_id, "tenant": message.tenant})
        return granted, pick_message(granted, ttl, self._fleet)

    def _unable(self, request: Request) -> frozenset[int]:
        """Slots that lack the adapter a request wants."""
        adapter = None if request.adapter is None else self._adapters.find(request.adapter[0])
        return frozenset() if adapter is None else self._adapters.without(adapter)

    def _ttl(self, message: router_pb2.PickRequest) -> float:
        asked = message.lease_ttl_ms / 1000 if message.lease_ttl_ms else self._limits.lease_seconds
        return min(asked, self._limits.max_lease_seconds)

    def _served(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models.names()[:20]) or "none yet"
            text = f"the model {name[:200]!r} does not exist; models served here: {known}"
            raise Refused(grpc.StatusCode.NOT_FOUND, "ModelNotFound", text)
        return model

    def _refuse(self, request: Request, refused: Refused) -> Refused:
        self._counters.rejected[(request.model, refused.reason)] += 1
        return refused

    def _release(self, message: router_pb2.ReleaseRequest) -> router_pb2.ReleaseResponse:
        ending = read_ending(message)
        if message.prefilled:
            return self._prompt_has_run(message)
        lease = self.leases.end(message.lease_id, ending, self._clock())
        if lease is not None:
            self._counters.leases[(lease.request.model, ending.value)] += 1
            if not lease.apart:
                self._compare(lease, message.usage)
        return router_pb2.ReleaseResponse(released=lease is not None)

    def _prompt_has_run(self, message: router_pb2.ReleaseRequest) -> router_pb2.ReleaseResponse:
        """Not the end: the prefill worker's place is free. Said twice it counts once."""
        waited = self.leases.find(message.lease_id)
        if waited is None:
            return router_pb2.ReleaseResponse(released=False)
        self.leases.prefilled(message.lease_id, self._clock())
        if waited.at_first_leg:
            self._compare(waited, message.usage)
        return router_pb2.ReleaseResponse(released=True)

    def _compare(self, lease: Lease, usage: router_pb2.Usage) -> None:
        """Set the hit that was expected against the one the caller says its engine reported."""
        pick, request = lease.pick, lease.request
        if self._prompts is None or not usage.HasField("cached_tokens"):
            return
        measured = self._prompts.finished(request, pick.expected_hit_tokens, usage.cached_tokens)
        if measured is not None:
            self._explanations.measured(request.id, measured)

    async def _answer(
        self, message: router_pb2.PickStreamRequest | Unreadable
    ) -> tuple[Lease | None, router_pb2.PickStreamResponse]:
        """Answer one question of a stream; what is wrong with it is an answer too."""
        if isinstance(message, Unreadable):
            return None, router_pb2.PickStreamResponse(error=message.refusal.as_message())
        answer = router_pb2.PickStreamResponse(correlation_id=message.correlation_id)
        lease = None
        question = message.WhichOneof("question")
        try:
            if question == "pick":
                lease, picked = self.decide(message.pick, await self.describe(message.pick, None))
                answer.pick.CopyFrom(picked)
            elif question == "release":
                answer.release.CopyFrom(self._release(message.release))
            else:
                raise invalid("question is not set; give pick or release")
        except Refused as refused:
            answer.error.CopyFrom(refused.as_message())
        return lease, answer

    def _undelivered(self, over: grpc.aio.ServicerContext, lease: Lease) -> None:
        """A call is over; if it was given up before its answer left, the caller cannot know of its lease."""
        if over.cancelled():
            self._give_back(lease)

    def _give_back(self, lease: Lease | None) -> None:
        if lease is not None and self.leases.withdraw(lease.id):
            self._counters.leases[(lease.request.model, "Undelivered")] += 1

    async def _open_stream(self, context: grpc.aio.ServicerContext) -> None:
        """Count a stream in, or refuse it; whoever opened it counts it out."""
        if self.streams >= self._limits.streams:
            text = f"this router has {self.streams} streams open, as many as it may; try again, or share one"
            await abort(context, Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TooManyStreams", text, 1.0))
        self.streams += 1

    # ---- the fleet ----------------------------------------------------------------------------

    def _state(self, wanted: str) -> router_pb2.WatchResponse:
        names = [n for n in self._models.names() if wanted in ("", n)]
        return router_pb2.WatchResponse(epoch=self._fleet.epoch, models=[self._model_state(name) for name in names])

    def _model_state(self, name: str) -> router_pb2.ModelState:
        fleet, view, now = self._fleet, self._fleet.view(), self._clock()
        rotation = frozenset(view.candidates(name).tolist())
        slots = view.mask(model=name).nonzero()[0].tolist()
        workers = [worker_state(fleet, slot, rotation, now) for slot in slots]
        return router_pb2.ModelState(name=name, policy=self._served(name).policy.name, workers=workers)


def _news(state: router_pb2.WatchResponse) -> bytes:
    """What of a state is worth a message: everything but the age of samples, which always changes."""
    ageless = router_pb2.WatchResponse()
    ageless.CopyFrom(state)
    for model in ageless.models:
        for worker in model.workers:
            worker.ClearField("sample_age_ms")
    encoded: bytes = ageless.SerializeToString(deterministic=True)
    return encoded


def _deadline(message: router_pb2.PickRequest, remaining: float | None, now: float) -> float | None:
    """When the request is of no more use to its caller, on the clock of `now`."""
    limits = [message.deadline_ms / 1000] if message.deadline_ms else []
    if remaining is not None:
        limits.append(remaining)
    return now + min(limits) if limits else None
