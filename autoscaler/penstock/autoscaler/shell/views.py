"""From what the cluster holds and what workers said to the snapshot of one scaling cycle.

Keeps the little that a forecast needs between cycles: the load of the last minutes by role, and the last known mix of
tokens, so that a quiet minute does not make a model's requests unknown.
"""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.api import ModelDeploymentSpec
from penstock.autoscaler.decisions.capacity import Objectives
from penstock.autoscaler.decisions.demand import Demand, DemandRules, TokenMix, measure
from penstock.autoscaler.decisions.forecast import ForecastRules, Point, forecast
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observations import WorkerHistory
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, DeploymentView, Key, Pods, PoolView, RoleLoad
from penstock.autoscaler.shell.cluster import ClusterView
from penstock.autoscaler.shell.models import Classes, pool_facts, read_classes
from penstock.autoscaler.shell.objects import Object, Pool, PoolKey, Worker
from penstock.core.fleet import Signal
from pydantic import ValidationError

_OURS = frozenset({"penstock-autoscaler", "penstock-initial", "penstock-operator"})
_STARTUP_S = 60.0
"""Start-up of a worker while none was ever seen to start."""
_LIMIT = 720
"""Points of load kept for each role."""


@dataclass(frozen=True, slots=True)
class ViewRules:
    """Times of observation. Seconds."""

    demand: DemandRules = field(default_factory=DemandRules)
    forecast: ForecastRules = field(default_factory=ForecastRules)
    give_up_s: float = 120.0
    """Grace for pending pods beyond the class's own provision time."""
    other_writer_s: float = 300.0
    """How long another manager's write of replicas counts."""


@dataclass(slots=True)
class _Memory:
    """What is kept about one deployment."""

    loads: dict[str, deque[Point]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=_LIMIT)))
    mix: TokenMix | None = None


class Views:
    """Makes snapshots; one per process."""

    def __init__(self, rules: ViewRules, samples: Callable[[str], WorkerHistory]) -> None:
        """`samples` gives the history of a worker by `namespace/name`."""
        self._rules, self._samples = rules, samples
        self._memory: dict[Key, _Memory] = defaultdict(_Memory)
        self._foreign: dict[tuple[str, str], tuple[tuple[str, int | None] | None, float]] = {}
        """The last write of another manager to each WorkerPool, and when it was first seen."""

    def snapshot(self, cluster: ClusterView, history: History, now: float, clock: float) -> ClusterSnapshot:
        """The cluster at `now` (epoch seconds), `clock` on the clock of the samples."""
        classes = read_classes(*(cluster.cluster_scoped(plural) for plural in _PLURALS))
        workers: dict[PoolKey, list[Worker]] = defaultdict(list)
        for worker in cluster.workers():
            if not worker.finished:
                workers[worker.pool].append(worker)
        pools: dict[Key, list[Pool]] = defaultdict(list)
        for pool in cluster.pools():
            if pool.desired is not None:
                pools[pool.key.namespace, pool.key.deployment].append(pool)
        views = []
        for item in cluster.deployments():
            key = (item["metadata"]["namespace"], item["metadata"]["name"])
            spec = _spec(item)
            if spec is not None and pools[key]:
                views.append(
                    self._view(key, spec, sorted(pools[key], key=_name), workers, classes, history, (now, clock))
                )
        for gone in self._memory.keys() - {view.key for view in views}:
            del self._memory[gone]
        present = {(pool.key.namespace, pool.name) for group in pools.values() for pool in group}
        self._foreign = {name: seen for name, seen in self._foreign.items() if name in present}
        limits = {
            name: each.spec.capacity.max
            for name, each in classes.accelerators.items()
            if each.spec.capacity.max is not None
        }
        return ClusterSnapshot(now, tuple(views), limits)

    def _view(
        self,
        key: Key,
        spec: ModelDeploymentSpec,
        pools: Sequence[Pool],
        workers: Mapping[PoolKey, Sequence[Worker]],
        classes: Classes,
        history: History,
        times: tuple[float, float],
    ) -> DeploymentView:
        objectives, scaling = spec.objectives, spec.autoscaling
        startup = max((_startup(workers.get(pool.key, ())) or _STARTUP_S for pool in pools), default=_STARTUP_S)
        loads, mix = self._loads(key, pools, workers, startup, times)
        budget = scaling.budget
        return DeploymentView(
            key=key,
            mode=str(scaling.mode),
            objectives=Objectives(objectives.ttft_seconds, objectives.tpot_seconds, objectives.attainment_share),
            pools=tuple(self._pool(spec, pool, workers.get(pool.key, ()), classes, history, times) for pool in pools),
            ranges={pool.name: (pool.replicas.min, pool.replicas.upper) for pool in spec.pools},
            loads=loads,
            mix=mix,
            max_accelerators=budget.max_accelerators if budget else None,
            max_cost=budget.cost if budget else None,
            model=spec.model.name,
            moving=any(len({w.revision for w in workers.get(p.key, ()) if not w.terminating}) > 1 for p in pools),
        )

    def _pool(
        self,
        spec: ModelDeploymentSpec,
        pool: Pool,
        workers: Sequence[Worker],
        classes: Classes,
        history: History,
        times: tuple[float, float],
    ) -> PoolView:
        now, clock = times
        histories = self._histories(workers, now)
        facts = pool_facts(spec, pool, classes, _kv_tokens(histories))
        return PoolView(
            name=pool.name,
            pool=pool.key.pool,
            role=pool.key.role,
            accelerator=pool.key.accelerator,
            accelerators=int(pool.spec.get("acceleratorsPerWorker", 1)),
            cost_per_hour=facts.cost_per_hour,
            worker=facts.worker,
            replicas=pool.desired or 0,
            least=int(pool.spec.get("minReplicas", 0)),
            most=int(pool.spec.get("maxReplicas", 1)),
            pods=_pods(workers, now),
            running=_inside(measure(histories, clock, self._rules.demand)),
            startup_s=_startup(workers) or facts.startup_s or _STARTUP_S,
            give_up_s=facts.provision_s + self._rules.give_up_s,
            exhausted=history.exhausted((pool.key.namespace, pool.name), now),
            other_writer=self._recent_writer(pool, now),
        )

    def _recent_writer(self, pool: Pool, now: float) -> str:
        """Another manager's write counts for a while after it was first seen: the scale subresource keeps no time."""
        writer, name = _other_writer(pool), (pool.key.namespace, pool.name)
        if not writer:
            self._foreign.pop(name, None)
            return ""
        seen, since = self._foreign.get(name, (None, now))
        if seen != (writer, pool.desired):
            since = now
        self._foreign[name] = ((writer, pool.desired), since)
        return writer if now - since <= self._rules.other_writer_s else ""

    def _loads(
        self,
        key: Key,
        pools: Sequence[Pool],
        workers: Mapping[PoolKey, Sequence[Worker]],
        startup_s: float,
        times: tuple[float, float],
    ) -> tuple[dict[str, RoleLoad], TokenMix | None]:
        now, clock = times
        memory, loads, mixes = self._memory[key], {}, {}
        for role in sorted({pool.key.role for pool in pools}):
            members = [worker for pool in pools if pool.key.role == role for worker in workers.get(pool.key, ())]
            demand = measure(self._histories(members, now), clock, self._rules.demand)
            mixes[role] = demand.mix
            if demand.arrivals.known:
                loads[role] = self._load(memory.loads[role], demand, clock, startup_s)
        memory.mix = _joined(mixes, memory.mix)
        return loads, memory.mix

    def _load(self, past: deque[Point], demand: Demand, clock: float, startup_s: float) -> RoleLoad:
        arrivals, at = demand.arrivals, clock - demand.arrivals.age
        latest = Point(at, arrivals.value)
        spans = (demand.span_s, demand.recent_span_s)
        ahead = forecast(list(past), latest, demand.recent.value, spans, startup_s, self._rules.forecast)
        if not past or at - past[-1].at >= 1.0:
            past.append(latest)
        return RoleLoad(ahead.upper, ahead.level, demand.waiting.value, arrivals.age, arrivals.coverage)

    def _histories(self, workers: Sequence[Worker], now: float) -> list[WorkerHistory]:
        """Of all that ought to answer; one that came up just now may still be asked for the first time."""
        histories = (
            (worker, self._samples(f"{worker.namespace}/{worker.name}")) for worker in workers if worker.expected
        )
        settled = now - self._rules.demand.fresh_s
        return [found for worker, found in histories if found.samples or (worker.ready_since or 0.0) <= settled]


