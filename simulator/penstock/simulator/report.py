"""The report of a run: what `penstock replay` reports, how it bends with the objectives, its course, and what it took.

In the replay's form, so that both can be laid side by side; what only the twin knows stands under `run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from penstock.core.models.power import Phase
from penstock.core.reports import Report, RequestCounts, Summary, Verdict
from penstock.simulator.figures import Seen, attainment_curve, groups, intervals, quantiles
from penstock.simulator.outcomes import Outcomes

if TYPE_CHECKING:
    from penstock.simulator.scaling import Scaled
    from penstock.simulator.twin import Result
    from penstock.simulator.worker import TwinWorker

__all__ = ["ClassUse", "Resources", "account", "make_report"]

_MOST_LOOKS = 400


@dataclass(frozen=True, slots=True)
class ClassUse:
    """What one accelerator class did."""

    workers: int
    """Every one there ever was."""
    accelerators: int
    gpu_hours: float
    """Accelerators times the hours that they were held, by starting, idle and terminating workers too: what is paid."""
    cost_usd: float
    joules: float
    """Of the accelerators alone, not of their servers."""
    busy_share: float | None
    """Share of the workers' time spent in passes; None for a run of no length."""
    prefill_seconds: float
    """Worker time in passes with prompt tokens."""
    decode_seconds: float
    worker_hours: float = 0.0
    """The hours that workers held accelerators."""


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
    return Resources(_total(classes.values()), classes)


def make_report(result: Result, *, ttft_s: float, tpot_s: float, run: dict[str, Any] | None = None) -> Report:
    """The report in the form of `penstock replay`. `run` gets what was spent (`resources`), attainment over scaled
    objectives, the run's course in stretches of time, and figures by tenant and model where those have names."""
    seen = Seen(result.outcomes)
    facts = {
        **(run or {}),
        "virtual_seconds": result.end_s,
        "events": result.events,
        "engine_steps": result.steps,
        "resources": asdict(result.resources),
        "rates": _rates(seen, result.end_s, ttft_s, tpot_s),
        "quantiles": quantiles(seen),
        "attainment_by_scale": [asdict(point) for point in attainment_curve(seen, ttft_s, tpot_s)],
        "timeline": [asdict(one) for one in intervals(seen, result.timeline, ttft_s, tpot_s)],
        **({} if result.scaling is None else {"scaling": _scaling(result.scaling)}),
        **({"power": [asdict(use) for use in result.power]} if result.power else {}),
        "tenants": {name: asdict(one) for name, one in groups(seen, "tenant", ttft_s, tpot_s).items()},
        "models": {name: asdict(one) for name, one in groups(seen, "model", ttft_s, tpot_s).items()},
    }
    return _summarise(seen, ttft_s, tpot_s, facts)


