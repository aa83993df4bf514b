"""From the objects of the API server, and the scraped samples, to what a scaling cycle is told of the cluster.

Only reading is done here; `decisions.observe` makes the snapshot. What must be kept between cycles is kept here: its
memory, and when another manager's write of replicas was first seen.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from penstock.api import ModelDeploymentSpec
from penstock.autoscaler.decisions.capacity import Objectives
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observations import WorkerHistory
from penstock.autoscaler.decisions.observe import Memory, Times, ViewRules, observe
from penstock.autoscaler.decisions.seen import SeenDeployment, SeenPool, SeenWorker
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, Key
from penstock.autoscaler.shell.cluster import ClusterView
from penstock.autoscaler.shell.models import Classes, pool_facts, read_classes
from penstock.autoscaler.shell.objects import Object, Pool, PoolKey, Worker
from pydantic import ValidationError

__all__ = ["ViewRules", "Views"]

_OURS = frozenset({"penstock-autoscaler", "penstock-initial", "penstock-operator"})
_PLURALS = ("acceleratorclasses", "engineclasses", "performanceprofiles")


class Views:
    """Makes snapshots; one per process."""

    def __init__(self, rules: ViewRules, samples: Callable[[str], WorkerHistory]) -> None:
        """`samples` gives the history of a worker by `namespace/name`."""
        self._rules, self._samples = rules, samples
        self._memory: Memory = {}
        self._foreign: dict[tuple[str, str], tuple[tuple[str, int | None] | None, float]] = {}
        """The last write of another manager to each WorkerPool, and when it was first seen."""

    def snapshot(self, cluster: ClusterView, history: History, now: float, clock: float) -> ClusterSnapshot:
        """The cluster at `now` (epoch seconds), `clock` on the clock of the samples."""
        classes = read_classes(*(cluster.cluster_scoped(plural) for plural in _PLURALS))
        limits = {
            name: each.spec.capacity.max
            for name, each in classes.accelerators.items()
            if each.spec.capacity.max is not None
        }
        seen = self._deployments(cluster, classes, now)
        snapshot, self._memory = observe(seen, limits, self._memory, history, Times(now, clock), self._rules)
        return snapshot

    def _deployments(self, cluster: ClusterView, classes: Classes, now: float) -> list[SeenDeployment]:
        workers: dict[PoolKey, list[Worker]] = defaultdict(list)
        for worker in cluster.workers():
            if not worker.finished:
                workers[worker.pool].append(worker)
        pools: dict[Key, list[Pool]] = defaultdict(list)
        for pool in cluster.pools():
            if pool.desired is not None:
                pools[pool.key.namespace, pool.key.deployment].append(pool)
        present = {(pool.key.namespace, pool.name) for group in pools.values() for pool in group}
        self._foreign = {name: seen for name, seen in self._foreign.items() if name in present}
        found = []
        for item in cluster.deployments():
            key = (item["metadata"]["namespace"], item["metadata"]["name"])
            spec = _spec(item)
            if spec is not None and pools[key]:
                members = [self._pool(spec, p, workers.get(p.key, ()), classes, now) for p in pools[key]]
                found.append(_deployment(key, spec, members))
        return found

    def _pool(
        self, spec: ModelDeploymentSpec, pool: Pool, workers: Sequence[Worker], classes: Classes, now: float
    ) -> SeenPool:
        facts = pool_facts(spec, pool, classes)
        return SeenPool(
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
            workers=tuple(self._worker(worker) for worker in workers),
            startup_s=facts.startup_s or None,
            provision_s=facts.provision_s,
            other_writer=self._recent_writer(pool, now),
        )

    def _worker(self, worker: Worker) -> SeenWorker:
        return SeenWorker(
            history=self._samples(f"{worker.namespace}/{worker.name}"),
            scheduled=worker.scheduled,
            started=worker.started,
            ready=worker.ready,
            terminating=worker.terminating,
            created=worker.created if worker.created > 0 else None,
            ready_since=worker.ready_since,
            revision=worker.revision,
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


def _deployment(key: Key, spec: ModelDeploymentSpec, pools: Sequence[SeenPool]) -> SeenDeployment:
    objectives, budget = spec.objectives, spec.autoscaling.budget
    return SeenDeployment(
        key=key,
        mode=str(spec.autoscaling.mode),
        objectives=Objectives(objectives.ttft_seconds, objectives.tpot_seconds, objectives.attainment_share),
        pools=tuple(sorted(pools, key=lambda pool: pool.name)),
        ranges=_ranges(spec),
        max_accelerators=budget.max_accelerators if budget else None,
        max_cost=budget.cost if budget else None,
        model=spec.model.name,
        to_zero_after_s=spec.autoscaling.scale_to_zero_seconds,
    )


def _ranges(spec: ModelDeploymentSpec) -> Mapping[str, tuple[int, int]]:
    return {pool.name: (pool.replicas.min, pool.replicas.upper) for pool in spec.pools}


def _spec(item: Object) -> ModelDeploymentSpec | None:
    try:
        return ModelDeploymentSpec.read(item.get("spec") or {})
    except ValidationError:
        return None


def _other_writer(pool: Pool) -> str:
    """The manager that changed `replicas` last, where it is none of ours: a change takes the field from all others."""
    for entry in pool.managed:
        owns = "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        if owns and entry.get("manager") not in _OURS:
            return str(entry.get("manager", ""))
    return ""
