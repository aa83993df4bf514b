"""The report of a run: what `penstock replay` reports, and what the cluster spent on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from penstock.core.models.power import Phase
from penstock.core.reports import Report, summarise

if TYPE_CHECKING:
    from penstock.simulator.twin import Result
    from penstock.simulator.worker import TwinWorker

__all__ = ["ClassUse", "Resources", "account", "make_report"]


@dataclass(frozen=True, slots=True)
class ClassUse:
    """What one accelerator class did."""

    workers: int
    accelerators: int
    gpu_hours: float
    """Accelerators times hours, idle ones included: what is paid for."""
    cost_usd: float
    joules: float
    """Of the accelerators alone, not of their servers."""
    busy_share: float | None
    """Share of the workers' time spent in passes; None for a run of no length."""
    prefill_seconds: float
    """Worker time in passes with prompt tokens."""
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cluster spent, all of it and by accelerator class."""

    total: ClassUse
    classes: dict[str, ClassUse]


def account(workers: Sequence[TwinWorker], end_s: float) -> Resources:
    """What these workers spent from 0 s to `end_s`."""
    groups: dict[str, list[TwinWorker]] = {}
    for worker in workers:
        groups.setdefault(worker.spec.accelerator.name, []).append(worker)
    classes = {name: _use(members, end_s) for name, members in groups.items()}
    return Resources(_total(classes.values(), end_s), classes)


def make_report(result: Result, *, ttft_s: float, tpot_s: float, run: dict[str, Any] | None = None) -> Report:
    """The report in the form of `penstock replay`; `run.resources` holds what was spent."""
    facts = {
        **(run or {}),
        "virtual_seconds": result.end_s,
        "events": result.events,
        "engine_steps": result.steps,
        "resources": asdict(result.resources),
    }
    return summarise(result.outcomes, ttft_objective_s=ttft_s, tpot_objective_s=tpot_s, run=facts)


def _use(members: Sequence[TwinWorker], end_s: float) -> ClassUse:
    accelerator = members[0].spec.accelerator
    count = sum(member.spec.parallelism.accelerators for member in members)
    hours = count * end_s / 3600.0
    prefill = sum(member.meter.milliseconds[Phase.PREFILL] for member in members) / 1e3
    decode = sum(member.meter.milliseconds[Phase.DECODE] for member in members) / 1e3
    return ClassUse(
        workers=len(members),
        accelerators=count,
        gpu_hours=hours,
        cost_usd=hours * accelerator.price_per_hour,
        joules=sum(member.meter.joules(end_s) for member in members),
        busy_share=(prefill + decode) / (len(members) * end_s) if end_s else None,
        prefill_seconds=prefill,
        decode_seconds=decode,
    )


def _total(classes: Iterable[ClassUse], end_s: float) -> ClassUse:
    parts = list(classes)
    workers = sum(part.workers for part in parts)
    prefill, decode = sum(part.prefill_seconds for part in parts), sum(part.decode_seconds for part in parts)
    return ClassUse(
        workers=workers,
        accelerators=sum(part.accelerators for part in parts),
        gpu_hours=sum(part.gpu_hours for part in parts),
        cost_usd=sum(part.cost_usd for part in parts),
        joules=sum(part.joules for part in parts),
        busy_share=(prefill + decode) / (workers * end_s) if end_s else None,
        prefill_seconds=prefill,
        decode_seconds=decode,
    )
