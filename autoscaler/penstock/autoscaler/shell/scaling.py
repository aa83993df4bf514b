"""The scaling cycle: observe, forecast, plan, guard, act, record.

Nothing here must survive: what was decided stands in the WorkerPools, what is being decided in their status. A process
that is killed anywhere leaves at most some pools moved and others not, which the next cycle sees.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

from penstock.autoscaler.decisions.cycle import CycleRules, Decided, Looked, conclude, decide, in_order
from penstock.autoscaler.decisions.guard import Guarded
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.records import cycle_record
from penstock.autoscaler.decisions.report import deletion_costs, recommendation, same_news, scaled
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, Key, PoolView
from penstock.autoscaler.shell.cluster import ClusterView
from penstock.autoscaler.shell.kube import Json, Kube, KubeError
from penstock.autoscaler.shell.leader import Leader
from penstock.autoscaler.shell.objects import DELETION_COST, Worker
from penstock.autoscaler.shell.scraper import Scraper
from penstock.autoscaler.shell.views import Views
from penstock.core.records import Ring, write_record

log = logging.getLogger("penstock.autoscaler.scaling")

_TELL_AGAIN_S = 60.0
"""Status is written anew for its sentences alone only after this long."""


class Scaling:
    """Runs cycles; `decided` is the last one's outcome, for the metrics."""

    def __init__(
        self,
        cluster: ClusterView,
        scraper: Scraper,
        views: Views,
        kube: Kube,
        leader: Leader | None,
        rules: CycleRules,
        identity: str,
        ring: Ring | None = None,
    ) -> None:
        """Without a `leader` this process is alone and always may write; cycles go on record in a `ring`."""
        self._cluster, self._scraper, self._views, self._kube = cluster, scraper, views, kube
        self._leader, self._identity = leader, identity
        self._rules, self._ring = rules, ring
        self._history = History(since=time.time())
        self._told: dict[Key, tuple[float, Json]] = {}
        self.decided: tuple[Decided, ...] = ()
        self.decisions: Counter[str] = Counter()
        """Changes made and refusals, by reason."""
        self.failures = 0

    async def run(self, interval_s: float) -> None:
        """Cycle until cancelled; a cycle that fails is logged, and the next one looks anew."""
        while True:
            if self._cluster.listed:
                try:
                    await self.cycle()
                except (KubeError, ArithmeticError, LookupError, ValueError):
                    self.failures += 1
                    log.exception("a scaling cycle failed; the next one looks anew")
            await asyncio.sleep(interval_s)

    async def cycle(self) -> None:
        """Once around."""
        looked = Looked(self._look(), self._look(), self._history)
        outcome = decide(looked, self._rules)
        self.decided = outcome.joined(looked.fresh)
        if self._may_write():
            done = [await self._act(each) for each in self.decided]
            for each in self.decided:
                await self._tell(each)
        else:
            done = [each.nothing_done() for each in self.decided]
        self._history = conclude(looked, outcome, done, self._rules)
        if self._ring is not None:
            self._ring.append(write_record(cycle_record(looked, self._rules, outcome, done, self._history)))
        self._told = {key: told for key, told in self._told.items() if looked.fresh.find(key) is not None}

    def _look(self) -> ClusterSnapshot:
        return self._views.snapshot(self._cluster, self._history, time.time(), asyncio.get_running_loop().time())

    def _may_write(self) -> bool:
        return self._leader is None or self._leader.holds()

    async def _act(self, decided: Decided) -> Guarded:
        """Write what changed, scale-ins first; returns what was really done."""
        for refusal in decided.guarded.refusals:
            self.decisions[str(refusal.refused)] += 1
        if decided.view.mode != "Auto":
            return decided.nothing_done()
        done = {pool.name: pool.replicas for pool in decided.view.pools}
        for name in in_order(decided):
            wanted = decided.guarded.moves[name]
            if await self._scale(decided, decided.view.pool(name), wanted):
                done[name] = wanted
        return replace(decided.guarded, moves=done)

    async def _scale(self, decided: Decided, pool: PoolView, replicas: int) -> bool:
        stored = self._cluster.pool(decided.view.key[0], pool.name)
        if stored is None or stored.desired != pool.replicas or not self._may_write():
            return False  # It changed since it was looked at.
        try:
            if replicas < pool.replicas:
                await self._hint(decided.view.key[0], pool)
            await self._kube.scale(decided.view.key[0], pool.name, replicas, stored.version)
        except KubeError as error:
            self.failures += error.code != 409
            log.log(
                logging.INFO if error.code == 409 else logging.WARNING,
                "a scale was not written; the next cycle looks anew",
                extra={"pool": pool.name, "replicas": replicas, "error": str(error)},
            )
            return False
        self.decisions["ScaledOut" if replicas > pool.replicas else "ScaledIn"] += 1
        message = scaled(pool, replicas, decided.plan, decided.guarded)
        log.info("scaled", extra={"pool": pool.name, "before": pool.replicas, "after": replicas, "why": message})
        await self._event(decided.view.key, "Scaled", message)
        return True

    async def _hint(self, namespace: str, pool: PoolView) -> None:
        """Tell the ReplicaSet whom to delete first: the workers with the least to do. Drain alone must be right."""
        workers = [w for w in self._cluster.workers() if _of(w, namespace, pool) and not w.terminating]
        costs = deletion_costs({worker.name: self._busy(worker) for worker in workers})
        for worker in workers:
            if worker.deletion_cost != str(costs[worker.name]):
                try:
                    await self._kube.annotate_pod(namespace, worker.name, DELETION_COST, str(costs[worker.name]))
                except KubeError as error:
                    log.info("a deletion cost was not written", extra={"worker": worker.name, "error": str(error)})

    def _busy(self, worker: Worker) -> float:
        """Requests on a worker as last seen; one that does not answer is thought to be busy."""
        samples = self._scraper.history(f"{worker.namespace}/{worker.name}").samples
        if not samples:
            return 0.0 if not worker.ready else 1_000_000.0
        return (samples[-1].sample.running or 0.0) + (samples[-1].sample.waiting or 0.0)

    async def _tell(self, decided: Decided) -> None:
        """Write status where there is news, and the sentences now and then."""
        key, now = decided.view.key, time.time()
        said = recommendation(decided.view, decided.plan, decided.guarded)
        at, before = self._told.get(key) or (0.0, self._stored_recommendation(key))
        if decided.view.mode == "Off":
            said = {}
        if said == before or (same_news(before, said) and now - at < _TELL_AGAIN_S):
            return
        try:
            await self._kube.apply_status(*key, {"recommendation": said} if said else {})
        except KubeError as error:
            self.failures += 1
            log.warning("status was not written", extra={"deployment": "/".join(key), "error": str(error)})
            return
        self._told[key] = (now, said)

    def _stored_recommendation(self, key: Key) -> Json:
        """What a process before this one said last."""
        stored = self._cluster.deployment(*key) or {}
        return dict((stored.get("status") or {}).get("recommendation") or {})

    async def _event(self, key: Key, reason: str, message: str) -> None:
        stored = self._cluster.deployment(*key)
        uid = (stored or {}).get("metadata", {}).get("uid", "")
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        tag = hashlib.sha256(f"{reason}\0{message}\0{now}".encode()).hexdigest()[:16]
        regarding = {"apiVersion": "penstock.dev/v1alpha1", "kind": "ModelDeployment", "uid": uid}
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{key[1]}.{tag}", "namespace": key[0]},
            "eventTime": now,
            "type": "Normal",
            "reason": reason,
            "action": "Scale",
            "note": message,
            "regarding": {**regarding, "namespace": key[0], "name": key[1]},
            "reportingController": "penstock-autoscaler",
            "reportingInstance": self._identity[:128],
        }
        try:
            await self._kube.create_event(key[0], body)
        except KubeError as error:
            log.warning("an event was not posted", extra={"error": str(error), "reason": reason})


def _of(worker: Worker, namespace: str, pool: PoolView) -> bool:
    key = worker.pool
    return (key.namespace, key.pool, key.accelerator) == (namespace, pool.pool, pool.accelerator) and pool.name == (
        f"{key.deployment}-{key.pool}-{key.accelerator}"
    )
