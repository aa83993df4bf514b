"""The operator's memory of the cluster: views of watched objects, and who must look when one changes.

Fed from three sides (watch events, our own writes' answers, and lists), which may arrive in any order: an older
resource version never replaces a newer one, and what was seen deleted stays deleted.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.api import AcceleratorClass, EngineClass, PerformanceProfile
from penstock.api.base import API_VERSION, LABEL_DEPLOYMENT
from penstock.operator.decisions.observed import Cluster, Deployment, Observed
from penstock.operator.decisions.reading import read_deployment, read_node, read_pod, read_pool, read_replica_set
from penstock.operator.shell.queue import Key

log = logging.getLogger(__name__)

Name = tuple[str, str]
"""(namespace, name); the namespace is empty for cluster-wide kinds."""

TOMBSTONES = 10_000
"""Deletions remembered, so that a late answer to a write does not bring an object back."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A watched kind: where it is, how it is read, and which objects of it are ours to see."""

    api_version: str
    kind: str
    plural: str
    read: Callable[[Mapping[str, Any]], Any]
    namespaced: bool = True
    owned: bool = False
    """Carries the label of the deployment it belongs to."""
    selector: str | None = None


_OURS = "app.kubernetes.io/managed-by=penstock"

DEPLOYMENTS = Kind(API_VERSION, "ModelDeployment", "modeldeployments", read_deployment)
POOLS = Kind(API_VERSION, "WorkerPool", "workerpools", read_pool, owned=True)
REPLICA_SETS = Kind("apps/v1", "ReplicaSet", "replicasets", read_replica_set, owned=True, selector=_OURS)
PODS = Kind("v1", "Pod", "pods", read_pod, owned=True, selector=_OURS)
ENGINES = Kind(API_VERSION, "EngineClass", "engineclasses", EngineClass.read, namespaced=False)
ACCELERATORS = Kind(API_VERSION, "AcceleratorClass", "acceleratorclasses", AcceleratorClass.read, namespaced=False)
PROFILES = Kind(API_VERSION, "PerformanceProfile", "performanceprofiles", PerformanceProfile.read, namespaced=False)
NODES = Kind("v1", "Node", "nodes", read_node, namespaced=False)

KINDS = (ENGINES, ACCELERATORS, PROFILES, NODES, DEPLOYMENTS, POOLS, REPLICA_SETS, PODS)


@dataclass(slots=True)
class _Entry:
    version: int
    view: Any
    parent: Key | None


