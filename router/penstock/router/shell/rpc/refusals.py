"""Refusals in gRPC's own form: a code, our reason as ErrorInfo, and when to ask again as RetryInfo."""

from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from penstock.core.fleet import Rejection, RejectReason
from penstock.router.v1 import router_pb2

DOMAIN = "penstock.dev"
DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"
"""What gRPC's retry policies read: milliseconds, negative for "do not retry"."""

_CODES = {
    RejectReason.NO_WORKERS: grpc.StatusCode.UNAVAILABLE,
    RejectReason.WORKERS_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.DEADLINE_PASSED: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(eq=False)
class Refused(Exception):
    """Why a call is refused; `retry_after` in seconds, `None` where asking the same again is of no use."""

    code: grpc.StatusCode
    reason: str
    message: str
    retry_after: float | None = None

    @classmethod
    def of(cls, rejection: Rejection) -> "Refused":
        """A decision's rejection as a refusal."""
        code = _CODES.get(rejection.reason, grpc.StatusCode.UNAVAILABLE)
        again = None if rejection.reason is RejectReason.DEADLINE_PASSED else rejection.retry_after
        return cls(code, str(rejection.reason), rejection.message, again)

    @property
    def retry_after_ms(self) -> int | None:
        """Whole milliseconds until it is worth asking again."""
        return None if self.retry_after is None else round(self.retry_after * 1000)

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The status with its details, and the push-back for retry policies."""
        details = [_packed(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))]
        pushback = -1
        if self.retry_after_ms is not None:
            pushback = self.retry_after_ms
            delay = duration_pb2.Duration(seconds=pushback // 1000, nanos=pushback % 1000 * 1_000_000)
            details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message, details=details)
        return ((DETAILS, status.SerializeToString()), (PUSHBACK, str(pushback)))

    def as_message(self) -> router_pb2.Refusal:
        """As an answer on a stream."""
        return router_pb2.Refusal(
            code=self.code.value[0], reason=self.reason, message=self.message, retry_after_ms=self.retry_after_ms
        )


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext, refused: Refused) -> NoReturn:
    """End a call with a refusal."""
    await context.abort(refused.code, refused.message, refused.trailing_metadata())
    raise AssertionError("abort returned")  # it raises; this tells readers and mypy so


def invalid(message: str) -> Refused:
    """The request cannot be understood; the message says which field and what to write there."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest", message)
