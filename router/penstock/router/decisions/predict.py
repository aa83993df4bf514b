"""What a request would meet at each worker: milliseconds and money, for all candidates at once.

    queue    = a*n + b*T + c*S             n requests, T uncached tokens, S attention work still to be prefilled there;
                                           the wait for KV memory (`kv_memory`) where that is longer
    own      = max(a + b*U + c*(P² - H²), floor)     P prompt tokens, H of them cached, U = P - H
    ttft     = queue + own                 (a pair adds the KV's transfer and the first decode pass)
    tpot     = floor(B) + b'*B + c'*C + stall      batch and context with this request in it, and what prompts still
                                           to come bring between two tokens (`stalls`)

with (a, b, c) and (b', c', floor) of the worker's profile (`core.models.latency`). The queue is that of our own
reservations whose first token has not come, so a pick is felt by the very next one.

What it costs, in USD: the accelerator's time it takes, and the time it makes people wait, both at the price of the
accelerator they wait for:

    cost = price * (own + N*s  +  ttft + D*(own + N*s))        s = b' + c'*(P + N/2), what each pass gets longer by

N output tokens, D other requests that decode there now: a prefill stalls each of them, and each of their tokens takes
s longer while this request runs. Waiting is priced like the accelerator because nobody has told us better; it makes
queues, stalls and GPU time comparable in one unit without weights.

Missing data holds: a worker without profile or price is given the mean of those that have one, one class for all; with
none at all a typical one, which is good for comparing but predicts nothing. A cost without any price is in ms.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from penstock.core.fleet import TYPICAL_OUTPUT, FleetView, Request, Roles, Slots
from penstock.router.decisions.kv_memory import Memory, full_memory
from penstock.router.decisions.loads import foreign_requests
from penstock.router.decisions.stalls import keeps, spread_ms

Floats = NDArray[np.float64]

TYPICAL_PREFILL = (10.0, 0.1, 0.0)
TYPICAL_DECODE = (15.0, 0.1, 1e-4)
TYPICAL_TRANSFER = 0.01
"""ms; of a 7B to 13B model on a data-centre GPU. Only used to compare workers none of which has a profile."""
_MS_PER_HOUR = 3_600_000.0


@dataclass(frozen=True, slots=True)
class Side:
    """The candidates for one half of the work, with all of theirs that only membership changes; arrays are (n,)."""

    slots: Slots
    rows: Slots | slice
    """The slots as columns are best read: a slice where they lie side by side, which copies nothing."""
    prefill_base: Floats
    prefill_slope: Floats
    prefill_square: Floats
    floor: Floats
    decode_slope: Floats
    context_slope: Floats
    experts: Floats | None  # (n, 2)
    transfer: Floats
    price: Floats
    profiled: NDArray[np.bool_]
    all_profiled: bool
    decodes_only: NDArray[np.bool_]
    any_decodes_only: bool
    domain: NDArray[np.int32]
    priced: bool

    def __len__(self) -> int:
        """Candidates."""
        return int(self.slots.size)


class Estimate(Struct, frozen=True, eq=False):
    """What is predicted for each candidate of a side; arrays are (n,), money in USD (or ms, see `Side.priced`)."""

    hits: Floats | float
    queue: Floats
    own: Floats
    ttft: Floats
    tpot: Floats
    stall: Floats | None
    spread: Floats | None
    """Standard deviation of `tpot`, for the stalls in it."""
    cost: Floats


class Decode(Struct, frozen=True, eq=False):
    """What is predicted of a request's output at each candidate; arrays are (n,), times in ms."""

    tpot: Floats
    """Per token, with it in the batch."""
    stall: Floats
    """Of that, what prompts still to come bring."""
    spread: Floats
    added: Floats
    """What it adds to all its passes."""
    batch: Floats
    """Requests that decode, this one included."""
    wait: Floats | None
    """Until there is KV memory for it; `None` where there is enough."""


