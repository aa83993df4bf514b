"""A latency profile from a worker's `/metrics`: six coefficients from what counters and gauges did between scrapes.

Nobody has to send a benchmark; the traffic that is there does. With T, S, B and C as in `latency` and the coefficients
a, b, c of prefill and d, e, f of decode, three kinds of equations follow. All are linear in what is sought, so all are
solved at once by least squares of relative errors, none below 0 (`fitting_solve`):

**Wall time.** While a sequence runs the whole time (more ran at the start than ended, or so many on average that the
engine hardly stood still), it makes pass after pass, and the time between two scrapes is the sum of theirs:

    seconds = d*(K - m) + e*sum(B) + f*sum(C) + m*a + b*sum(T) + c*sum(S)

K passes, of which m computed prompts. sum(B) is the count of inter-token latencies, one for each sequence of each
pass: exact, however the batch varied, and so a batch weighted by passes and not, as a mean over requests would be, by
itself.

**Time between tokens.** Where the engine may have been idle meanwhile, wall time says nothing, but the sum of
inter-token latencies does, if no prompt interrupted them: sum(B times pass) = d*sum(B) + e*sum(B^2) + f*sum(B C). The
squares are taken as those of the mean batch sum(B) / K, which errs by the batch's variance within the interval.

**Prefill time.** Of requests that ended, the time from first being scheduled to the first token was one prompt's pass,
beside the batch that ran when it was scheduled: that is looked up in earlier scrapes, as long ago as the requests
decoded. Prompts that share a pass count it twice, so these equations are used only while prompts are rare.

C is what the KV cache holds for each running sequence (the gauges) times sum(B). S of several prompts is that of equal
ones plus what their lengths' variance adds, which the histogram of lengths gives.

What identifies what: prompts of several lengths tell a, b and c apart, batches of several sizes e from d, and contexts
of several lengths f from e. What the load does not tell is refused, or told as not told. Errors come from intervals
held out: the time is cut into blocks, each is predicted by what the others gave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from penstock.core.models.fitting_equations import Equation, Kind, equations
from penstock.core.models.fitting_intervals import Dropped, History, histories, missing
from penstock.core.models.fitting_pages import NAMES, Scrape, Total
from penstock.core.models.fitting_solve import LEAST, Array, Fit, Quality, quality, solve_relative
from penstock.core.models.latency import LatencyProfile, ProfileSource

__all__ = ["MetricsFit", "Seen", "fit_metrics"]

_CLEAR = 1.2  # Times the floor from which a prompt's pass is surely longer than reading the weights.
_TOLD_APART = 1.5  # Times the least batch, or prompt, that the largest must have; the outermost twentieths aside.
_CONTEXTS = 1.2  # The same for the context of a sequence, below which f is left out.
_LONELY = 0.05  # Prompts of others in prefill at a time, up to which prefill times are used in any case;
_ENOUGH = 2 * LEAST  # where they are fewer than this, those with the fewest others.
_BLOCKS = 5
_PREFILL_SHARE = 0.25  # Of an interval, from which its wall time says something of prefill.
_APART = 0.15  # Mean error of one engine against the fit of all from which it is told.
_UNSTEADY = 0.1  # Mean error from which a fit is not to be relied on.
_SHARED, _GUESSED = 0.2, 1.2  # Share of cached prompt tokens, and tokens a pass, from which they are told.


@dataclass(frozen=True, slots=True)
class Seen:
    """Within which loads the fit holds: the 5 % and 95 % quantiles of what the intervals had."""

    batch: tuple[float, float]
    """Sequences decoded together."""
    context: tuple[float, float]
    """Tokens of context of a sequence."""
    prompt: tuple[float, float]
    """Computed tokens of a prompt."""

    @property
    def sentence(self) -> str:
        """For a person."""
        (low, high), (near, far), (short, long) = self.batch, self.context, self.prompt
        return (
            f"batches of {low:.1f} to {high:.1f} sequences with {near:.0f} to {far:.0f} tokens of context each, "
            f"prompts of {short:.0f} to {long:.0f} computed tokens"
        )


@dataclass(frozen=True, slots=True)
class MetricsFit:
    """A profile from metrics, what it rests on and how far it is to be believed."""

    fit: Fit
    """Its errors are those of intervals that the coefficients they are held against had not seen."""
    spread: tuple[float, ...]
    """Standard error of each coefficient a, b, c, d, e, f, from leaving out one block of time after another."""
    seen: Seen
    models: tuple[str, ...]
    engines: tuple[str, ...]
    seconds: float
    used: int
    """Intervals between two scrapes that an equation came from."""
    dropped: Counter[Dropped]
    kv_capacity: int | None
    """Tokens of KV cache of one worker, where all say the same."""
    notes: tuple[str, ...]
    """What could not be told, and what is odd."""


def fit_metrics(scrapes: Iterable[Scrape], provenance: str, *, max_num_batched_tokens: int | None = None) -> MetricsFit:
    """Fit one profile to all workers of the scrapes, which must be alike. The profile's provenance is `provenance`
    with the errors and the range of the load behind it.

    `max_num_batched_tokens` is the engine's; without it a prompt is taken to be computed in one pass. Raises
    ValueError, saying what the load or the pages lack, where they do not tell the coefficients.
    """
    found, dropped = histories(scrapes)
    _check(found, dropped)
    rows, used = _gathered(found, max_num_batched_tokens, dropped)
    notes = _notes(found)
    seen = _seen(rows, dropped)
    if seen.context[1] < _CONTEXTS * seen.context[0]:
        notes.append(
            f"what a token of context costs is not identifiable: sequences had {seen.context[0]:.0f} to "
            f"{seen.context[1]:.0f} tokens only; its coefficient is 0 and its cost is in that of a sequence"
        )
        rows = [replace(one, row=(*one.row[:5], 0.0)) for one in rows]
    rows = _without_floored(rows, dropped)
    held, spread, coefficients = _held_out(rows)
    a, b, c, d, e, f = (float(value) for value in coefficients)
    if a + b <= 0.0 or d + e <= 0.0:
        phase = "prefill" if a + b <= 0.0 else "decode"
        raise ValueError(
            f"not identifiable: by this load {phase} would take no time; scrape while the load varies more"
        )
    prefill, decode = _prefill_quality(rows, held), _decode_quality(rows, held)
    said = (
        f"{provenance}; mean error on intervals held out: prefill {prefill.mean_error:.1%} (95 % within "
        f"{prefill.p95_error:.1%}), decode {decode.mean_error:.1%} ({decode.p95_error:.1%}); seen: {seen.sentence}"
    )
    fit = Fit(LatencyProfile((a, b, c), (d, e, f), ProfileSource.ONLINE, said), prefill, decode)
    notes += [*_strangers(rows, coefficients, found), *_unsteady(fit)]
    return MetricsFit(
        fit=fit,
        spread=tuple(float(value) for value in spread),
        seen=seen,
        models=_models(found),
        engines=tuple(history.engine for history in found),
        seconds=max(h.readings[-1].at_s - h.readings[0].at_s for h in found),
        used=used,
        dropped=+dropped,
        kv_capacity=_capacity(found),
        notes=tuple(notes),
    )


def _gathered(found: Sequence[History], budget: int | None, dropped: Counter[Dropped]) -> tuple[list[Equation], int]:
    """The equations of all engines, and from how many intervals they are; what gave none is added to `dropped`."""
    rows: list[Equation] = []
    used = 0
    for number, history in enumerate(found):
        made, count, why = equations(history, number, budget)
        rows += made
        used += count
        dropped += why
    kept = _loneliest(rows)
    dropped[Dropped.OVERLAPPED] += len(rows) - len(kept)
    return kept, used


# What the scrapes are of.


def _check(found: Sequence[History], dropped: Counter[Dropped]) -> None:
    """Raise ValueError unless there is one model, and the series that everything rests on."""
    if not found:
        garbage = dropped[Dropped.GARBAGE]
        said = f"none of {garbage} answers was a page of vLLM's metrics" if garbage else "nothing was scraped"
        raise ValueError(f"{said}; give the /metrics of an engine, which it has unless --disable-log-stats is set")
    models = _models(found)
    if len(models) > 1:
        raise ValueError(f"the workers serve different models ({', '.join(models)}); fit each on its own")
    lacking = [(history.engine, missing(history)) for history in found]
    if all(totals for _, totals in lacking):
        engine, totals = lacking[0]
        names = ", ".join(sorted({NAMES[total] for total in totals}))
        raise ValueError(f"the page of {engine} lacks {names}; without it a profile cannot be fitted")


def _models(found: Sequence[History]) -> tuple[str, ...]:
    return tuple(sorted({reading.model for history in found for reading in history.readings if reading.model}))


def _capacity(found: Sequence[History]) -> int | None:
    sizes = {reading.kv_capacity for history in found for reading in history.readings}
    return sizes.pop() if len(sizes) == 1 else None


def _notes(found: Sequence[History]) -> list[str]:
    """What makes the pages say less than they might."""
    notes = []
    last = [history.readings[-1].totals for history in found]
    rise = [
        {t: h.readings[-1].totals[t] - h.readings[0].totals.get(t, 0.0) for t in h.readings[-1].totals} for h in found
    ]
    if not all(Total.STEPS in totals for totals in last):
        notes.append(f"a page lacks {NAMES[Total.STEPS]}: wall time was not used, batches are those seen by scrapes")
    if not all(Total.COMPUTED in totals or Total.HITS in totals for totals in last):
        notes.append("a page does not tell cached prompt tokens: all were taken to be computed")
    hits, prompt = (sum(max(one.get(t, 0.0), 0.0) for one in rise) for t in (Total.HITS, Total.PROMPT))
    if prompt and hits / prompt > _SHARED:
        notes.append(
            f"{hits / prompt:.0%} of prompt tokens were cached: blocks that sequences share are in use once, so "
            "contexts are longer than they seem and the cost of a token of context may be too high"
        )
    given = sum(max(one.get(Total.GENERATED, 0.0), 0.0) for one in rise)
    passes = sum(max(one.get(t, 0.0), 0.0) for one in rise for t in (Total.INTERVALS, Total.FIRSTS))
    if passes and given / passes > _GUESSED:
        notes.append(
            f"a pass gave {given / passes:.2f} tokens a sequence (speculative decoding): the profile tells the time "
            "of a pass, and a token takes less"
        )
    if all(r.kv_tokens is None for h in found for r in h.readings):
        notes.append("no page tells KV usage and the cache's size: contexts are those of requests that ended")
    return notes


# What the load tells.


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(np.array(values), (0.05, 0.95))
    return float(low), float(high)


def _seen(rows: Sequence[Equation], dropped: Counter[Dropped]) -> Seen:
    """The range of the load; raises ValueError where it is too narrow, or too little is known."""
    decode = [one for one in rows if one.kind is not Kind.PREFILL and one.batch > 0]
    prompts = [one.prompt for one in rows if one.prompt is not None]
    for what, count, hint in (
        ("decode", len(decode), "scrape more often, for longer, or while requests run"),
        ("prefill", len(prompts), "scrape more often, for longer, or while requests come"),
    ):
        if count < LEAST:
            why = "; ".join(f"{number} x {reason}" for reason, number in (+dropped).most_common(3))
            raise ValueError(
                f"{count} equations for {what}, {LEAST} are needed to fit a profile; {hint}"
                + (f" (intervals left out: {why})" if why else "")
            )
    batch = _quantiles([one.batch for one in decode])
    if batch[1] < _TOLD_APART * batch[0]:
        raise ValueError(
            f"not identifiable: the batch ranged from {batch[0]:.1f} to {batch[1]:.1f} sequences only, so what a "
            "sequence costs cannot be told from what every pass costs; scrape while the load rises or falls"
        )
    prompt = _quantiles(prompts)
    if prompt[1] < _TOLD_APART * prompt[0]:
        raise ValueError(
            f"not identifiable: prompts ranged from {prompt[0]:.0f} to {prompt[1]:.0f} computed tokens only, so what "
            "a prompt token costs cannot be told from what every prompt costs; scrape while their lengths vary"
        )
    return Seen(batch, _quantiles([one.context for one in decode]), prompt)


def _loneliest(rows: Sequence[Equation]) -> list[Equation]:
    """Without prefill times of prompts that others may have shared a pass with, as far as enough are left: prompts
    that come together are computed together, however rarely they come."""
    alone = sorted(one.crowd for one in rows if one.kind is Kind.PREFILL)
    bound = max(_LONELY, alone[min(_ENOUGH, len(alone)) - 1]) if alone else _LONELY
    return [one for one in rows if one.kind is not Kind.PREFILL or one.crowd <= bound]


def _without_floored(rows: list[Equation], dropped: Counter[Dropped]) -> list[Equation]:
    """Equations whose prompts' passes were longer than reading the weights, judged by a first solution. Wall time in
    which prompts took no longer than that is decode's alone; prefill times are left out and counted."""
    found = _solve(rows)
    floor = found[3] + found[4]
    kept: list[Equation] = []
    for one in rows:
        m, tokens, squares = one.row[:3]
        if m == 0 or found[:3] @ np.array((m, tokens, squares)) > _CLEAR * floor * m:
            kept.append(one)
        elif one.kind is Kind.WALL:
            kept.append(replace(one, row=(0.0, 0.0, 0.0, one.row[3] + m, *one.row[4:]), prompt=None))
    if sum(one.prompt is not None for one in kept) < LEAST:
        return rows
    dropped[Dropped.FLOOR] += len(rows) - len(kept)
    return kept


