"""The equations of `fitting_metrics`: one engine's intervals as rows in the six coefficients."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from penstock.core.models.fitting_intervals import Dropped, History, Interval, intervals
from penstock.core.models.fitting_pages import Reading, Total

__all__ = ["Equation", "Kind", "equations"]

_PASSES = 60
"""Passes that an equation of wall time is to span: when the first and the last began is not known, so it is off by up
to one of them. Half as many will do at the end of a busy time."""
_LONGEST = 2 * _PASSES
"""Passes after which a window does not wait any longer for its two ends to be alike."""
_RARE = 0.1
"""Prompts of others in prefill at a time, on average, up to which prefill times are taken to be of one prompt each."""
_AROUND_S = 10.0
"""So long before and after must prompts be as rare, too: of those that came at once, one may stand alone in its
interval by chance."""
_TOKENS = 3.0
"""Inter-token latencies that an equation rests on at least."""

Row = tuple[float, float, float, float, float, float]


class Kind(Enum):
    """What an equation is about; see `fitting_metrics`."""

    WALL = auto()
    TOKENS = auto()
    PREFILL = auto()


@dataclass(frozen=True, slots=True)
class Equation:
    """row @ (a, b, c, d, e, f) = ms, and the load that it is about."""

    kind: Kind
    engine: int
    at_s: float
    row: Row
    ms: float
    passes: float
    """Passes, or tokens, that the milliseconds are shared by."""
    batch: float
    context: float
    """Tokens of a sequence."""
    prompt: float | None
    """Mean computed tokens of its prompts; None without any."""
    crowd: float = 0.0
    """Prompts of others that were in prefill meanwhile, on average."""


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Prompts that were computed: how many, their computed and cached tokens, S."""

    count: float
    tokens: float
    squares: float


def equations(history: History, engine: int, budget: int | None) -> tuple[list[Equation], int, Counter[Dropped]]:
    """All equations of one engine, from how many intervals they came, and why other intervals gave none."""
    kept, dropped = intervals(history)
    variance = _variance(history)
    made: list[Equation] = []
    used: set[int] = set()
    windows, rest = _windows(kept)
    for window in windows:
        wall = _wall([kept[index] for index in window], engine, variance)
        if wall is not None:
            made.append(wall)
            used.update(window)
    for index in rest:
        tokens = _tokens(kept[index], engine)
        if tokens is not None:
            made.append(tokens)
            used.add(index)
    shares = _Lookup(kept)
    for index, interval in enumerate(kept):
        prefill = _prefill(interval, engine, variance, shares, budget)
        if isinstance(prefill, Equation):
            made.append(prefill)
            used.add(index)
        elif prefill is not None:
            dropped[prefill] += 1
    for index in set(range(len(kept))) - used:
        dropped[Dropped.SHORT if kept[index].busy else Dropped.UNCLEAR] += 1
    return made, len(used), +dropped


def _windows(kept: Sequence[Interval]) -> tuple[list[list[int]], list[int]]:
    """Runs of intervals for equations of wall time, and the intervals that are not busy.

    A window ends where as many prompts are being computed as were at its beginning: a long pass that only ends in it is
    counted whole, so windows that begin with one and end without would seem too short.
    """
    windows: list[list[int]] = []
    rest: list[int] = []
    window: list[int] = []
    for index, one in enumerate(kept):
        if not (one.busy and one.timed and one.change(Total.STEPS)):
            rest.append(index)
            _close(window, kept, windows)
            continue
        if window and kept[window[-1]].after is not one.before:
            _close(window, kept, windows)
        window.append(index)
        steps = _steps(window, kept)
        # A request that was aborted before its first token stays in the balance: the window is cut before it.
        if steps >= _LONGEST or (steps >= _PASSES and _in_prefill(window, kept) == 0.0):
            _close(window, kept, windows)
    _close(window, kept, windows)
    return windows, rest


def _close(window: list[int], kept: Sequence[Interval], windows: list[list[int]]) -> None:
    """Take the longest part of the window that is one, and empty it."""
    while window and _in_prefill(window, kept) != 0.0:
        window.pop()
    if _steps(window, kept) >= _PASSES / 2:
        windows.append(list(window))
    window.clear()


def _steps(window: Sequence[int], kept: Sequence[Interval]) -> float:
    return sum(kept[index].changes[Total.STEPS] for index in window)


def _in_prefill(window: Sequence[int], kept: Sequence[Interval]) -> float:
    """How many more prompts are being computed at its end than at its beginning."""
    return sum(kept[index].admitted - kept[index].changes[Total.FIRSTS] for index in window)


