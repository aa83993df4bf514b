"""What the life of a request asks of its driver (actions), and what the driver tells it (events).

Every request makes some of them: frozen structs, which cost a tenth of a frozen dataclass. None of them can be part of
a cycle, so the garbage collector need not look at them (`gc=False`).
"""

from collections.abc import Generator

from msgspec import Struct
from penstock.core.fleet import Failure, Pick, Rejection, Reservation, Worker
from penstock.router.decisions.split import SplitReason


class Transfer(Struct, frozen=True, gc=False):
    """What a prefill leg left behind for a decode worker, and how long it can be relied on."""

    params: bytes
    """`kv_transfer_params` of the first leg's answer, untouched: JSON."""
    domain: int
    """Transfer domain of the prefill worker, as the fleet numbers them."""
    usable_until: float
    """Time on the driver's clock after which the second leg may not be sent any more."""
    prefill: str
    """Name of the worker that holds the blocks."""


class Prefill(Struct, frozen=True, gc=False):
    """Send the first leg to this worker (one token, not streamed); over a new connection when `fresh`."""

    worker: Worker
    pick: Pick
    reservation: Reservation
    fresh: bool = False


class Attempt(Struct, frozen=True, gc=False):
    """Send the request to this worker; over a new connection when `fresh`, as a second leg with a `transfer`.

    `resumes`: a part of the answer has been given to the client already; ask for the rest of it. `split`: why there is
    a second leg or none, where the model has workers for legs.
    """

    worker: Worker
    pick: Pick
    reservation: Reservation
    number: int
    fresh: bool = False
    transfer: Transfer | None = None
    resumes: bool = False
    split: SplitReason | None = None


class Pause(Struct, frozen=True, gc=False):
    """Wait so many seconds, then send `Resumed`."""

    seconds: float


class PassOn(Struct, frozen=True, gc=False):
    """Give the response that was just announced to the client, as it comes."""


class Refuse(Struct, frozen=True, gc=False):
    """Tell the client that nobody serves it. The end."""

    rejection: Rejection


class Cut(Struct, frozen=True, gc=False):
    """The response broke after its first byte and is not continued: tell the client, never silently. The end."""

    failure: Failure
    worker: Worker


Action = Prefill | Attempt | Pause | PassOn | Refuse | Cut


class Prefilled(Struct, frozen=True, gc=False):
    """The first leg was answered; `params` is None where nothing is held for a second one."""

    now: float
    status: int
    params: bytes | None


class Answered(Struct, frozen=True, gc=False):
    """The head of a response has come; nothing of it has been given to the client yet."""

    now: float
    status: int


class Failed(Struct, frozen=True, gc=False):
    """The attempt, or the response being passed on, broke.

    `resumable`: the driver can ask somebody else for exactly what is missing of a response being passed on.
    """

    now: float
    failure: Failure
    resumable: bool = False


class Ended(Struct, frozen=True, gc=False):
    """The response was passed on whole."""

    now: float


class Resumed(Struct, frozen=True, gc=False):
    """The pause is over."""

    now: float


Event = Prefilled | Answered | Failed | Ended | Resumed
Life = Generator[Action, Event, None]
