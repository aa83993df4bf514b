"""An API server, a ReplicaSet controller and a garbage collector in memory: enough of Kubernetes for the pure core.

It refuses what the real one refuses (replicas outside the bounds, a scale of what does not exist, an apply that
conflicts), so that a wrong order of writes fails here too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from penstock.api import AcceleratorClass, EngineClass, PerformanceProfile
from penstock.operator.decisions.desired import desired
from penstock.operator.decisions.naming import digest
from penstock.operator.decisions.observed import Cluster, Observed
from penstock.operator.decisions.reading import read_deployment, read_node, read_pod, read_pool, read_replica_set
from penstock.operator.decisions.writes import Apply, Delete, Desired, Ref, Scale, Write

NOW = 1_800_000_000.0


class Refused(Exception):
    """The API server says no."""


class Interrupted(Exception):
    """The operator died between two writes."""


@dataclass
class World:
    """One namespace of a cluster. Time moves only by `tick`."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    now: float = NOW
    writes: int = 0
    die_at: int | None = None
    """Number of the write before which the operator dies."""
    log: list[Write] = field(default_factory=list)
    refuse_pods: str = ""
    """What a dry run of any pod is answered with; empty: it passes."""
    refusals: dict[str, str] = field(default_factory=dict)
    drained: bool = False
    sidecar_image: str = ""
    more_policies: frozenset[str] = frozenset()
    services: dict[str, str] = field(default_factory=dict)
    """What the operator remembers of the Services it applied."""
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # -- what users and other controllers do

    def create(self, kind: str, name: str, body: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
        number = next(self._ids)
        group = {"Pod": "v1", "Node": "v1", "ConfigMap": "v1", "Service": "v1", "ReplicaSet": "apps/v1"}
        stored = {
            "apiVersion": group.get(kind, "penstock.dev/v1alpha1"),
            "kind": kind,
            **copy.deepcopy(dict(body)),
            "metadata": {
                "name": name,
                "namespace": "chat",
                "uid": f"uid-{number}",
                "generation": 1,
                "resourceVersion": str(number),
                "creationTimestamp": f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}Z",
                **metadata,
            },
        }
        self.objects[kind, name] = stored
        return stored

    def engine(self, name: str = "simulated", **spec: Any) -> None:
        base = {"adapter": "Simulated", "default": True, "image": "penstock/simulated-engine:1"}
        self.create("EngineClass", name, {"spec": base | spec})

    def accelerator(self, name: str = "a100-80g", **spec: Any) -> None:
        base = {
            "resourceName": "nvidia.com/gpu",
            "nodeSelector": {"penstock.dev/accelerator": name},
            "memory": "80Gi",
            "memoryBandwidth": "2039G",
            "flops": {"bf16": "312T"},
            "pricePerHour": "2.50",
        }
        merged = {key: value for key, value in (base | spec).items() if value is not None}
        self.create("AcceleratorClass", name, {"spec": merged})

    def node(self, name: str, accelerator: str = "a100-80g", gpus: int = 8, ready: bool = True) -> None:
        status = {
            "allocatable": {"nvidia.com/gpu": str(gpus), "cpu": "8"},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        self.create("Node", name, {"status": status}, labels={"penstock.dev/accelerator": accelerator})

    def deploy(self, name: str = "llama", **spec: Any) -> dict[str, Any]:
        base = {
            "model": {"name": "meta-llama/Llama-3.1-8B-Instruct"},
            "objectives": {"ttft": "1s", "tpot": "50ms"},
            "pools": [{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 2, "max": 8}}],
        }
        return self.create("ModelDeployment", name, {"spec": base | spec})

    def change(self, name: str = "llama", **spec: Any) -> None:
        stored = self.objects["ModelDeployment", name]
        stored["spec"] = stored["spec"] | spec
        stored["metadata"]["generation"] += 1

    def scale_by_user(self, pool: str, replicas: int) -> None:
        self._scale(self.objects["WorkerPool", pool], replicas)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [stored for (stored_kind, _), stored in sorted(self.objects.items()) if stored_kind == kind]

    def condition(self, of: str, name: str = "llama") -> dict[str, Any]:
        status = self.objects["ModelDeployment", name].get("status", {})
        return next((c for c in status.get("conditions", ()) if c["type"] == of), {})

    def route(self, name: str = "llama") -> None:
        """The router reports that it sees the workers."""
        conditions = self.objects["ModelDeployment", name].setdefault("status", {}).setdefault("conditions", [])
        conditions.append({"type": "RouterReady", "status": "True", "reason": "WorkersRoutable", "message": "sees all"})

    # -- the operator

    def observe(self, name: str = "llama") -> Observed:
        deployments = {d.meta.name: d for d in map(read_deployment, self.of("ModelDeployment"))}
        own = deployments[name]
        label = {"penstock.dev/deployment": name}

        def owned(kind: str) -> list[dict[str, Any]]:
            return [o for o in self.of(kind) if label.items() <= o["metadata"].get("labels", {}).items()]

        return Observed(
            now=self.now,
            deployment=own,
            cluster=Cluster(
                engines={o["metadata"]["name"]: EngineClass.read(o) for o in self.of("EngineClass")},
                accelerators={o["metadata"]["name"]: AcceleratorClass.read(o) for o in self.of("AcceleratorClass")},
                profiles=tuple(PerformanceProfile.read(o) for o in self.of("PerformanceProfile")),
                nodes=tuple(map(read_node, self.of("Node"))),
            ),
            pools=tuple(map(read_pool, owned("WorkerPool"))),
            replica_sets=tuple(map(read_replica_set, owned("ReplicaSet"))),
            pods=tuple(map(read_pod, owned("Pod"))),
            rivals=tuple(d for d in deployments.values() if d is not own and d.served_name == own.served_name),
            taken={
                pool["metadata"]["name"]: pool["metadata"]["labels"]["penstock.dev/deployment"]
                for pool in self.of("WorkerPool")
                if not label.items() <= pool["metadata"]["labels"].items()
            },
            refusals=dict(self.refusals),
            drain_current=self.drained,
            sidecar_image=self.sidecar_image,
            more_policies=self.more_policies,
            services=dict(self.services),
        )

    def reconcile(self, name: str = "llama") -> Desired:
        """One reconcile, as the shell would do it; a refused pod is remembered and looked at again."""
        for _ in range(3):
            wanted = desired(self.observe(name))
            if all(self.carry_out(write) for write in wanted.writes):
                return wanted
        raise AssertionError("a refused pod was offered again and again")

    def carry_out(self, write: Write) -> bool:
        """Do one write. False: a pod was refused in its dry run. Raises `Interrupted` where the operator dies."""
        if self.die_at is not None and self.writes >= self.die_at:
            raise Interrupted
        self.writes += 1
        self.log.append(write)
        match write:
            case Apply(dry_run=True):
                if self.refuse_pods:
                    self.refusals[write.probe] = self.refuse_pods
                    return False
            case Apply():
                self._apply(write)
            case Scale(ref, replicas):
                self._scale(self._existing(ref), replicas)
            case Delete(ref, uid):
                stored = self.objects.get((ref.kind, ref.name))
                if stored is not None and stored["metadata"]["uid"] == uid:
                    del self.objects[ref.kind, ref.name]
        return True

    def settle(self, name: str = "llama", rounds: int = 60) -> int:
        """Reconcile and let the cluster work until nothing moves; gives the rounds it took."""
        for number in range(rounds):
            before = copy.deepcopy(self.objects)
            self.reconcile(name)
            self.cluster_step()
            if self.objects == before:
                return number
        raise AssertionError(f"still moving after {rounds} rounds: {self.log[-6:]}")

    # -- the rest of Kubernetes

    def cluster_step(self, ready: bool = True) -> None:
        """Garbage is collected, ReplicaSets make and delete pods, ended pods go, new pods become ready."""
        self._collect()
        for stored in self.of("Pod"):
            if "deletionTimestamp" in stored["metadata"]:
                del self.objects["Pod", stored["metadata"]["name"]]
            elif ready:
                self.make_ready(stored)
        for replica_set in self.of("ReplicaSet"):
            self.run_replica_set(replica_set)

    def run_replica_set(self, replica_set: dict[str, Any]) -> None:
        uid, wanted = replica_set["metadata"]["uid"], replica_set["spec"]["replicas"]
        pods = [p for p in self.of("Pod") if p["metadata"]["ownerReferences"][0]["uid"] == uid]
        live = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
        # Unready ones go first, as the real controller has it.
        for pod in sorted(live, key=_is_ready)[: max(0, len(live) - wanted)]:
            pod["metadata"]["deletionTimestamp"] = "2027-01-15T08:05:00Z"
        for _ in range(wanted - len(live)):
            number = next(self._ids)
            self.create(
                "Pod",
                f"{replica_set['metadata']['name']}-{number}",
                {"spec": {}, "status": {"phase": "Pending"}},
                labels=replica_set["spec"]["template"]["metadata"]["labels"],
                annotations=replica_set["spec"]["template"]["metadata"].get("annotations", {}),
                ownerReferences=[{"uid": uid, "controller": True}],
            )

    def make_ready(self, pod: dict[str, Any], node: str = "node-1") -> None:
        pod["spec"]["nodeName"] = node
        pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

    def pods(self, *, ready: bool | None = None) -> list[dict[str, Any]]:
        found = [p for p in self.of("Pod") if "deletionTimestamp" not in p["metadata"]]
        return found if ready is None else [p for p in found if _is_ready(p) == ready]

    def _collect(self) -> None:
        known = {o["metadata"]["uid"] for o in self.objects.values()}
        for (kind, name), stored in list(self.objects.items()):
            owners = stored["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in known for owner in owners):
                if kind == "Pod":
                    stored["metadata"]["deletionTimestamp"] = "2027-01-15T08:05:00Z"
                else:
                    del self.objects[kind, name]

    def _existing(self, ref: Ref) -> dict[str, Any]:
        if (ref.kind, ref.name) not in self.objects:
            raise Refused(f"404: {ref}")
        return self.objects[ref.kind, ref.name]

    def _scale(self, stored: dict[str, Any], replicas: int) -> None:
        self._check({**stored["spec"], "replicas": replicas})
        if stored["spec"].get("replicas") != replicas:
            stored["spec"]["replicas"] = replicas
            stored["metadata"]["generation"] += 1

    def _apply(self, write: Apply) -> None:
        body, ref = copy.deepcopy(dict(write.body)), write.ref
        known = self.objects.get((ref.kind, ref.name))
        if write.subresource == "status":
            stored = self._existing(ref)
            others = [c for c in stored.get("status", {}).get("conditions", ()) if c["type"] == "RouterReady"]
            stored["status"] = body["status"] | {"conditions": [*body["status"]["conditions"], *others]}
            return
        if write.manager == "penstock-initial":
            stored = self._existing(ref)
            if stored["spec"].get("replicas") is not None and stored["spec"]["replicas"] != body["spec"]["replicas"]:
                raise Refused("409: replicas is another manager's")
            self._scale(stored, body["spec"]["replicas"])
            return
        if ref.kind == "ConfigMap":
            self.drained = True
        if ref.kind == "Service":
            self.services[ref.name] = digest(write.body)
        if known is None:
            metadata = {key: value for key, value in body.pop("metadata").items() if key != "name"}
            self._check(body.get("spec", {}))
            self.create(ref.kind, ref.name, body, **metadata)
            return
        self._update(known, body)

    def _update(self, known: dict[str, Any], body: dict[str, Any]) -> None:
        spec = body.get("spec", {})
        if known["kind"] == "WorkerPool" and "replicas" in known["spec"]:
            spec["replicas"] = known["spec"]["replicas"]
        self._check(spec)
        if known.get("spec", {}) != spec:
            known["metadata"]["generation"] += 1
            known["spec"] = spec
        for key in ("labels", "annotations", "ownerReferences"):
            if key in body["metadata"]:
                known["metadata"][key] = body["metadata"][key]

    def _check(self, spec: Mapping[str, Any]) -> None:
        replicas = spec.get("replicas")
        if (
            replicas is not None
            and "minReplicas" in spec
            and not (spec["minReplicas"] <= replicas <= spec["maxReplicas"])
        ):
            raise Refused(f"422: replicas {replicas} is outside {spec['minReplicas']}..{spec['maxReplicas']}")


def _is_ready(pod: Mapping[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


@pytest.fixture(scope="session")
def new_world() -> type[World]:
    """The class itself: property tests make a world per example."""
    return World


@pytest.fixture
def world() -> World:
    """A cluster with one engine class, one accelerator class and two nodes."""
    return furnished()


@pytest.fixture(scope="session")
def furnish() -> Any:
    """Makes worlds like `world`."""
    return furnished


@pytest.fixture(scope="session")
def interrupted() -> type[Interrupted]:
    """What a world raises when the operator dies."""
    return Interrupted


def furnished() -> World:
    made = World()
    made.engine()
    made.accelerator()
    made.node("node-1")
    made.node("node-2")
    return made
