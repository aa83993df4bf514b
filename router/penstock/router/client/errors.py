"""What the client raises: one exception, with the router's reason and when to ask again."""

from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from penstock.router.v1 import router_pb2

_DETAILS = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(eq=False)
class RouterError(Exception):
    """The router refused, or could not be reached.

    `reason` is the router's CamelCase word, empty where the refusal is not its own (a lost connection, say);
    `retry_after` is in seconds, `None` where the router names no time.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    retry_after: float | None = None

    def __str__(self) -> str:
        """Code, reason and sentence."""
        return f"{self.code.name} {self.reason}: {self.message}" if self.reason else f"{self.code.name}: {self.message}"

    @property
    def worth_repeating(self) -> bool:
        """Whether asking the same again may succeed: no answer came, or the router says when to try."""
        if self.code is grpc.StatusCode.UNAVAILABLE:
            return True
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and (self.retry_after is not None or not self.reason)


def of_call(error: grpc.aio.AioRpcError) -> RouterError:
    """A failed call as our exception."""
    reason, retry_after = "", None
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            reason, retry_after = _read_details(value)
    return RouterError(error.code(), reason, error.details() or "no details given", retry_after)


def of_refusal(refusal: router_pb2.Refusal) -> RouterError:
    """A stream's refusal as our exception."""
    after = refusal.retry_after_ms / 1000 if refusal.HasField("retry_after_ms") else None
    return RouterError(_CODES.get(refusal.code, grpc.StatusCode.UNKNOWN), refusal.reason, refusal.message, after)


def _read_details(encoded: bytes) -> tuple[str, float | None]:
    """Reason and seconds to wait of a status; nothing where it is not one (a proxy may write what it likes)."""
    reason, retry_after = "", None
    try:
        status = status_pb2.Status.FromString(encoded)
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    except DecodeError:
        pass
    return reason, retry_after
