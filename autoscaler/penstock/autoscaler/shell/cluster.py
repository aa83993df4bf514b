"""What the cluster holds for us: workers, pools, deployments, and the classes and profiles they rest on; read-only."""

import asyncio
from collections.abc import Callable, Iterable

from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, Configuration
from penstock.autoscaler.shell.objects import DEPLOYMENT_LABEL, Object, Pool, Worker, read_pool, read_worker
from penstock.autoscaler.shell.watching import Watching

CLUSTER_SCOPED = ("acceleratorclasses", "engineclasses", "performanceprofiles")


async def connect() -> ApiClient:
    """A client with the pod's service account, or with a person's kubeconfig outside a cluster."""
    settings = Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=settings)
    return ApiClient(settings)


class ClusterView:
    """Workers and pools of the watched namespaces; `changed` is called after each change."""

    def __init__(self, api: ApiClient, namespaces: Iterable[str], changed: Callable[[], None]) -> None:
        scopes = [f"/namespaces/{name}" for name in namespaces] or [""]
        self._pods = [Watching(api, f"/api/v1{scope}/pods", DEPLOYMENT_LABEL, changed) for scope in scopes]
        self._pools = [
            Watching(api, f"/apis/penstock.dev/v1alpha1{scope}/workerpools", "", changed) for scope in scopes
        ]
        self._deployments = [
            Watching(api, f"/apis/penstock.dev/v1alpha1{scope}/modeldeployments", "", changed) for scope in scopes
        ]
        self._classes = {
            plural: Watching(api, f"/apis/penstock.dev/v1alpha1/{plural}", "", changed) for plural in CLUSTER_SCOPED
        }

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watching in self._all:
                group.create_task(watching.run())

    @property
    def listed(self) -> bool:
        """Whether everything was seen at least once."""
        return all(watching.listed.is_set() for watching in self._all)

    @property
    def _all(self) -> tuple[Watching, ...]:
        return (*self._pods, *self._pools, *self._deployments, *self._classes.values())

    def workers(self) -> list[Worker]:
        """The workers there are now, starting and terminating ones included."""
        return [worker for pod in _objects(self._pods) if (worker := read_worker(pod)) is not None]

    def pools(self) -> list[Pool]:
        """The WorkerPools there are now."""
        return [pool for item in _objects(self._pools) if (pool := read_pool(item)) is not None]

    def pool(self, namespace: str, name: str) -> Pool | None:
        """A WorkerPool, or None when it is gone."""
        stored = next((w.objects[namespace, name] for w in self._pools if (namespace, name) in w.objects), None)
        return read_pool(stored) if stored is not None else None

    def deployment(self, namespace: str, name: str) -> Object | None:
        """A ModelDeployment as stored, or None when it is gone."""
        return next((w.objects[namespace, name] for w in self._deployments if (namespace, name) in w.objects), None)

    def deployments(self) -> list[Object]:
        """The ModelDeployments there are now, as stored."""
        return _objects(self._deployments)

    def cluster_scoped(self, plural: str) -> list[Object]:
        """The objects of one of `CLUSTER_SCOPED`, as stored."""
        return _objects([self._classes[plural]])


def _objects(watches: Iterable[Watching]) -> list[Object]:
    return [item for watching in watches for item in watching.objects.values()]