def side_of(view: FleetView, model: str, roles: Roles) -> Side | None:
    """Candidates with room for one half of the work, `None` when there are none."""
    slots = view.with_room(model, roles)
    if not slots.size:
        return None
    if slots is not view.candidates(model, roles):
        return _side(view, slots)  # some are full: seldom, and another set each time
    key = ("side", model, roles)
    side = view.memo.get(key)
    if side is None:
        side = view.memo[key] = _side(view, slots)
    return cast(Side, side)


def prefill_times(side: Side, view: FleetView, request: Request, hits: Floats | float) -> tuple[Floats, Floats]:
    """(queue, own): ms until this request's prefill would begin, and ms it would take, shape (n,)."""
    pending = view.pending[side.rows]
    queue = pending[:, 0] * side.prefill_base
    queue += pending[:, 1] * side.prefill_slope
    queue += pending[:, 2] * side.prefill_square
    prompt = float(request.prompt_tokens)
    own = side.prefill_slope * (prompt - hits)
    own += side.prefill_base
    own += side.prefill_square * (prompt * prompt - hits * hits)
    return queue, np.maximum(own, side.floor, out=own)


def decode_times(side: Side, view: FleetView, request: Request, now: float) -> Decode:
    """The request's output at each candidate. A full memory bounds the batch."""
    rows = side.rows
    output = float(min(request.max_tokens, TYPICAL_OUTPUT))
    foreign = foreign_requests(view, rows, now)
    running = view.in_flight[rows] + (foreign + 1.0)
    context = cast(Floats, view.context_tokens[rows] + float(request.prompt_tokens))
    # Nearly always nobody else is known to send: then that is a sum less.
    most = context if isinstance(foreign, float) else context + foreign * view.mean_request_tokens
    memory = full_memory(view, rows, request, foreign, most)
    batch = np.maximum(running - view.pending[rows, 0], 1.0)
    wait = None
    if memory is not None:
        running = running * memory.share
        context = context * memory.share
    tpot = side.decode_slope * running
    tpot += side.context_slope * context
    tpot += side.floor
    if side.experts is not None:
        tpot += side.experts[:, 0] * (1.0 - (1.0 - side.experts[:, 1]) ** running)
    added = side.context_slope * (request.prompt_tokens + output / 2.0)
    added += side.decode_slope
    added *= output
    if memory is not None:
        prefill = side.prefill_base + (side.prefill_slope + side.prefill_square * memory.prompt) * memory.prompt
        wait = memory.over * (memory.output * tpot + running * prefill)
    brought = _stalls(side, view, foreign, memory)
    stall = brought[:, 0]
    tpot += stall
    return Decode(tpot, stall, spread_ms(brought[:, 1], output), added, batch, wait)


def _stalls(side: Side, view: FleetView, foreign: Floats | float, memory: Memory | None) -> Floats:
    """(ms, ms²) that prompts to come bring to each pass, shape (n, 2).

    Strangers bring what one of ours does, whose profile is not known the mean of the others; who is not admitted brings
    nobody.
    """
    stalls = view.stalls[side.rows]
    if not side.all_profiled and side.profiled.any():
        stalls = np.where(side.profiled[:, None], stalls, stalls[side.profiled].mean(axis=0))
    if not isinstance(foreign, float):
        ours = max(int(view.in_flight[side.rows].sum()), 1)
        stalls = stalls + foreign[:, None] * (stalls.sum(axis=0) / ours)
    return stalls if memory is None else stalls * memory.share[:, None]


def whole(side: Side, view: FleetView, request: Request, hits: Floats | float, now: float) -> Estimate:
    """The request at workers that do both halves."""
    queue, own = prefill_times(side, view, request, hits)
    decode = decode_times(side, view, request, now)
    if decode.wait is not None:
        queue = np.maximum(queue, decode.wait)  # who is waited for is prefilled meanwhile
    ttft = queue + own
    busy = decode.added
    busy += own
    cost = busy * decode.batch
    cost += ttft
    cost *= side.price
    return Estimate(hits, queue, own, ttft, decode.tpot, decode.stall, decode.spread, cost)


