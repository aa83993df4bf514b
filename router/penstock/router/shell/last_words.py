"""What is said when a request ends: to a client that was refused or cut off, and to the access log."""

from penstock.core.fleet import Rejection, RejectReason, Request
from penstock.router.decisions import Attempt, Cut
from penstock.router.shell.forms import Fault
from penstock.router.shell.keepsake import Keepsake

_STATUS = {
    RejectReason.NO_WORKERS: 503,
    RejectReason.WORKERS_BUSY: 429,
    RejectReason.DEADLINE_PASSED: 503,
    RejectReason.RETRIES_EXHAUSTED: 502,
}


def refusal(rejection: Rejection) -> Fault:
    """The answer to a request that nobody serves."""
    status = _STATUS[rejection.reason]
    kind = "rate_limit_error" if status == 429 else "server_error"
    return Fault(status, rejection.message, rejection.reason, type=kind, retry_after=rejection.retry_after)


def cut_off(action: Cut, kept: Keepsake | None) -> Fault:
    """What there is to say about a response that broke in the middle; `kept`: what there is of its stream."""
    message = f"The response broke after its first byte ({action.failure}); "
    message += f"worker {action.worker.name} is not to be had."
    if kept is not None:
        message += f" It was not continued: {kept.reason or 'nobody could take it over'}."
    return Fault(502, message, str(action.failure), type="server_error")


def access_record(
    request: Request, model: str, target: bytes, code: int, seconds: float, attempt: Attempt | None
) -> dict[str, object]:
    """What the access log says of a request; `attempt`: the last one, None where there was none."""
    record: dict[str, object] = {
        "request": request.id,
        "model": model,
        "path": target.decode("latin-1"),
        "code": code,
        "seconds": round(seconds, 4),
    }
    if attempt is not None:
        record |= {"worker": attempt.worker.name, "attempts": attempt.number, "reason": str(attempt.pick.reason)}
    return record
