"""The leaderboard: who did how well, relative to the same baseline on the same arrivals.

A policy's figure in a run is its requests within both objectives over LeastLoaded's with the same seed; a planner's is
the same for each dollar, over TargetTracking's, as any number of workers would meet any objective. The score is the
geometric mean over scenarios, taken seed by seed; its interval is over seeds. Geometric, because these are ratios: an
arithmetic mean would be that of the one scenario where the baseline has next to nothing. Good requests are counted
rather than divided by the run's length, because arrivals are the same and a run's length is that of its last straggler.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from penstock.autoscaler.decisions.planners import DEFAULT_PLANNER
from penstock.simulator.lab.contest import Entry, Kind, Run
from penstock.simulator.study import Spread

__all__ = ["BASELINES", "Board", "Row", "make_boards"]

BASELINES = {Kind.POLICY: "LeastLoaded", Kind.PLANNER: DEFAULT_PLANNER}


@dataclass(frozen=True, slots=True)
class Row:
    """One entry's standing."""

    entry: Entry
    score: Spread
    """Over seeds: the geometric mean over scenarios, relative to the baseline (1 is as good)."""
    scenes: dict[str, Spread]
    """The same for each scenario."""
    attainment: float
    """Requests within both objectives over all requests, of all runs together."""
    mistakes: int
    first_mistake: str
    fickle: bool
    """Whether it did not do the same again when it was asked the same again."""


@dataclass(frozen=True, slots=True)
class Board:
    """All entries of one kind, best first."""

    kind: Kind
    baseline: str
    rows: tuple[Row, ...]
    scenes: tuple[str, ...]
    """Those that count."""
    left_out: tuple[str, ...]
    """Scenarios in which the baseline came to nothing, so that nobody can be measured by it."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(row), "entry": row.entry.name, "own": row.entry.own} for row in self.rows]
        return {
            "kind": str(self.kind),
            "baseline": self.baseline,
            "scenarios": list(self.scenes),
            "left_out": list(self.left_out),
            "rows": rows,
        }


def make_boards(runs: Sequence[Run], fickle: Collection[str] = ()) -> tuple[Board, ...]:
    """A board for each kind that was played. Raises ValueError where no scenario can tell entries apart."""
    return tuple(
        _board(kind, mine, fickle) for kind in Kind if (mine := [run for run in runs if run.entry.kind is kind])
    )


def _board(kind: Kind, runs: Sequence[Run], fickle: Collection[str]) -> Board:
    found = {(run.entry, run.scene, run.seed): run for run in runs}
    base = {(run.scene, run.seed): _figure(run) for run in runs if run.entry.name == BASELINES[kind]}
    everywhere = list(dict.fromkeys(run.scene for run in runs))
    # A scenario's own seed is its own affair: seeds are told apart by their order.
    seeds = {scene: sorted({seed for name, seed in base if name == scene}) for scene in everywhere}
    count = [scene for scene in everywhere if all(base[scene, seed] > 0 for seed in seeds[scene])]
    if not count:
        raise ValueError(f"{BASELINES[kind]} meets the objectives in no scenario, so nothing can be measured by it")
    rows = []
    for entry in dict.fromkeys(run.entry for run in runs):
        ratios = {
            scene: [_figure(found[entry, scene, seed]) / base[scene, seed] for seed in seeds[scene]] for scene in count
        }
        means = [math.prod(values) ** (1 / len(count)) for values in zip(*ratios.values(), strict=True)]
        spreads = {scene: Spread.of(values) for scene, values in ratios.items()}
        rows.append(_row(entry, Spread.of(means), spreads, [run for run in runs if run.entry == entry], fickle))
    rows.sort(key=lambda row: (-row.score.mean, row.entry.name))
    left_out = tuple(scene for scene in everywhere if scene not in count)
    return Board(kind, BASELINES[kind], tuple(rows), tuple(count), left_out)


def _row(entry: Entry, score: Spread, scenes: dict[str, Spread], runs: list[Run], fickle: Collection[str]) -> Row:
    requests = sum(run.requests for run in runs)
    return Row(
        entry,
        score,
        scenes,
        sum(run.good for run in runs) / requests if requests else 0.0,
        sum(run.mistakes for run in runs),
        next((run.first_mistake for run in runs if run.first_mistake), ""),
        entry.own and entry.name in fickle,
    )


def _figure(run: Run) -> float:
    if run.entry.kind is Kind.POLICY:
        return run.good
    return run.good / run.cost if run.cost > 0 else 0.0