# The three kinds.


def _wall(window: Sequence[Interval], engine: int, variance: float) -> Equation | None:
    """Pass after pass, from the first scrape of the window to the last."""
    steps = sum(one.change(Total.STEPS) or 0.0 for one in window)
    tokens, context = 0.0, 0.0
    count = passes = computed = squares = 0.0
    for one in window:
        prompts, fetched = _computed(one, variance)
        here = one.changes[Total.INTERVALS] + fetched
        each = _context(one)
        if each is None:
            return None
        tokens += here
        context += here * each
        count += prompts.count
        passes += _prompt_passes(one, prompts)
        computed += prompts.tokens
        squares += prompts.squares
    passes = min(passes, steps)
    if tokens <= 0:
        return None
    row = (passes, computed, squares, steps - passes, tokens, context)
    begin, end = window[0].before.at_s, window[-1].after.at_s
    mean = computed / count if count else None
    return Equation(
        Kind.WALL, engine, (begin + end) / 2, row, (end - begin) * 1e3, steps, tokens / steps, context / tokens, mean
    )


def _tokens(one: Interval, engine: int) -> Equation | None:
    """Sums of B times pass, where no prompt interrupted: none was computed, or one at an engine that stood idle."""
    count, firsts = one.changes[Total.INTERVALS], one.changes[Total.FIRSTS]
    running = one.before.running or 0.0
    alone = running == 0.0 and firsts == 1.0
    undisturbed = firsts == 0.0 and one.admitted == 0.0
    context = _context(one)
    seconds = one.changes[Total.INTERVAL_S]
    if count < _TOKENS or seconds <= 0 or not (alone or undisturbed) or context is None:
        return None
    steps = one.change(Total.STEPS)
    after = one.after.running or 0.0
    mean = max(count / steps if steps else 0.5 * (running + after), 1.0)
    # A batch that only shrinks: by passes it is `mean`, by tokens more, by the variance of an even fall.
    batch = 1.0 if alone else mean + max(running - max(after, 1.0), 0.0) ** 2 / (12.0 * mean)
    row = (0.0, 0.0, 0.0, count, count * batch, count * batch * context)
    at = (one.before.at_s + one.after.at_s) / 2
    return Equation(Kind.TOKENS, engine, at, row, seconds * 1e3, count, batch, context, None)


def _prefill(
    one: Interval, engine: int, variance: float, lookup: _Lookup, budget: int | None
) -> Equation | Dropped | None:
    """Prefill times of the requests that ended; None where none did."""
    count, seconds = one.change(Total.ENDED), one.change(Total.PREFILL_S)
    prompts, length = one.change(Total.ENDED_PROMPT), one.change(Total.LENGTHS)
    if not count or not seconds or not prompts or length != count:
        return None
    if one.changes.get(Total.EXTERNAL) or one.before.totals.get(Total.EXTERNAL):
        return None  # Their KV came from elsewhere: no prefill.
    computed = _ended_computed(one, prompts)
    if computed <= 0:
        return None
    ago = (seconds + (one.change(Total.DECODE_S) or 0.0)) / count
    at = (one.before.at_s + one.after.at_s) / 2 - ago
    met = lookup.before(at)
    if met is None:
        return Dropped.EARLY
    around = 0.5 * one.seconds + seconds / count
    others = max(lookup.others(at - reach, at + reach) for reach in (around, around + _AROUND_S))
    crowd = others * seconds / count
    if crowd > _RARE:
        return Dropped.OVERLAPPED
    squares = _squares(_Prompts(count, computed, 0.0), prompts - computed, variance)
    batch = met.running or 0.0
    if budget is not None and computed / count > budget - batch:
        return Dropped.MANY
    context = 0.0 if met.kv_tokens is None else met.kv_tokens
    row = (count, computed, squares, 0.0, count * batch, count * context)
    return Equation(
        Kind.PREFILL, engine, at, row, seconds * 1e3, count, batch, context / batch if batch else 0.0, computed / count,
        crowd,
    )  # fmt: skip


# What intervals tell of prompts and contexts.


