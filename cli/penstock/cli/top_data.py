"""What `penstock top` shows, gathered: deployments, their pools and workers, and what the workers say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from penstock.cli.cluster_reader import ClusterError, ClusterReader
from penstock.core.wire.errors import WireError
from penstock.core.wire.scrape import EngineSample, Total, parse_scrape

Object = dict[str, Any]

_DEPLOYMENT = "penstock.dev/deployment"
_ENGINE_PORT = 8000


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker's pod; `sample` is None where its metrics could not be had, which is not zero."""

    name: str
    uid: str
    pool: str
    role: str
    accelerator: str
    state: str
    sample: EngineSample | None


@dataclass(frozen=True, slots=True)
class Pool:
    """One WorkerPool as its deployment's status has it."""

    name: str
    accelerator: str
    role: str
    ready: int
    wanted: int
    planned: int | None
    """Workers the autoscaler would have; None where it says nothing."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One ModelDeployment, its pools and workers."""

    namespace: str
    name: str
    model: str
    state: str
    objectives: dict[str, str]
    mode: str
    plan: str
    pools: tuple[Pool, ...]
    workers: tuple[Worker, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything at one moment; `at` in seconds of the caller's clock."""

    at: float
    deployments: tuple[Deployment, ...]
    samples: dict[str, EngineSample] = field(default_factory=dict)
    """By the worker pod's uid."""


async def gather(reader: ClusterReader, namespace: str | None, clock: Callable[[], float]) -> Frame:
    """Look at everything once; raises `ClusterError` when the API server cannot be asked."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    deployments, pods = await asyncio.gather(
        reader.objects(f"/apis/penstock.dev/v1alpha1{scope}/modeldeployments"),
        reader.objects(f"/api/v1{scope}/pods", _DEPLOYMENT),
    )
    workers = await asyncio.gather(*(_worker(reader, pod) for pod in pods))
    owned: dict[tuple[str, str], list[Worker]] = {}
    for pod, worker in zip(pods, workers, strict=True):
        meta = pod["metadata"]
        owned.setdefault((meta["namespace"], meta["labels"][_DEPLOYMENT]), []).append(worker)
    seen = (read_deployment(d, owned.get((d["metadata"]["namespace"], d["metadata"]["name"]), ())) for d in deployments)
    ordered = tuple(sorted(seen, key=lambda d: (d.namespace, d.name)))
    return Frame(clock(), ordered, {w.uid: w.sample for w in workers if w.sample is not None})


async def _worker(reader: ClusterReader, pod: Object) -> Worker:
    """A worker and its own numbers; a page that cannot be had leaves them out."""
    meta = pod["metadata"]
    sample = None
    if pod_state(pod) in ("Ready", "Leaving"):
        try:
            page = await reader.page(meta["namespace"], meta["name"], _engine_port(pod), "/metrics")
            sample = parse_scrape(page)
        except (ClusterError, WireError):
            sample = None
    return read_worker(pod, sample)


def read_worker(pod: Object, sample: EngineSample | None) -> Worker:
    """A worker's pod as a row."""
    meta, labels = pod["metadata"], pod["metadata"].get("labels", {})
    return Worker(
        name=meta["name"],
        uid=meta["uid"],
        pool=labels.get("penstock.dev/pool", ""),
        role=labels.get("penstock.dev/role", ""),
        accelerator=labels.get("penstock.dev/accelerator", ""),
        state=pod_state(pod),
        sample=sample,
    )


def pod_state(pod: Object) -> str:
    """One word for how a worker is: Leaving, Ready, the reason it waits or failed, or its phase."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return "Leaving"
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    if conditions.get("Ready") == "True":
        return "Ready"
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason"):
            return str(waiting["reason"])
    return str(status.get("reason") or ("NotReady" if status.get("phase") == "Running" else status.get("phase", "?")))


def _engine_port(pod: Object) -> int:
    for container in pod["spec"].get("containers", ()):
        for port in container.get("ports") or ():
            if container["name"] == "engine" and port.get("name") == "http":
                return int(port["containerPort"])
    return _ENGINE_PORT


def read_deployment(item: Object, workers: Iterable[Worker]) -> Deployment:
    """A ModelDeployment as its status has it now; what the status does not say yet stays empty."""
    spec, status = item["spec"], item.get("status") or {}
    ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), None)
    advised = status.get("recommendation") or {}
    planned = {p["workerPool"]: p.get("replicas", 0) for p in advised.get("pools") or ()}
    plan = status.get("plan") or {}
    return Deployment(
        namespace=item["metadata"]["namespace"],
        name=item["metadata"]["name"],
        model=spec["model"]["name"],
        state="Unknown" if ready is None else "Ready" if ready["status"] == "True" else str(ready.get("reason")),
        objectives={k: str(v) for k, v in (spec.get("objectives") or {}).items()},
        mode=str((spec.get("autoscaling") or {}).get("mode") or ""),
        plan=str(advised.get("reason") or advised.get("message") or plan.get("reason") or ""),
        pools=tuple(_pool(p, planned) for p in status.get("pools") or ()),
        workers=tuple(sorted(workers, key=lambda w: (w.role, w.pool, w.name))),
    )


def _pool(status: Object, planned: dict[str, int]) -> Pool:
    return Pool(
        name=status["name"],
        accelerator=status.get("acceleratorClass", ""),
        role=status.get("role", ""),
        ready=status.get("readyReplicas", 0),
        wanted=status.get("replicas", 0),
        planned=planned.get(status.get("workerPool", "")),
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """Numbers over some workers, since the frame before or, without one, since the engines started.

    Seconds, tokens per second, shares of 1; None is not known.
    """

    running: float | None
    waiting: float | None
    ttft: float | None
    tpot: float | None
    hit_ratio: float | None
    tokens_per_second: float | None


def figures(workers: Iterable[Worker], now: Frame, before: Frame | None) -> Figures:
    """Sum and average what these workers report."""
    pairs = [(w.sample, None if before is None else before.samples.get(w.uid)) for w in workers if w.sample is not None]
    seconds = None if before is None else now.at - before.at
    generated = _grown(pairs, lambda s: s.generation_tokens) if seconds else None
    return Figures(
        running=_sum(s.running for s, _ in pairs),
        waiting=_sum(s.waiting for s, _ in pairs),
        ttft=_mean(pairs, lambda s: s.ttft),
        tpot=_mean(pairs, lambda s: s.tpot),
        hit_ratio=_ratio(_grown(pairs, lambda s: s.prefix_hits), _grown(pairs, lambda s: s.prefix_queries)),
        tokens_per_second=_ratio(generated, seconds),
    )


Pair = tuple[EngineSample, EngineSample | None]


def _sum(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _grown(pairs: list[Pair], number: Callable[[EngineSample], float | None]) -> float | None:
    """How much a counter grew over all workers; one that fell began anew with its engine."""
    grown = []
    for now, before in pairs:
        value = number(now)
        if value is not None:
            earlier = (number(before) if before is not None else None) or 0.0
            grown.append(value - earlier if value >= earlier else value)
    return sum(grown) if grown else None


def _mean(pairs: list[Pair], total: Callable[[EngineSample], Total | None]) -> float | None:
    """Mean of a histogram's new observations."""
    sums = _grown(pairs, lambda s: None if (t := total(s)) is None else t.sum)
    return _ratio(sums, _grown(pairs, lambda s: None if (t := total(s)) is None else t.count))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