class Store:
    """Views by kind and name. `touched` is called with the key of every deployment that must be looked at."""

    def __init__(self, touched: Callable[[Key], None]) -> None:
        self._touched = touched
        self._objects: dict[str, dict[Name, _Entry]] = {kind.kind: {} for kind in KINDS}
        self._children: dict[str, dict[Key, dict[Name, Any]]] = {kind.kind: {} for kind in KINDS if kind.owned}
        self._served: dict[str, set[Key]] = {}
        self._gone: OrderedDict[tuple[str, Name], int] = OrderedDict()
        self._cluster: Cluster | None = None

    def put(self, kind: Kind, stored: Mapping[str, Any]) -> None:
        """An object as it is now."""
        name, version = _name(stored), _version(stored)
        known = self._objects[kind.kind].get(name)
        if version <= self._gone.get((kind.kind, name), -1) or (known is not None and version < known.version):
            return
        view = self._read(kind, stored)
        if view is None:
            self._forget(kind, name)
            return
        if known is not None and known.view == view:
            known.version = version
            return
        parent = _parent(kind, stored)
        if known is not None and known.parent != parent:
            self._forget(kind, name)
        self._objects[kind.kind][name] = _Entry(version, view, parent)
        if parent is not None:
            self._children[kind.kind].setdefault(parent, {})[name] = view
        self._tell(kind, known.view if known else None, view, parent)

    def remove(self, kind: Kind, stored: Mapping[str, Any]) -> None:
        """An object that was deleted; `stored` is its last state."""
        name, version = _name(stored), _version(stored)
        known = self._objects[kind.kind].get(name)
        if known is not None and known.version > version:
            return  # made again since
        self._bury(kind, name, version)

    def replace(self, kind: Kind, namespace: str | None, version: int, items: Iterable[Mapping[str, Any]]) -> int:
        """A list of all objects of a kind at a version (of one namespace, or of all); gives how many were stale.

        Watches miss deletions that happen while they are broken; only a list shows them.
        """
        listed = set()
        for item in items:
            listed.add(_name(item))
            self.put(kind, {"apiVersion": kind.api_version, "kind": kind.kind, **item})
        ghosts = [
            name
            for name, entry in self._objects[kind.kind].items()
            if name not in listed and entry.version <= version and namespace in (None, name[0])
        ]
        for name in ghosts:
            self._bury(kind, name, version)
        return len(ghosts)

    def deployments(self) -> list[Key]:
        """Every ModelDeployment known."""
        return list(self._objects[DEPLOYMENTS.kind])

    def observe(
        self,
        key: Key,
        *,
        now: float,
        refusals: Mapping[str, str],
        drain: bool,
        endpoint: str,
        sidecar_image: str = "",
        more_policies: frozenset[str] = frozenset(),
        services: Mapping[str, str] | None = None,
    ) -> Observed | None:
        """Everything one reconcile may know; None where the deployment is gone."""
        entry = self._objects[DEPLOYMENTS.kind].get(key)
        if entry is None:
            return None
        deployment: Deployment = entry.view
        return Observed(
            now=now,
            deployment=deployment,
            cluster=self._shared(),
            pools=self._of(POOLS, key),
            replica_sets=self._of(REPLICA_SETS, key),
            pods=self._of(PODS, key),
            rivals=tuple(
                self._objects[DEPLOYMENTS.kind][other].view
                for other in sorted(self._served.get(deployment.served_name, ()))
                if other != key
            ),
            taken=self._taken(key),
            refusals=refusals,
            drain_current=drain,
            endpoint=endpoint,
            sidecar_image=sidecar_image,
            more_policies=more_policies,
            services=services or {},
        )

    def _read(self, kind: Kind, stored: Mapping[str, Any]) -> Any:
        try:
            return kind.read(stored)
        except ValueError as error:
            log.warning("%s %s cannot be read and counts as absent: %s", kind.kind, _name(stored)[1], error)
            return None

    def _bury(self, kind: Kind, name: Name, version: int) -> None:
        self._gone[kind.kind, name] = max(version, self._gone.get((kind.kind, name), -1))
        self._gone.move_to_end((kind.kind, name))
        if len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)
        self._forget(kind, name)

    def _forget(self, kind: Kind, name: Name) -> None:
        entry = self._objects[kind.kind].pop(name, None)
        if entry is None:
            return
        if entry.parent is not None:
            siblings = self._children[kind.kind].get(entry.parent, {})
            siblings.pop(name, None)
            if not siblings:
                self._children[kind.kind].pop(entry.parent, None)
        self._tell(kind, entry.view, None, entry.parent)

    def _tell(self, kind: Kind, old: Any, new: Any, parent: Key | None) -> None:
        if kind is DEPLOYMENTS:
            self._tell_rivals(old, new)
        elif parent is not None:
            self._touched(parent)
            if kind is POOLS and new is None:
                self._free(old.meta.ref.namespace, old.meta.name)
        elif not kind.namespaced:
            self._cluster = None
            for key in self.deployments():
                self._touched(key)

    def _free(self, namespace: str | None, pool: str) -> None:
        """A WorkerPool's name can be used again: by deployments that may have been refused it."""
        for key in self.deployments():
            if key[0] == namespace and pool.startswith(f"{key[1]}-"):
                self._touched(key)

    def _tell_rivals(self, old: Deployment | None, new: Deployment | None) -> None:
        for view in (old, new):
            if view is not None:
                self._touched(view.key)
        if old is not None and (new is None or old.served_name != new.served_name):
            self._served.get(old.served_name, set()).discard(old.key)
            self._wake(old.served_name)
        if new is not None and (old is None or old.served_name != new.served_name):
            self._served.setdefault(new.served_name, set()).add(new.key)
            self._wake(new.served_name)
        elif old is not None and new is not None and old.meta.deleting != new.meta.deleting:
            self._wake(new.served_name)

    def _wake(self, served: str) -> None:
        for key in self._served.get(served, ()):
            self._touched(key)

    def _of(self, kind: Kind, key: Key) -> tuple[Any, ...]:
        return tuple(view for _, view in sorted(self._children[kind.kind].get(key, {}).items()))

    def _taken(self, key: Key) -> dict[str, str]:
        namespace, deployment = key
        return {
            name: entry.parent[1]
            for (place, name), entry in self._objects[POOLS.kind].items()
            if place == namespace and name.startswith(f"{deployment}-") and entry.parent not in (None, key)
        }

    def _shared(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(
                engines={view.metadata.name: view for view in self._all(ENGINES)},
                accelerators={view.metadata.name: view for view in self._all(ACCELERATORS)},
                profiles=tuple(self._all(PROFILES)),
                nodes=tuple(self._all(NODES)),
            )
        return self._cluster

    def _all(self, kind: Kind) -> list[Any]:
        return [entry.view for _, entry in sorted(self._objects[kind.kind].items())]


def _name(stored: Mapping[str, Any]) -> Name:
    metadata = stored["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def _version(stored: Mapping[str, Any]) -> int:
    # Resource versions of one kind are ordered decimal numbers (guaranteed by the API from Kubernetes 1.35 on, true of
    # every etcd-backed server before).
    return int(stored["metadata"]["resourceVersion"])


def _parent(kind: Kind, stored: Mapping[str, Any]) -> Key | None:
    if not kind.owned:
        return None
    metadata = stored["metadata"]
    name = (metadata.get("labels") or {}).get(LABEL_DEPLOYMENT)
    return (metadata["namespace"], name) if name else None