# Solving, and how far off it is.


def _solve(rows: Sequence[Equation]) -> Array:
    matrix, times = _matrix(rows)
    return solve_relative(matrix, times, np.array([one.kind.value for one in rows]))


def _matrix(rows: Sequence[Equation]) -> tuple[Array, Array]:
    return np.array([one.row for one in rows], dtype=np.float64), np.array([one.ms for one in rows])


def _held_out(rows: Sequence[Equation]) -> tuple[Array, Array, Array]:
    """For each equation the coefficients that its block of time had no part in; the standard error of each
    coefficient; and the coefficients of all."""
    at = np.array([one.at_s for one in rows])
    edges = np.quantile(at, np.linspace(0, 1, _BLOCKS + 1)[1:-1])
    block = np.searchsorted(edges, at, side="right")
    everything = _solve(rows)
    held = np.tile(everything, (len(rows), 1))
    found = []
    for number in np.unique(block):
        rest = [one for one, its in zip(rows, block, strict=True) if its != number]
        if len(rest) >= LEAST:
            found.append(_solve(rest))
            held[block == number] = found[-1]
    folds = np.array(found) if found else everything[None, :]
    count = len(folds)
    spread = np.sqrt((count - 1) / count * ((folds - folds.mean(axis=0)) ** 2).sum(axis=0))
    return held, spread, everything


