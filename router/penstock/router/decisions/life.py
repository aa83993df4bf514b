"""The life of a request, written once: pick, prefill leg, attempt, retry elsewhere, pass on, continue, finish.

`live` is a generator. It yields *actions* (what to do next) and is sent *events* (what happened, and
when). It opens no socket and reads no clock, so the gateway, a gRPC service and the twin can all drive the
same one. Reservations are taken and given back here, in `finally`: a driver that stops anywhere (the
client left: `generator.close()`) leaks nothing.

    [Prefill --Prefilled--] Attempt ---Answered---> PassOn ---Ended---> (done)
        '--Failed--> elsewhere  |                      |--Failed---> Cut (done)
             or without a leg   |                      '--Failed, resumable---> Attempt elsewhere | Cut
                                '----Failed---> Attempt elsewhere | Pause | Refuse (done)
"""

from collections.abc import Generator
from dataclasses import dataclass

from msgspec.structs import replace
from penstock.core.fleet import Failure, Fleet, Pick, Rejection, RejectReason, Request, Role, Worker
from penstock.router.decisions.legs import count_failure, expected_hit, prefill_leg, still_good, unclaimed
from penstock.router.decisions.policies import Policy
from penstock.router.decisions.retries import RetryLimits, retry_after
from penstock.router.decisions.split import SplitLimits, SplitReason, pick_pair, why_split
from penstock.router.decisions.steps import (
    Action,
    Answered,
    Attempt,
    Cut,
    Ended,
    Event,
    Failed,
    Life,
    PassOn,
    Pause,
    Prefill,
    Prefilled,
    Refuse,
    Resumed,
    Transfer,
)

SERVICE_UNAVAILABLE = 503
_SERVER_ERROR = 500

_DECODE, _SPLIT = Role.DECODE, SplitReason.SPLIT
_PASS_ON = PassOn()
_STALE = Failure.STALE_CONNECTION


@dataclass(slots=True)
class _Past:
    """What a life remembers from one attempt to the next."""

    excluded: frozenset[int] = frozenset()
    """Slots that failed this request."""
    barred: frozenset[int] = frozenset()
    """Slots that are not to be picked whatever happens."""
    number: int = 0
    """Attempts so far."""
    last: tuple[Failure, Worker] | None = None
    """How the last attempt ended, and where."""
    transfer: Transfer | None = None
    """What a prefill worker holds for this request."""
    local: bool = False
    """No more legs: a second one ended in an error of the engine's."""
    broken: tuple[Failure, Worker] | None = None
    """How the response that the client has a part of broke; None while the client has nothing."""
    continuations: int = 0
    split: SplitReason | None = None
    """Why the last pick was a pair or was not; None where the model's workers do both."""


def live(
    request: Request,
    fleet: Fleet,
    policy: Policy,
    limits: RetryLimits,
    now: float,
    seed: int,
    split: SplitLimits | None = None,
    barred: frozenset[int] = frozenset(),
) -> Life:
    """Run one request from its admission to its end. `split` None: its prompt is prefilled where it is decoded.

    Slots in `barred` are never picked: the caller knows that they failed this request before.
    """
    past = _Past(barred=barred)
    while True:
        answer = _pick(request, fleet, policy, past, now, seed + past.number, split)
        if isinstance(answer, Rejection) and past.excluded and past.number < limits.attempts:
            # Nobody is left but those that failed: after a pause even they are better than nothing.
            past.excluded = frozenset()
            now = (yield Pause(limits.backoff)).now
            continue
        if isinstance(answer, Rejection):
            yield _give_up(past, answer if past.last is None else _exhausted(request, past.number, past.last))
            return
        past.number += 1
        if past.split is _SPLIT and past.transfer is None and split is not None:
            past.transfer, now, there = yield from _held(request, fleet, answer, past.barred, limits, split, now, seed)
            if not there:
                past.excluded |= {answer.decode}
                continue
        ended = yield from _attempt(request, fleet, answer, past, limits, now, seed)
        if ended is None:
            return
        now = ended.now
        if past.broken is not None and past.number == 0:
            continue  # a continuation goes at once: the client is waiting in the middle of a sentence
        retry = retry_after(past.number, now, request.deadline if past.broken is None else None, limits, seed)
        if not retry.again:
            assert past.last is not None
            yield _give_up(past, _exhausted(request, past.number, past.last))
            return
        if retry.delay:
            now = (yield Pause(retry.delay)).now