def prefill_half(side: Side, view: FleetView, request: Request, hits: Floats | float) -> Estimate:
    """The request's prompt at prefill workers: who waits there waits behind it, nobody decodes. `tpot` is unknown."""
    queue, own = prefill_times(side, view, request, hits)
    ttft = queue + own
    unknown = np.full(ttft.shape, np.nan)
    return Estimate(hits, queue, own, ttft, unknown, None, None, (ttft + own) * side.price)


def punctual(side: Side, estimate: Estimate, request: Request) -> NDArray[np.bool_] | None:
    """Who meets the objectives, shape (n,); `None` where there are none. Who cannot be predicted is not held to them.

    Where the prompt alone is judged (no spread) only the first token counts.
    """
    meets: NDArray[np.bool_] | None = None
    if request.ttft_ms is not None:
        meets = estimate.ttft <= request.ttft_ms
    if estimate.spread is not None and request.tpot_ms is not None:
        in_time = keeps(estimate.tpot, estimate.spread, side.floor, request.tpot_ms)
        meets = in_time if meets is None else np.logical_and(meets, in_time, out=meets)
    return meets if meets is None or side.all_profiled else meets | ~side.profiled


def lateness(ttft: Floats, tpot: Floats, request: Request) -> Floats | None:
    """ms by which the whole answer would miss its objectives, shape (n,); 0 meets them; `None` without objectives."""
    late: Floats | None = None
    if request.ttft_ms is not None:
        late = np.maximum(ttft - request.ttft_ms, 0.0)
    if request.tpot_ms is not None:
        per_token = np.maximum(tpot - request.tpot_ms, 0.0) * float(min(request.max_tokens, TYPICAL_OUTPUT))
        late = per_token if late is None else late + per_token
    return late


def _side(view: FleetView, slots: Slots) -> Side:
    prefill, profiled = _filled(view.prefill_ms[slots], TYPICAL_PREFILL)
    decode, decode_profiled = _filled(view.decode_ms[slots], TYPICAL_DECODE)
    price, priced = _filled(view.price[slots], np.nan)
    transfer, _ = _filled(view.transfer_ms[slots], TYPICAL_TRANSFER)
    experts = view.experts_ms[slots]
    known = profiled & decode_profiled
    return Side(
        slots=slots,
        rows=_rows(slots),
        prefill_base=prefill[:, 0].copy(),
        prefill_slope=prefill[:, 1].copy(),
        prefill_square=prefill[:, 2].copy(),
        floor=decode[:, 0].copy(),
        decode_slope=decode[:, 1].copy(),
        context_slope=decode[:, 2].copy(),
        experts=experts if experts.any() else None,
        transfer=transfer,
        price=price / _MS_PER_HOUR if priced.any() else np.ones(slots.size),
        profiled=known,
        all_profiled=bool(known.all()),
        decodes_only=view.role[slots] == _DECODE,
        any_decodes_only=bool((view.role[slots] == _DECODE).any()),
        domain=view.domain[slots],
        priced=bool(priced.any()),
    )


def _rows(slots: Slots) -> Slots | slice:
    first, last = int(slots[0]), int(slots[-1])
    return slice(first, last + 1) if last - first + 1 == slots.size else slots  # slots are in order, each once


_DECODE = 2  # Role.DECODE, as the column holds it.


def _filled(rows: Any, typical: Any) -> tuple[Floats, NDArray[np.bool_]]:
    """Rows with the unknown ones given the mean of the known, or what is typical; and which were known."""
    known = ~np.isnan(rows if rows.ndim == 1 else rows[:, 0])
    if known.all():
        return rows, known
    filled = rows.copy()
    filled[~known] = rows[known].mean(axis=0) if known.any() else typical
    return filled, known