def _scaling(scaled: Scaled) -> dict[str, Any]:
    """With some hundred looks at most, evenly chosen, the last one among them; every change is told."""
    step = max(1, -(-len(scaled.looks) // _MOST_LOOKS))
    return asdict(replace(scaled, looks=scaled.looks[::-1][::step][::-1]))


def _summarise(seen: Seen, ttft_s: float, tpot_s: float, run: dict[str, Any]) -> Report:
    """What `penstock.core.reports.summarise` says of these outcomes, from their columns."""
    outcomes, done = seen.outcomes, seen.completed
    output, asked, prompt = (outcomes.counts(name) for name in ("output_tokens", "asked_tokens", "prompt_tokens"))
    return Report(
        requests=_counts(outcomes),
        ttft_seconds=seen.summary(seen.ttft),
        tpot_seconds=seen.summary(seen.tpot),
        e2e_seconds=seen.summary(seen.e2e),
        attainment=float(seen.meets(ttft_s, tpot_s).mean()) if len(outcomes) else None,
        prefix_hit_ratio=_prefix_hit_ratio(seen),
        duration_seconds=_duration(seen),
        errors=_errors(outcomes),
        prompt_tokens=int(prompt[done & (prompt > 0)].sum()),
        output_tokens=int(output[done & (output > 0)].sum()),
        short_outputs=int((done & (output >= 0) & (output < asked)).sum()),
        schedule_lag_seconds=Summary.of(outcomes.times("lag_s")),
        objectives={"ttft_seconds": ttft_s, "tpot_seconds": tpot_s},
        run=run,
    )


def _counts(outcomes: Outcomes) -> RequestCounts:
    completed, failed, rejected = (
        int(outcomes.ended(verdict).sum()) for verdict in (Verdict.COMPLETED, Verdict.FAILED, Verdict.REJECTED)
    )
    return RequestCounts(len(outcomes), completed, failed, rejected)


def _errors(outcomes: Outcomes) -> dict[str, int]:
    counted = {kind: int(mask.sum()) for kind, mask in outcomes.labels("error").items() if kind}
    return dict(sorted(counted.items(), key=lambda item: -item[1]))


def _prefix_hit_ratio(seen: Seen) -> float | None:
    prompt, cached = (seen.outcomes.counts(name) for name in ("prompt_tokens", "cached_tokens"))
    told = seen.completed & (prompt > 0) & (cached >= 0)
    total = int(prompt[told].sum())
    return int(cached[told].sum()) / total if total else None


def _duration(seen: Seen) -> float:
    if not len(seen.sent):
        return 0.0
    return float((seen.sent + np.nan_to_num(seen.e2e)).max() - seen.sent.min())


def _rates(seen: Seen, end_s: float, ttft_s: float, tpot_s: float) -> dict[str, float | None]:
    """Per second of the whole run; goodput counts the requests that met both objectives."""
    if not end_s:
        return {"completed_per_s": None, "goodput_per_s": None, "output_tokens_per_s": None}
    output = seen.output_tokens[seen.completed & (seen.output_tokens > 0)]
    return {
        "completed_per_s": float(seen.completed.sum()) / end_s,
        "goodput_per_s": float(seen.meets(ttft_s, tpot_s).sum()) / end_s,
        "output_tokens_per_s": float(output.sum()) / end_s,
    }


def _use(members: Sequence[TwinWorker], end_s: float) -> ClassUse:
    accelerator = members[0].spec.accelerator
    count = sum(member.spec.parallelism.accelerators for member in members)
    held = sum(member.held_seconds(end_s) for member in members)
    hours = sum(member.spec.parallelism.accelerators * member.held_seconds(end_s) for member in members) / 3600.0
    prefill = sum(member.meter.milliseconds[Phase.PREFILL] for member in members) / 1e3
    decode = sum(member.meter.milliseconds[Phase.DECODE] for member in members) / 1e3
    return ClassUse(
        workers=len(members),
        accelerators=count,
        worker_hours=held / 3600.0,
        gpu_hours=hours,
        cost_usd=hours * accelerator.price_per_hour,
        joules=sum(member.meter.joules(member.held_seconds(end_s)) for member in members),
        busy_share=(prefill + decode) / held if held else None,
        prefill_seconds=prefill,
        decode_seconds=decode,
    )


def _total(classes: Iterable[ClassUse]) -> ClassUse:
    parts = list(classes)
    held = sum(part.worker_hours for part in parts) * 3600.0
    prefill, decode = sum(part.prefill_seconds for part in parts), sum(part.decode_seconds for part in parts)
    return ClassUse(
        workers=sum(part.workers for part in parts),
        worker_hours=held / 3600.0,
        accelerators=sum(part.accelerators for part in parts),
        gpu_hours=sum(part.gpu_hours for part in parts),
        cost_usd=sum(part.cost_usd for part in parts),
        joules=sum(part.joules for part in parts),
        busy_share=(prefill + decode) / held if held else None,
        prefill_seconds=prefill,
        decode_seconds=decode,
    )
