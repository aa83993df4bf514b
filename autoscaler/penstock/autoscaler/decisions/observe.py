"""From what the cluster holds and what workers said to the snapshot of one scaling cycle.

The little that a forecast needs between cycles is a value that goes in and comes out: the load of the last minutes by
role, and the last known mix of tokens, so that a quiet minute does not make a model's requests unknown.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.autoscaler.decisions.capacity import WorkerModel
from penstock.autoscaler.decisions.demand import Demand, DemandRules, TokenMix, measure
from penstock.autoscaler.decisions.forecast import ForecastRules, Point, forecast
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observations import WorkerHistory
from penstock.autoscaler.decisions.seen import SeenDeployment, SeenPool, SeenWorker
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, DeploymentView, Key, Pods, PoolView, RoleLoad
from penstock.core.fleet import Signal

_STARTUP_S = 60.0
"""Start-up of a worker while none was ever seen to start."""
_LIMIT = 720
"""Points of load kept for each role."""
_SHARE_POINTS = 120
"""Points of load that the share of prompts for prefill workers is taken from: five to ten minutes."""


@dataclass(frozen=True, slots=True)
class ViewRules:
    """Times of observation. Seconds."""

    demand: DemandRules = field(default_factory=DemandRules)
    forecast: ForecastRules = field(default_factory=ForecastRules)
    give_up_s: float = 120.0
    """Grace for pending pods beyond the class's own provision time."""
    other_writer_s: float = 300.0
    """How long another manager's write of replicas counts."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is kept about one deployment."""

    loads: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    """By role, oldest first."""
    mix: TokenMix | None = None


Memory = Mapping[Key, Remembered]
"""What is kept about all deployments between two cycles."""


@dataclass(frozen=True, slots=True)
class Times:
    """The present, on two clocks."""

    now: float
    """Epoch seconds, by which pods are."""
    clock: float
    """Seconds on the clock of the samples."""


def observe(
    deployments: Sequence[SeenDeployment],
    class_limits: Mapping[str, int],
    memory: Memory,
    history: History,
    times: Times,
    rules: ViewRules,
) -> tuple[ClusterSnapshot, Memory]:
    """The snapshot of one cycle, and what the next one has to be told. A deployment that is gone is forgotten."""
    views, kept = [], {}
    for seen in deployments:
        view, kept[seen.key] = _view(seen, memory.get(seen.key, Remembered()), history, times, rules)
        views.append(view)
    return ClusterSnapshot(times.now, tuple(views), class_limits), kept


def _view(
    seen: SeenDeployment, before: Remembered, history: History, times: Times, rules: ViewRules
) -> tuple[DeploymentView, Remembered]:
    loads, remembered = _loads(seen.pools, before, times, rules)
    view = DeploymentView(
        key=seen.key,
        mode=seen.mode,
        objectives=seen.objectives,
        pools=tuple(_pool(seen.key[0], pool, history, times, rules) for pool in seen.pools),
        ranges=seen.ranges,
        loads=loads,
        mix=remembered.mix,
        prefill_share=_prefill_share(remembered.loads),
        max_accelerators=seen.max_accelerators,
        max_cost=seen.max_cost,
        model=seen.model,
        to_zero_after_s=seen.to_zero_after_s,
        moving=any(len({w.revision for w in pool.workers if not w.terminating}) > 1 for pool in seen.pools),
    )
    return view, remembered


def _pool(namespace: str, pool: SeenPool, history: History, times: Times, rules: ViewRules) -> PoolView:
    histories = _histories(pool.workers, times.now, rules)
    return PoolView(
        name=pool.name,
        pool=pool.pool,
        role=pool.role,
        accelerator=pool.accelerator,
        accelerators=pool.accelerators,
        cost_per_hour=pool.cost_per_hour,
        worker=_with_kv(pool.worker, histories),
        replicas=pool.replicas,
        least=pool.least,
        most=pool.most,
        pods=_pods(pool.workers, times.now),
        running=_inside(measure(histories, times.clock, rules.demand)),
        startup_s=_startup_s(pool),
        give_up_s=pool.provision_s + rules.give_up_s,
        exhausted=history.exhausted((namespace, pool.name), times.now),
        other_writer=pool.other_writer,
    )


