"""What happened at an engine between two scrapes, and which scrapes cannot be compared.

Counters tell it exactly, however far apart the scrapes are; only the gauges (running sequences, KV in use) are mere
samples at both ends. An interval across a restart, a sleep or a preemption (whose recomputed tokens no counter shows)
is left out, with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from penstock.core.models.fitting_pages import Buckets, Reading, Scrape, Total, read_page

__all__ = ["Dropped", "History", "Interval", "histories", "intervals"]

_NEEDED = (Total.INTERVALS, Total.INTERVAL_S, Total.FIRSTS, Total.PROMPT, Total.FINISHED)
_SLOW = 0.05
"""Share of an interval that answering may take before its length is uncertain."""

_MANY = 4.0
"""Sequences decoding at a time, on average, from which an engine that may have been idle hardly was: with Poisson
arrivals it is for exp(-4), 2 %, of the time."""
_FILLED = 0.95


class Dropped(StrEnum):
    """Why an interval, or a scrape, says nothing."""

    IDLE = "nothing ran"
    RESTARTED = "the engine restarted"
    PREEMPTED = "sequences were preempted"
    ASLEEP = "the engine slept"
    MISSING = "series were missing"
    GARBAGE = "the answer was no metrics page"
    UNCLEAR = "the engine may have stood still in it, and prompts came"
    SHORT = "too few passes"
    OVERLAPPED = "prompts were computed together"
    EARLY = "the prompts were computed before the first scrape"
    MANY = "prompts took more than one pass"
    FLOOR = "prompts too short to take longer than reading the weights"


@dataclass(frozen=True, slots=True)
class Interval:
    """One engine between two scrapes."""

    before: Reading
    after: Reading
    changes: dict[Total, float]

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.after.at_s - self.before.at_s

    @property
    def timed(self) -> bool:
        """Whether its length is certain: a page that took long may show the engine of any moment meanwhile."""
        return (self.before.took_s + self.after.took_s) / 2 <= _SLOW * self.seconds

    @property
    def busy(self) -> bool:
        """Whether the engine made passes all the time: surely where a sequence that ran at the start is still there,
        in all likelihood where so many decoded on average (Little's law) that none at all is rare, and as many passes
        as there were, each as long as tokens waited for one, fill the time."""
        running, tokens = self.before.running or 0.0, self.changes[Total.INTERVALS]
        if running - self.changes[Total.FINISHED] >= 1.0:
            return True
        if not (running and self.after.running and tokens):
            return False
        waited = self.changes[Total.INTERVAL_S]
        filled = self.changes.get(Total.STEPS, 0.0) * waited / tokens
        return waited >= _MANY * self.seconds and filled >= _FILLED * self.seconds

    @property
    def admitted(self) -> float:
        """Sequences that joined the batch."""
        running = (self.after.running or 0.0) - (self.before.running or 0.0)
        return running + self.changes[Total.FINISHED]

    def change(self, total: Total) -> float | None:
        """By how much a total rose; None where the page does not have it."""
        return self.changes.get(total)

    @property
    def steps_by_size(self) -> Buckets:
        """Passes made, cumulative by the tokens they computed."""
        return _difference(self.before.step_buckets, self.after.step_buckets)


@dataclass(frozen=True, slots=True)
class History:
    """One engine over the whole time."""

    engine: str
    """Its worker, and its rank where the worker has several."""
    readings: tuple[Reading, ...]


def histories(scrapes: Iterable[Scrape]) -> tuple[list[History], Counter[Dropped]]:
    """Every engine's readings by time, and how many scrapes could not be read."""
    dropped: Counter[Dropped] = Counter()
    found: dict[tuple[str, str], list[Reading]] = {}
    for scrape in scrapes:
        try:
            pages = read_page(scrape)
        except ValueError:
            dropped[Dropped.GARBAGE] += 1
            continue
        for rank, reading in pages.items():
            found.setdefault((scrape.worker, rank), []).append(reading)
    several = Counter(worker for worker, _ in found)
    return [
        History(f"{worker} engine {rank}" if several[worker] > 1 else worker, tuple(_in_order(readings)))
        for (worker, rank), readings in found.items()
    ], dropped


def intervals(history: History) -> tuple[list[Interval], Counter[Dropped]]:
    """What an engine's readings tell, two by two, and why others tell nothing."""
    kept: list[Interval] = []
    dropped: Counter[Dropped] = Counter()
    for before, after in pairwise(history.readings):
        changes = {t: after.totals[t] - before.totals[t] for t in after.totals.keys() & before.totals.keys()}
        reason = _why_not(before, after, changes)
        if reason is None:
            kept.append(Interval(before, after, changes))
        else:
            dropped[reason] += 1
    return kept, dropped


def missing(history: History) -> list[Total]:
    """Totals without which nothing can be fitted and that no page of this engine has."""
    return [total for total in _NEEDED if not any(total in reading.totals for reading in history.readings)]


def _in_order(readings: list[Reading]) -> list[Reading]:
    """By time, one for each moment."""
    return list({reading.at_s: reading for reading in sorted(readings, key=lambda one: one.at_s)}.values())


def _why_not(before: Reading, after: Reading, changes: Mapping[Total, float]) -> Dropped | None:
    restarted = before.started is not None and after.started is not None and after.started > before.started
    if restarted or any(change < 0 for change in changes.values()):
        return Dropped.RESTARTED
    if any(total not in changes for total in _NEEDED) or None in (before.running, after.running):
        return Dropped.MISSING
    if before.asleep or after.asleep:
        return Dropped.ASLEEP
    if changes.get(Total.PREEMPTED):
        return Dropped.PREEMPTED
    ran = any(changes.get(total) for total in (Total.STEPS, Total.INTERVALS, Total.FIRSTS, Total.FINISHED))
    return None if ran else Dropped.IDLE


def _difference(before: Buckets, after: Buckets) -> Buckets:
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