def _decode_quality(rows: Sequence[Equation], held: Array) -> Quality:
    """Of the mean time of a pass, prompts in it included."""
    matrix, times = _matrix(rows)
    mine = np.array([one.kind is not Kind.PREFILL for one in rows])
    passes = np.array([one.passes for one in rows])
    return quality(((matrix * held).sum(axis=1) / passes)[mine], (times / passes)[mine])


def _prefill_quality(rows: Sequence[Equation], held: Array) -> Quality:
    """Of prompts' prefill time; where prompts were never rare, of that share of wall time that decode leaves."""
    matrix, times = _matrix(rows)
    alone = np.array([one.kind is Kind.PREFILL for one in rows])
    if alone.sum() >= LEAST:
        prompts = np.maximum(matrix[:, 0], 1.0)
        return quality(((matrix * held).sum(axis=1) / prompts)[alone], (times / prompts)[alone])
    work, rest = (matrix * held)[:, :3].sum(axis=1), (matrix * held)[:, 3:].sum(axis=1)
    much = (work >= _PREFILL_SHARE * times) & (times > rest)
    if much.sum() < LEAST:
        raise ValueError(
            f"prompts took a notable part of the time in {int(much.sum())} intervals, {LEAST} are needed to judge "
            "prefill; scrape while longer or more prompts come, or while they come one by one"
        )
    return quality(work[much] / matrix[much, 0], (times - rest)[much] / matrix[much, 0])


def _unsteady(fit: Fit) -> list[str]:
    """That errors are large, which no load explains."""
    return [
        f"times of {phase} are off by {found.mean_error:.0%} on average: passes of one load took very different times "
        "(a throttled or shared accelerator, another engine behind the address); believe little of this profile"
        for phase, found in (("prefill", fit.prefill), ("decode", fit.decode))
        if found.mean_error > _UNSTEADY
    ]


def _strangers(rows: Sequence[Equation], coefficients: Array, found: Sequence[History]) -> list[str]:
    """Engines that differ from the fit of all: another accelerator, a throttled one, or other settings."""
    if len(found) < 2:
        return []
    notes = []
    for number, history in enumerate(found):
        mine = [one for one in rows if one.engine == number]
        if len(mine) < LEAST:
            notes.append(f"{history.engine} gave {len(mine)} equations only")
            continue
        matrix, times = _matrix(mine)
        off = float(np.median(times / (matrix @ coefficients))) - 1.0
        if abs(off) > _APART:
            notes.append(
                f"{history.engine} is {abs(off):.0%} {'slower' if off > 0 else 'faster'} than the fit of all; fit it "
                "on its own unless it is meant to be alike"
            )
    return notes