class _Lookup:
    """What an engine did at a time."""

    def __init__(self, kept: Sequence[Interval]) -> None:
        self._kept = kept
        self._starts = [one.before.at_s for one in kept]

    def before(self, at_s: float) -> Reading | None:
        """The last reading up to a time; None where none is near enough, or the engine restarted since."""
        place = bisect_right(self._starts, at_s) - 1
        if place < 0:
            return None
        one = self._kept[place]
        return one.before if at_s <= one.after.at_s else (one.after if one.after.running == 0.0 else None)

    def others(self, begin_s: float, end_s: float) -> float:
        """First tokens a second in the intervals that reach into a time, one of them aside."""
        low = max(bisect_right(self._starts, begin_s) - 1, 0)
        near = self._kept[low : max(bisect_right(self._starts, end_s), low + 1)]
        seconds = near[-1].after.at_s - near[0].before.at_s
        return max(sum(one.changes[Total.FIRSTS] for one in near) - 1.0, 0.0) / max(seconds, 1e-9)


def _computed(one: Interval, variance: float) -> tuple[_Prompts, float]:
    """The prompts whose first token came in an interval, and how many of them were fetched from another worker, which
    costs what a decoded token costs."""
    firsts, prompt = one.changes[Total.FIRSTS], one.changes[Total.PROMPT]
    external = one.changes.get(Total.EXTERNAL, 0.0)
    if Total.COMPUTED in one.changes:
        tokens = one.changes[Total.COMPUTED]
    else:
        tokens = max(prompt - one.changes.get(Total.HITS, 0.0), 0.0)
    share = external / (external + tokens) if external else 0.0
    here = firsts * (1.0 - share)
    prompts = _Prompts(here, tokens, 0.0)
    squares = _squares(prompts, max(prompt - external - tokens, 0.0), variance)
    return _Prompts(here, tokens, squares), firsts * share


def _ended_computed(one: Interval, prompts: float) -> float:
    """Computed tokens of the requests that ended."""
    computed = one.change(Total.ENDED_COMPUTED)
    if computed is not None:
        return computed
    hits, all_prompts = one.after.totals.get(Total.HITS, 0.0), one.after.totals[Total.PROMPT]
    return prompts * (1.0 - min(hits / all_prompts, 1.0)) if all_prompts else prompts


def _squares(prompts: _Prompts, cached: float, variance: float) -> float:
    """S of prompts of which only number and sums are known: that of equal ones, and what their variance adds."""
    if prompts.count <= 0:
        return 0.0
    mean = prompts.tokens / prompts.count
    spread = max(prompts.count - 1.0, 0.0) * min(variance, mean * mean)
    return prompts.tokens * mean + spread + 2.0 * mean * cached


def _prompt_passes(one: Interval, prompts: _Prompts) -> float:
    """Passes that computed prompts. Where prompts are so long that no pass of output alone is as large, the histogram
    of passes by size counts them; else each prompt has one."""
    sizes = one.steps_by_size
    largest = max(one.before.running or 0.0, one.after.running or 0.0) + one.changes[Total.FIRSTS]
    bound = min((b for b in sizes if b >= largest), default=None)
    whole = sizes.get(float("inf"))
    if bound is None or whole is None or prompts.count <= 0 or prompts.tokens < 2.0 * bound * prompts.count:
        return prompts.count
    return whole - sizes[bound]


def _context(one: Interval) -> float | None:
    """Tokens of context of a running sequence, by the gauges or else by the requests that ended."""
    kv = [(r.kv_tokens, r.running) for r in (one.before, one.after) if r.kv_tokens is not None and r.running]
    running = sum(number for _, number in kv)
    if running:
        return sum(tokens for tokens, _ in kv) / running
    ended, prompt = one.change(Total.LENGTHS), one.change(Total.ENDED_PROMPT)
    if not ended or prompt is None:
        return None
    return (prompt + 0.5 * (one.change(Total.ENDED_OUTPUT) or 0.0)) / ended


def _variance(history: History) -> float:
    """Variance of prompts' lengths in squared tokens, by the histogram of lengths over the whole time; 0: unknown."""
    first, last = history.readings[0], history.readings[-1]
    since = {bound: count - first.length_buckets.get(bound, 0.0) for bound, count in last.length_buckets.items()}
    if any(count < 0 for count in since.values()):
        since = dict(last.length_buckets)  # It restarted: what it counted since then.
    below, low = 0.0, 0.0
    lengths: list[tuple[float, float]] = []
    for bound, count in sorted(since.items()):
        high = bound if bound != float("inf") else 1.5 * low
        lengths.append((0.5 * (low + high), count - below))
        below, low = count, high
    whole = sum(count for _, count in lengths)
    if whole <= 1:
        return 0.0
    mean = sum(length * count for length, count in lengths) / whole
    return sum((length - mean) ** 2 * count for length, count in lengths) / whole