_PLURALS = ("acceleratorclasses", "engineclasses", "performanceprofiles")


def _name(pool: Pool) -> str:
    return pool.name


def _spec(item: Object) -> ModelDeploymentSpec | None:
    try:
        return ModelDeploymentSpec.read(item.get("spec") or {})
    except ValidationError:
        return None


def _joined(mixes: Mapping[str, TokenMix | None], before: TokenMix | None) -> TokenMix | None:
    """One mix for the deployment: prompts as prefill workers see them, outputs as decode workers do."""
    both, prefill, decode = (mixes.get(role) for role in ("PrefillDecode", "Prefill", "Decode"))
    if both is not None:
        return both
    if prefill is not None and decode is not None:
        return TokenMix(prefill.prompt, prefill.computed, decode.output)
    return before or decode


def _pods(workers: Sequence[Worker], now: float) -> Pods:
    living = [worker for worker in workers if not worker.terminating]
    pending = [worker for worker in living if not worker.scheduled]
    return Pods(
        ready=sum(worker.ready for worker in living),
        starting=sum(worker.scheduled and not worker.ready for worker in living),
        pending=len(pending),
        terminating=len(workers) - len(living),
        pending_s=max((now - worker.created for worker in pending), default=0.0),
        ready_s=max((now - w.ready_since for w in living if w.ready and w.ready_since is not None), default=math.inf),
    )


def _inside(demand: Demand) -> Signal:
    """Requests running and waiting together."""
    return Signal(demand.running.value + demand.waiting.value, demand.running.age, demand.running.coverage)


def _kv_tokens(histories: Sequence[WorkerHistory]) -> int | None:
    """The smallest KV cache that an engine reported."""
    said = (history.samples[-1].sample.kv_capacity_tokens for history in histories if history.samples)
    return min((tokens for tokens in said if tokens), default=None)


def _startup(workers: Sequence[Worker]) -> float | None:
    """Median of what the ready workers took from their making to being ready."""
    took = [w.ready_since - w.created for w in workers if w.ready_since is not None and w.created > 0]
    return max(0.0, statistics.median(took)) if took else None


def _other_writer(pool: Pool) -> str:
    """The manager that changed `replicas` last, where it is none of ours: a change takes the field from all others."""
    for entry in pool.managed:
        owns = "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        if owns and entry.get("manager") not in _OURS:
            return str(entry.get("manager", ""))
    return ""