def _attempt(
    request: Request, fleet: Fleet, pick: Pick, past: _Past, limits: RetryLimits, now: float, seed: int
) -> Generator[Action, Event, Failed | None]:
    """One attempt at one decode worker; returns how it failed, or None when the life is over."""
    slot = pick.decode
    worker = fleet.worker(slot)
    transfer = past.transfer
    if transfer is not None:
        transfer = past.transfer = still_good(transfer, fleet, slot, now)
    resumes = past.broken is not None
    cached = request.prompt_tokens if transfer is not None else expected_hit(pick, slot)
    reservation = fleet.reserve(slot, request.prompt_tokens, request.max_tokens, cached)
    if not request.streams and pick.predicted_ttft_ms is not None:
        fleet.prefilled_by(reservation, now + pick.predicted_ttft_ms / 1e3)
    try:
        attempt = Attempt(worker, pick, reservation, past.number, transfer=transfer, resumes=resumes, split=past.split)
        event = yield attempt
        if isinstance(event, Failed) and event.failure is _STALE:
            transfer = past.transfer = still_good(transfer, fleet, slot, event.now)
            event = yield replace(attempt, fresh=True, transfer=transfer)
        if isinstance(event, Answered) and _is_wanted(event, request, fleet, slot, past, limits):
            if fleet.holds(reservation):
                fleet.succeeded(slot)
            past.transfer = None
            event = yield _PASS_ON
            if not isinstance(event, Failed):
                return None
            count_failure(fleet, reservation, event, limits, seed)
            if not event.resumable or past.continuations >= limits.continuations:
                yield Cut(event.failure, worker)
                return None
            # The client has a part: what is missing is asked of somebody else, with attempts of its own.
            past.continuations += 1
            past.number, past.local = 0, True
            past.broken = past.last = (event.failure, worker)
            past.excluded = frozenset({slot})
            return event
        failed = event if isinstance(event, Failed) else Failed(event.now, Failure.UNAVAILABLE)
        if isinstance(event, Answered) and event.status != SERVICE_UNAVAILABLE:
            past.local = True  # the engine could not use what it was to pull: once more without, the same worker too
            past.transfer = None
            past.last = (failed.failure, worker)
            return failed
        count_failure(fleet, reservation, failed, limits, seed)
    finally:
        fleet.release(reservation)
    past.transfer = unclaimed(past.transfer, failed.failure)
    past.last = (failed.failure, worker)
    past.excluded |= {slot}
    return failed


def _held(
    request: Request,
    fleet: Fleet,
    pick: Pick,
    barred: frozenset[int],
    limits: RetryLimits,
    split: SplitLimits,
    now: float,
    seed: int,
) -> Generator[Action, Event, tuple[Transfer | None, float, bool]]:
    """Run the first leg while the decode worker's place is held, so that a crowd does not choose it meanwhile.

    Also says whether the decode worker still takes requests: the leg may have taken a while.
    """
    place = fleet.reserve(pick.decode, request.prompt_tokens, request.max_tokens, cached_tokens=request.prompt_tokens)
    try:
        transfer, now = yield from prefill_leg(request, fleet, pick, barred, limits, split, now, seed)
        return transfer, now, fleet.holds(place) and not fleet.withdrawn[pick.decode]
    finally:
        fleet.release(place)


def _pick(
    request: Request,
    fleet: Fleet,
    policy: Policy,
    past: _Past,
    now: float,
    seed: int,
    split: SplitLimits | None,
) -> Pick | Rejection:
    if request.deadline is not None and now >= request.deadline and past.broken is None:
        message = f"request {request.id} was not served before its deadline; ask again or allow it more time"
        return Rejection(RejectReason.DEADLINE_PASSED, message, retry_after=1.0)
    fleet.retry_due(now)
    view = fleet.view()
    if past.excluded or past.barred:
        view = view.without(past.excluded | past.barred)
    answer = policy.pick(request, view, now, seed)
    if not fleet.view().candidates(request.model, _DECODE).size:
        return answer
    if isinstance(answer, Rejection):
        answer = pick_pair(request, view, now)
    if isinstance(answer, Pick):
        past.split = why_split(request, view, answer, now, None if past.local else split)
    return answer


def _is_wanted(event: Answered, request: Request, fleet: Fleet, slot: int, past: _Past, limits: RetryLimits) -> bool:
    """Whether the client gets this response, rather than somebody else being tried.

    A 503 goes elsewhere while there is somebody else; with nobody else the client gets the 503 itself. An error of the
    engine's in a second leg says as much about the leg as about the request: it is asked again without one.
    """
    if past.broken is not None:
        return event.status == 200
    if event.status < _SERVER_ERROR or past.number >= limits.attempts:
        return True
    if event.status != SERVICE_UNAVAILABLE:
        return past.transfer is None
    view = fleet.view().without(past.excluded | past.barred | {slot})
    return not any(view.with_room(request.model, role).size for role in (Role.PREFILL_DECODE, Role.DECODE))


def _give_up(past: _Past, rejection: Rejection) -> Refuse | Cut:
    """The end without an answer: a refusal, or a cut where the client has a part already."""
    return Refuse(rejection) if past.broken is None else Cut(*past.broken)


def _exhausted(request: Request, attempts: int, last: tuple[Failure, Worker]) -> Rejection:
    failure, worker = last
    message = (
        f"model {request.model!r}: {attempts} attempts failed before the first byte; "
        f"the last, at worker {worker.name}, ended in {failure}"
    )
    return Rejection(RejectReason.RETRIES_EXHAUSTED, message, retry_after=2.0)


__all__ = [
    "Action",
    "Answered",
    "Attempt",
    "Cut",
    "Ended",
    "Event",
    "Failed",
    "Life",
    "PassOn",
    "Pause",
    "Prefill",
    "Prefilled",
    "Refuse",
    "Resumed",
    "SplitLimits",
    "SplitReason",
    "Transfer",
    "live",
]
