"""The life of a request, written once: pick, attempt, retry elsewhere, pass on, finish.

`live` is a generator. It yields *actions* (what to do next) and is sent *events* (what happened, and
when). It opens no socket and reads no clock, so the gateway, a gRPC service and the twin can all drive the
same one. Reservations are taken and given back here, in `finally`: a driver that stops anywhere (the
client left: `generator.close()`) leaks nothing.

    Attempt ---Answered---> PassOn ---Ended---> (done)
       |                       '-----Failed---> Cut (done)
       '----Failed---> Attempt elsewhere | Pause | Refuse (done)
"""

from collections.abc import Generator
from dataclasses import dataclass

from penstock.core.fleet import (
    Failure,
    Fleet,
    Pick,
    Rejection,
    RejectReason,
    Request,
    Reservation,
    Role,
    Worker,
)
from penstock.router.decisions.policies import Policy
from penstock.router.decisions.retries import RetryLimits, blames_worker, ejection_after, retry_after

SERVICE_UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send the request to this worker; over a new connection when `fresh`."""

    worker: Worker
    pick: Pick
    reservation: Reservation
    number: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds, then send `Resumed`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class PassOn:
    """Give the response that was just announced to the client, as it comes."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the client that nobody serves it. The end."""

    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Cut:
    """The response broke after its first byte: tell the client, never silently. The end."""

    failure: Failure
    worker: Worker


Action = Attempt | Pause | PassOn | Refuse | Cut


@dataclass(frozen=True, slots=True)
class Answered:
    """The head of a response has come; nothing has been given to the client yet."""

    now: float
    status: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt, or the response being passed on, broke."""

    now: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Ended:
    """The response was passed on whole."""

    now: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause is over."""

    now: float


Event = Answered | Failed | Ended | Resumed
Life = Generator[Action, Event, None]

_PASS_ON = PassOn()
_STALE = Failure.STALE_CONNECTION


def live(request: Request, fleet: Fleet, policy: Policy, limits: RetryLimits, now: float, seed: int) -> Life:
    """Run one request from its admission to its end."""
    excluded: frozenset[int] = frozenset()
    number = 0
    last: tuple[Failure, Worker] | None = None
    while True:
        answer = _pick(request, fleet, policy, excluded, now, seed + number)
        if isinstance(answer, Rejection) and excluded and number < limits.attempts:
            # Nobody is left but those that failed: after a pause even they are better than nothing.
            excluded = frozenset()
            now = (yield Pause(limits.backoff)).now
            continue
        if isinstance(answer, Rejection):
            yield Refuse(answer if last is None else _exhausted(request, number, last))
            return
        number += 1
        worker = fleet.worker(answer.decode)
        reservation = fleet.reserve(answer.decode, request.prompt_tokens, request.max_tokens)
        try:
            event = yield Attempt(worker, answer, reservation, number)
            if isinstance(event, Failed) and event.failure is _STALE:
                event = yield Attempt(worker, answer, reservation, number, fresh=True)
            tried = excluded | {reservation.slot}
            last_attempt = number >= limits.attempts
            if isinstance(event, Answered) and (last_attempt or not _goes_elsewhere(event, request, fleet, tried)):
                if fleet.holds(reservation):
                    fleet.succeeded(reservation.slot)
                event = yield _PASS_ON
                if isinstance(event, Failed):
                    _count(fleet, reservation, event, limits, seed)
                    yield Cut(event.failure, worker)
                return
            failure = event.failure if isinstance(event, Failed) else Failure.UNAVAILABLE
            now = event.now
            _count(fleet, reservation, Failed(now, failure), limits, seed)
        finally:
            fleet.release(reservation)
        last = (failure, worker)
        excluded = tried
        retry = retry_after(number, now, request.deadline, limits, seed)
        if not retry.again:
            yield Refuse(_exhausted(request, number, last))
            return
        if retry.delay:
            now = (yield Pause(retry.delay)).now


def _pick(
    request: Request, fleet: Fleet, policy: Policy, excluded: frozenset[int], now: float, seed: int
) -> Pick | Rejection:
    if request.deadline is not None and now >= request.deadline:
        message = f"request {request.id} was not served before its deadline; ask again or allow it more time"
        return Rejection(RejectReason.DEADLINE_PASSED, message, retry_after=1.0)
    fleet.retry_due(now)
    view = fleet.view()
    return policy.pick(request, view.without(excluded) if excluded else view, now, seed)


def _goes_elsewhere(event: Answered, request: Request, fleet: Fleet, tried: frozenset[int]) -> bool:
    """Whether a 503 is answered by trying somebody else; with nobody else the client gets the 503 itself."""
    if event.status != SERVICE_UNAVAILABLE:
        return False
    return bool(fleet.view().without(tried).with_room(request.model, Role.PREFILL_DECODE).size)


def _count(fleet: Fleet, reservation: Reservation, event: Failed, limits: RetryLimits, seed: int) -> None:
    """Hold a failure against the worker, unless it is gone, ejected already, or not to blame.

    A crash breaks all of a worker's streams at once; counting each would make one crash look like dozens.
    """
    if not blames_worker(event.failure) or not fleet.holds(reservation) or fleet.ejected(reservation.slot):
        return
    failures = fleet.failed(reservation.slot)
    seconds = ejection_after(event.failure, failures, limits, seed)
    if seconds is not None:
        fleet.eject(reservation.slot, event.now + seconds)


def _exhausted(request: Request, attempts: int, last: tuple[Failure, Worker]) -> Rejection:
    failure, worker = last
    message = (
        f"model {request.model!r}: {attempts} attempts failed before the first byte; "
        f"the last, at worker {worker.name}, ended in {failure}"
    )
    return Rejection(RejectReason.RETRIES_EXHAUSTED, message, retry_after=2.0)
