"""Several runs as one statement: the same scenario over seeds, two scenarios over the same seeds, a grid of them.

Runs are independent, so they go to as many processes as there are cores; what comes out does not depend on how many.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from penstock.core.reports import Report
from penstock.simulator.capacity import interval
from penstock.simulator.files import ScenarioForm, Traces
from penstock.simulator.placement import plan_workers
from penstock.simulator.policies import find_twin_policy
from penstock.simulator.report import make_report
from penstock.simulator.scenario import ENDLESS, Scenario, WorkerSpec
from penstock.simulator.twin import simulate
from penstock.simulator.workloads import Workload

__all__ = [
    "METRICS",
    "Metric",
    "Prepared",
    "Spread",
    "figures_of",
    "over_seeds",
    "play_all",
    "prepare",
    "spreads",
    "worker_kinds",
]

Told = Callable[[int, int], None]
"""(done, all), of requests or of runs."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a report by which runs are compared."""

    name: str
    unit: str
    higher_is_better: bool
    read: Callable[[Report], float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds: its mean and the 95 % confidence interval of the mean."""

    mean: float
    low: float | None
    """None where one seed alone says nothing of the spread."""
    high: float | None
    values: tuple[float, ...]
    """In the order of seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        mean, low, high = interval(values)
        known = math.isfinite(low) and math.isfinite(high)
        return cls(mean, low if known else None, high if known else None, tuple(values))


def _use(report: Report, name: str) -> float | None:
    value = report.run.get("resources", {}).get("total", {}).get(name)
    return None if value is None else float(value)


def _rate(report: Report, name: str) -> float | None:
    value = report.run.get("rates", {}).get(name)
    return None if value is None else float(value)


def _completed(report: Report) -> float | None:
    return report.requests.completed / report.requests.total if report.requests.total else None


def _good(report: Report) -> float | None:
    """Requests within both objectives."""
    return None if report.attainment is None else report.attainment * report.requests.total


def _per_thousand(report: Report, amount: float | None) -> float | None:
    good = _good(report)
    return 1000 * amount / good if amount is not None and good else None


METRICS: tuple[Metric, ...] = (
    Metric("attainment", "", True, lambda report: report.attainment),
    Metric("goodput", "req/s", True, lambda report: _rate(report, "goodput_per_s")),
    Metric("completed", "", True, _completed),
    Metric("TTFT mean", "s", False, lambda report: report.ttft_seconds.mean),
    Metric("TTFT p50", "s", False, lambda report: report.ttft_seconds.p50),
    Metric("TTFT p99", "s", False, lambda report: report.ttft_seconds.p99),
    Metric("TPOT mean", "s", False, lambda report: report.tpot_seconds.mean),
    Metric("TPOT p99", "s", False, lambda report: report.tpot_seconds.p99),
    Metric("E2E mean", "s", False, lambda report: report.e2e_seconds.mean),
    Metric("E2E p99", "s", False, lambda report: report.e2e_seconds.p99),
    Metric("prefix hits", "", True, lambda report: report.prefix_hit_ratio),
    Metric("output", "tokens/s", True, lambda report: _rate(report, "output_tokens_per_s")),
    Metric("utilisation", "", True, lambda report: _use(report, "busy_share")),
    Metric("GPU hours", "h", False, lambda report: _use(report, "gpu_hours")),
    Metric("cost", "USD", False, lambda report: _use(report, "cost_usd")),
    Metric("energy", "J", False, lambda report: _use(report, "joules")),
    Metric("cost per 1000 good", "USD", False, lambda report: _per_thousand(report, _use(report, "cost_usd"))),
    Metric("energy per 1000 good", "J", False, lambda report: _per_thousand(report, _use(report, "joules"))),
)
"""What runs are compared by; a good request is one within both objectives."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run before its first event."""

    scenario: Scenario
    workload: Workload
    facts: dict[str, Any]
    """What is run, for the report."""

    def run(self, told: Told | None = None) -> Report:
        """The run's report."""
        result = simulate(self.scenario, self.workload, told)
        facts = {**self.facts, "kv_moved": asdict(result.kv_moved), "continued": result.continued}
        return make_report(result, ttft_s=self.scenario.ttft_s, tpot_s=self.scenario.tpot_s, run=facts)


def prepare(form: ScenarioForm, traces: Traces, seed: int) -> Prepared:
    """A run of this form with this seed.

    Raises `Impossible` when no worker can be, ValueError for a workload of nothing or an unknown policy.
    """
    scenario = form.scenario(seed)
    find_twin_policy(scenario.policy)
    limit = scenario.max_context or scenario.model.max_context
    workload, dropped = form.workload.make_workload(traces.read, limit, seed)
    facts = {
        "scenario": form.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "model": scenario.model.name,
        "policy": scenario.policy,
        "seed": seed,
        "workers": list(worker_kinds(plan_workers(scenario, workload))),
        "planned": workload.total,
        "dropped_over_context": dropped,
        "arrivals_spread": form.workload.spreads_slots(traces.read),
    }
    return Prepared(scenario, workload, facts)


def play_all(
    jobs: Sequence[tuple[ScenarioForm, int]], traces: Traces, told: Told | None = None, processes: int | None = None
) -> tuple[Report, ...]:
    """One report for each (form, seed), in their order, in so many processes (by default one for each core).

    Raises what `prepare` raises, for the first job that does.
    """
    count = min(len(jobs), processes or len(os.sched_getaffinity(0)))
    done: list[Report] = []
    if count <= 1:
        for form, seed in jobs:
            done.append(prepare(form, traces, seed).run())
            _tell(told, len(done), len(jobs))
        return tuple(done)
    # Forked, so that traces that were read already are there without being sent.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(traces,)) as pool:
        for report in pool.map(_play_job, jobs):
            done.append(report)
            _tell(told, len(done), len(jobs))
    return tuple(done)


def figures_of(reports: Sequence[Report]) -> dict[str, tuple[float, ...]]:
    """The values of each metric that every one of these runs has, in the order of runs."""
    found: dict[str, tuple[float, ...]] = {}
    for metric in METRICS:
        values = tuple(value for report in reports if (value := metric.read(report)) is not None)
        if values and len(values) == len(reports):
            found[metric.name] = values
    return found


def spreads(reports: Sequence[Report]) -> dict[str, Spread]:
    """Each metric that every one of these runs has, over the runs."""
    return {name: Spread.of(values) for name, values in figures_of(reports).items()}


def worker_kinds(workers: Sequence[WorkerSpec]) -> tuple[str, ...]:
    """The workers in words, a line for each kind."""
    kinds: dict[str, int] = {}
    for worker in workers:
        capacity = worker.config.num_blocks * worker.config.block_size
        tokens = "endless KV cache" if capacity >= ENDLESS // 2 else f"KV cache of {capacity} tokens"
        role = f"{worker.pool} ({worker.role.api_name}) " if worker.pool else ""
        kind = f"{role}on {worker.accelerator.name} ({worker.parallelism}), {tokens}, profile {worker.profile.source}"
        kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(f"{count} {'worker' if count == 1 else 'workers'} {kind}" for kind, count in kinds.items())


_traces: Traces | None = None  # Of a process of the pool.


def _begin(traces: Traces) -> None:
    global _traces
    _traces = traces


def _play_job(job: tuple[ScenarioForm, int]) -> Report:
    if _traces is None:
        raise RuntimeError("this process was not begun with the traces")
    return prepare(job[0], _traces, job[1]).run()


def _tell(told: Told | None, done: int, total: int) -> None:
    if told is not None:
        told(done, total)


def over_seeds(reports: Sequence[Report]) -> dict[str, Any]:
    """What several seeds of one scenario say together, for the JSON report."""
    return {
        "seeds": [report.run.get("seed") for report in reports],
        "metrics": {name: asdict(spread) for name, spread in spreads(reports).items()},
    }