def _loads(
    pools: Sequence[SeenPool], before: Remembered, times: Times, rules: ViewRules
) -> tuple[dict[str, RoleLoad], Remembered]:
    startup_s = max((_startup_s(pool) for pool in pools), default=_STARTUP_S)
    loads, past, mixes = {}, dict(before.loads), {}
    for role in sorted({pool.role for pool in pools}):
        members = [worker for pool in pools if pool.role == role for worker in pool.workers]
        demand = measure(_histories(members, times.now, rules), times.clock, rules.demand)
        mixes[role] = demand.mix
        if demand.arrivals.known:
            loads[role], past[role] = _load(past.get(role, ()), demand, times.clock, startup_s, rules)
    return loads, Remembered(past, _joined(mixes, before.mix))


def _load(
    past: tuple[Point, ...], demand: Demand, clock: float, startup_s: float, rules: ViewRules
) -> tuple[RoleLoad, tuple[Point, ...]]:
    arrivals, at = demand.arrivals, clock - demand.arrivals.age
    latest = Point(at, arrivals.value)
    ahead = forecast(past, at, demand.looks, startup_s, rules.forecast)
    load = RoleLoad(ahead.upper, ahead.level, demand.waiting.value, arrivals.age, arrivals.coverage, ahead.sure)
    # A cycle looks twice within an instant; that is one point.
    return load, (*past, latest)[-_LIMIT:] if not past or at - past[-1].at >= 1.0 else past


def _prefill_share(past: Mapping[str, tuple[Point, ...]]) -> float | None:
    """The median share of late. While prefill workers are overrun, the router sends prompts past them: these few looks
    say nothing of how many should go there."""
    prefill, decode = past.get("Prefill", ())[-_SHARE_POINTS:], past.get("Decode", ())[-_SHARE_POINTS:]
    shares = [min(1.0, p.value / d.value) for p, d in zip(reversed(prefill), reversed(decode), strict=False) if d.value]
    return statistics.median(shares) if shares else None


def _histories(workers: Sequence[SeenWorker], now: float, rules: ViewRules) -> list[WorkerHistory]:
    """Of all that ought to answer; one that came up just now may still be asked for the first time."""
    settled = now - rules.demand.fresh_s
    return [
        worker.history
        for worker in workers
        if worker.expected and (worker.history.samples or worker.ready_since is None or worker.ready_since <= settled)
    ]


def _joined(mixes: Mapping[str, TokenMix | None], before: TokenMix | None) -> TokenMix | None:
    """One mix for the deployment: prompts as prefill workers see them, outputs as decode workers do."""
    both, prefill, decode = (mixes.get(role) for role in ("PrefillDecode", "Prefill", "Decode"))
    if both is not None:
        return both
    if prefill is not None and decode is not None:
        return TokenMix(prefill.prompt, prefill.computed, decode.output)
    return before or decode


def _pods(workers: Sequence[SeenWorker], now: float) -> Pods:
    living = [worker for worker in workers if not worker.terminating]
    pending = [worker for worker in living if not worker.scheduled]
    made = [now - w.created for w in living if w.scheduled and not w.ready and w.created is not None]
    return Pods(
        ready=sum(worker.ready for worker in living),
        starting=sum(worker.scheduled and not worker.ready for worker in living),
        pending=len(pending),
        terminating=len(workers) - len(living),
        pending_s=max((now - (worker.created or 0.0) for worker in pending), default=0.0),
        ready_s=max((now - w.ready_since for w in living if w.ready and w.ready_since is not None), default=math.inf),
        starting_s=statistics.fmean(made) if made else None,
    )


def _inside(demand: Demand) -> Signal:
    """Requests running and waiting together."""
    return Signal(demand.running.value + demand.waiting.value, demand.running.age, demand.running.coverage)


def _with_kv(worker: WorkerModel | None, histories: Sequence[WorkerHistory]) -> WorkerModel | None:
    """With the smallest KV cache that an engine reported, where one did."""
    said = (history.samples[-1].sample.kv_capacity_tokens for history in histories if history.samples)
    tokens = min((tokens for tokens in said if tokens), default=None)
    return worker if worker is None or not tokens else WorkerModel(worker.latency, tokens, worker.max_sequences)


def _startup_s(pool: SeenPool) -> float:
    """What was measured wins over what its engine class says, which knows no queue for nodes and no slow image."""
    return _startup(pool.workers) or pool.startup_s or _STARTUP_S


def _startup(workers: Sequence[SeenWorker]) -> float | None:
    """Median of what the ready workers took from their making to being ready."""
    took = [w.ready_since - w.created for w in workers if w.ready_since is not None and w.created is not None]
    return max(0.0, statistics.median(took)) if took else None
