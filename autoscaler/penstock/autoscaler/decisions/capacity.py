"""How many requests per second one worker serves within the objectives, from its profile and the mix of tokens.

*Decode*: the largest batch whose pass stays below TPOT and whose KV cache fits; a sequence holds its place for `output`
passes, so a batch of B gives B / (output * pass) requests per second.

*Prefill*: a queue in front of one server. A prompt takes s seconds; with independent arrivals at utilisation r it waits
longer than t with probability about r * exp(-2 t (1 - r) / (s (1 + v))), v the squared coefficient of variation of
the prompts' times (Kingman's heavy-traffic approximation of an M/G/1 queue). The largest r is taken at which the asked
share of requests has wait + s within TTFT.

*PrefillDecode*: passes mix both. At a rate q a pass of t seconds holds q*computed*t prompt tokens and q*output*t
sequences (Little's law), and takes what the profile says of such a pass: a fixed point in t, which must stay below
TPOT, while a prompt's own pass and the queue before it stay below TTFT.

A worker that cannot keep the objectives even alone still gets a figure, at half its throughput, and says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from penstock.autoscaler.decisions.demand import TokenMix
from penstock.core.models import LatencyProfile

_ITERATIONS = 40
_RATE_LIMIT = 1e6


@dataclass(frozen=True, slots=True)
class Objectives:
    """Latency owed. Seconds, and the share of requests that must meet both."""

    ttft_s: float
    tpot_s: float
    attainment: float = 0.95


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """What one worker can do."""

    latency: LatencyProfile
    kv_capacity_tokens: int | None = None
    """None: memory does not limit the batch."""
    max_sequences: int = 256


@dataclass(frozen=True, slots=True)
class Margins:
    """What is left free, because load comes in bursts and profiles are not exact."""

    tpot: float = 0.85
    """Share of TPOT that a pass may take."""
    ttft: float = 0.9
    busy: float = 0.8
    """Most of a prefill worker's time that is planned to be busy."""
    batch: float = 0.85
    """Share of the largest batch that is planned for."""
    kv: float = 0.9
    variation: float = 1.0
    """Squared coefficient of variation of prefill times."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Requests per second of one worker."""

    requests_per_s: float
    meets_objectives: bool
    """False: no load at all is light enough for the objectives."""


MARGINS = Margins()


def throughput(
    role: str, worker: WorkerModel, mix: TokenMix, objectives: Objectives, margins: Margins = MARGINS
) -> Throughput:
    """Requests per second one worker of this role (`Prefill`, `Decode`, `PrefillDecode`) serves."""
    of = {"Prefill": _prefill, "Decode": _decode}.get(role, _both)
    return of(worker, mix, objectives, margins)


def _decode(worker: WorkerModel, mix: TokenMix, objectives: Objectives, margins: Margins) -> Throughput:
    output, context = max(1.0, mix.output), mix.prompt + mix.output / 2
    most = _largest_batch(worker, mix, margins)

    def fits(batch: int) -> bool:
        return worker.latency.decode_ms(batch, batch * context) <= 1000 * objectives.tpot_s * margins.tpot

    meets = fits(1)
    batch = _last_true(fits, most) if meets else 1
    seconds = worker.latency.decode_ms(batch, batch * context) / 1000
    return Throughput(batch * (margins.batch if meets else 0.5) / (output * seconds), meets)


def _largest_batch(worker: WorkerModel, mix: TokenMix, margins: Margins) -> int:
    if worker.kv_capacity_tokens is None:
        return worker.max_sequences
    by_memory = int(worker.kv_capacity_tokens * margins.kv / max(1.0, mix.prompt + mix.output))
    return max(1, min(worker.max_sequences, by_memory))


def _last_true(holds: Callable[[int], bool], most: int) -> int:
    """Largest whole number up to `most` for which a condition that fails from somewhere on holds; it holds for 1."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _prefill(worker: WorkerModel, mix: TokenMix, objectives: Objectives, margins: Margins) -> Throughput:
    own_s = _prompt_s(worker, mix)
    limit = objectives.ttft_s * margins.ttft
    if own_s >= limit:
        return Throughput(0.5 / own_s, False)
    busy = _busiest(own_s, limit, 1.0 - objectives.attainment, margins)
    return Throughput(busy / own_s, True)


def _prompt_s(worker: WorkerModel, mix: TokenMix) -> float:
    computed = max(1.0, mix.computed)
    return worker.latency.prefill_ms(computed, _squares(mix)) / 1000


def _squares(mix: TokenMix) -> float:
    """Attention work of the computed tokens, which look back on the cached ones too."""
    computed = max(1.0, mix.computed)
    return computed * (computed + 2 * max(0.0, mix.prompt - mix.computed))


def _busiest(own_s: float, limit_s: float, late: float, margins: Margins) -> float:
    def in_time(busy: float) -> bool:
        return own_s + _wait_s(busy, own_s, late, margins.variation) <= limit_s

    return _largest(in_time, margins.busy)


def _wait_s(busy: float, own_s: float, late: float, variation: float) -> float:
    """The wait that a share `late` of arrivals exceeds, at this utilisation."""
    if busy <= late:
        return 0.0
    return own_s * (1 + variation) / (2 * (1 - busy)) * math.log(busy / max(late, 1e-6))


def _both(worker: WorkerModel, mix: TokenMix, objectives: Objectives, margins: Margins) -> Throughput:
    def holds(rate: float) -> bool:
        return _mixed_holds(worker, mix, objectives, margins, rate)

    if not holds(1e-6):
        alone = _prompt_s(worker, mix) + mix.output * worker.latency.decode_ms(1, mix.prompt + mix.output) / 1000
        return Throughput(0.5 / alone, False)
    most = margins.busy / _prompt_s(worker, mix)
    return Throughput(_largest(holds, min(most, _RATE_LIMIT)), True)


def _mixed_holds(worker: WorkerModel, mix: TokenMix, objectives: Objectives, margins: Margins, rate: float) -> bool:
    pass_s = _pass_s(worker, mix, rate)
    if pass_s is None or pass_s > objectives.tpot_s * margins.tpot:
        return False
    batch = rate * max(1.0, mix.output) * pass_s
    if batch > _largest_batch(worker, mix, margins) * margins.batch:
        return False
    context = batch * (mix.prompt + mix.output / 2)
    own_s = worker.latency.step_ms(max(1.0, mix.computed), _squares(mix), batch, context) / 1000
    wait = _wait_s(min(0.99, rate * _prompt_s(worker, mix)), own_s, 1.0 - objectives.attainment, margins.variation)
    return pass_s / 2 + own_s + wait <= objectives.ttft_s * margins.ttft


def _pass_s(worker: WorkerModel, mix: TokenMix, rate: float) -> float | None:
    """Seconds of a pass at this rate; None where passes grow without end: more arrives than can be computed."""
    context = mix.prompt + mix.output / 2
    seconds = worker.latency.floor_ms(1) / 1000
    for _ in range(_ITERATIONS):
        batch = rate * max(1.0, mix.output) * seconds
        tokens, squares = rate * mix.computed * seconds, rate * _squares(mix) * seconds
        after = worker.latency.step_ms(tokens, squares, batch, batch * context) / 1000
        if after <= seconds * 1.001:
            return max(after, seconds)
        if after > 60:
            return None
        seconds = after
    return None


def _largest(holds: Callable[[float], bool], most: float) -> float:
    """Largest number up to `most` for which a condition that fails from somewhere on holds."""
    low, high = 0.0, most
    if holds(most):
        return most
    for _ in range(_ITERATIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
