"""Showing a search: how far it is, then the table of the best plans and why the second one lost."""

from __future__ import annotations

import math
import time
from typing import Any

from penstock.simulator.planning import Found, Goal, Plan, Space, Standing, Trial, percent
from rich.console import Console
from rich.status import Status
from rich.table import Table

__all__ = ["PlanProgress", "as_json", "print_plans"]

_PLAIN_EVERY_S = 10.0
_SHOWN = 5


class PlanProgress:
    """A line that changes on a terminal, a plain line now and then elsewhere; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = console.status("plan: reading") if console.is_terminal else None
        self._last = time.monotonic()

    def __enter__(self) -> PlanProgress:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Say what is being done."""
        text = f"plan: {what} {done}/{total}" if total else f"plan: {what}"
        if self._status:
            self._status.update(text)
        elif time.monotonic() - self._last > _PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_plans(console: Console, space: Space, goal: Goal, found: Found, why: str) -> None:
    """The best plans, and why the first is first."""
    quantile = percent(space.objectives.attainment)
    table = Table(title=f"plans by {goal.rank}", title_justify="left")
    columns = ("", "plan", "GPUs", "req/s", f"TTFT {quantile}", f"TPOT {quantile}", "USD/h", "J/request")
    for column in columns:
        table.add_column(column, justify="left" if column == "plan" else "right", overflow="fold")
    for place, standing in enumerate(found.ranking[:_SHOWN], start=1):
        table.add_row(str(place), *_cells(standing))
    console.print(table)
    counts = found.counts
    console.print(
        f"{counts.enumerated} plans: {counts.dropped} dropped by bound, {counts.tried} tried in {counts.runs} runs of "
        f"{len(space.sample)} requests, {counts.unseen} that promised less not looked at",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if why:
        console.print(why, highlight=False, markup=False, soft_wrap=True)


def as_json(space: Space, goal: Goal, found: Found, why: str, run: dict[str, Any]) -> dict[str, Any]:
    """The search for a program. `why` is why the second best plan lost or, where the ranking is empty, why none holds;
    then `nearest` is the plan that came nearest to holding, where any was tried."""
    return {
        "version": 1,
        "run": run,
        "rank": str(goal.rank),
        "rate": goal.rate,
        "holds": bool(found.ranking),
        "ranking": [_standing(standing) for standing in found.ranking],
        "why_second": why if found.ranking else "",
        "why_nothing": "" if found.ranking else why,
        "nearest": None if found.nearest is None else _tried(space, *found.nearest),
        "counts": {name: getattr(found.counts, name) for name in ("enumerated", "dropped", "tried", "unseen", "runs")},
    }


def _standing(standing: Standing) -> dict[str, Any]:
    return {**_plan(standing.plan, standing.trial, standing.cost_per_hour), "rate": standing.rate}


def _tried(space: Space, plan: Plan, trial: Trial) -> dict[str, Any]:
    return {**_plan(plan, trial, plan.cost_per_hour(space.prices)), "rate": trial.rate}


def _plan(plan: Plan, trial: Trial, cost_per_hour: float) -> dict[str, Any]:
    return {
        "plan": str(plan),
        "pools": [
            {
                "role": pool.cell.role.api_name,
                "accelerator": pool.cell.accelerator,
                "parallelism": pool.cell.parallelism.to_dict(),
                "replicas": pool.replicas,
                "max_num_batched_tokens": pool.cell.budget,
            }
            for pool in plan.pools
        ],
        "accelerators": plan.accelerators,
        "attainment": trial.attainment,
        "ttft_seconds": trial.ttft_s if math.isfinite(trial.ttft_s) else None,
        "tpot_seconds": trial.tpot_s if math.isfinite(trial.tpot_s) else None,
        "cost_per_hour": cost_per_hour,
        "joules_per_request": trial.joules,
    }


def _cells(standing: Standing) -> list[str]:
    trial = standing.trial
    return [
        str(standing.plan),
        str(standing.plan.accelerators),
        f"{standing.rate:.3g}",
        f"{trial.ttft_s * 1e3:.0f} ms",
        f"{trial.tpot_s * 1e3:.1f} ms",
        f"{standing.cost_per_hour:.2f}",
        f"{trial.joules:.0f}",
    ]
