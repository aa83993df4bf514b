"""Workers and models as Kubernetes has them: pods into the fleet, ModelDeployments into the model table.

How fast a pod's worker is stands in its WorkerPool; that may come later, or change, and replaces no worker.

A pod that is Ready is in rotation; one that is being deleted is withdrawn at once while its streams go on;
one that is gone is removed. The router says what it sees in one condition of each ModelDeployment,
`RouterReady`, and only when that changes.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp
from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, Configuration
from penstock.core.fleet import Fleet
from penstock.router.decisions import Policy, UnknownPolicy, find_policy
from penstock.router.shell.discovery.listwatch import Key, ListWatch, Object
from penstock.router.shell.discovery.objects import (
    DEPLOYMENT,
    SeenDeployment,
    SeenPod,
    condition_patch,
    pool_key,
    read_deployment,
    read_pod,
    router_ready,
    with_speed,
)
from penstock.router.shell.discovery.sockets import use_owned_sockets
from penstock.router.shell.discovery.speeds import Speed, told_speed
from penstock.router.shell.gateway import Gateway, unix_now
from penstock.router.shell.models import ServedModel

log = logging.getLogger("penstock.router.discovery")

FIELD_MANAGER = "penstock-router"
_SETTLE_SECONDS = 0.2
"""Changes come in bursts (a rollout, a first list): the condition is written once they pause."""
_RETRY_SECONDS = (1.0, 3.0)
_DEPLOYMENTS = "/apis/penstock.dev/v1alpha1{scope}/modeldeployments"
_POOLS = "/apis/penstock.dev/v1alpha1{scope}/workerpools"


async def connect() -> ApiClient:
    """A client from the pod's service account, or else from the kubeconfig a person would use."""
    settings = Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=settings)
    api = ApiClient(settings)
    await use_owned_sockets(api)
    return api


class ClusterDiscovery:
    """Keeps a gateway's fleet and models in step with the cluster."""

    def __init__(
        self,
        api: ApiClient,
        gateway: Gateway,
        namespaces: Iterable[str],
        default_policy: Policy,
        find: Callable[[str], Policy] = find_policy,
    ) -> None:
        """`namespaces` empty means all of them; `find` gives a policy by name, or raises `UnknownPolicy`."""
        self._api = api
        self._gateway = gateway
        self._fleet: Fleet = gateway.fleet
        self._default_policy, self._find = default_policy, find
        self._pods: dict[Key, SeenPod] = {}
        self._speeds: dict[Key, Speed] = {}  # By namespace and name of the WorkerPool.
        self._deployments: dict[Key, SeenDeployment] = {}
        self._created: dict[str, int] = {}
        self._kind_missing = False
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        scopes = [f"/namespaces/{name}" for name in namespaces] or [""]
        # Pools first: a pod that is seen after its pool has its speed from the start.
        self._watches = [
            ListWatch(api, _POOLS.format(scope=scope), "", self._pool_changed, self._pool_removed) for scope in scopes
        ]
        self._watches += [
            ListWatch(api, f"/api/v1{scope}/pods", DEPLOYMENT, self._pod_changed, self._pod_removed) for scope in scopes
        ] + [
            ListWatch(
                api,
                _DEPLOYMENTS.format(scope=scope),
                "",
                self._deployment_changed,
                self._deployment_removed,
                self._deployments_missing,
            )
            for scope in scopes
        ]

    async def start(self) -> None:
        """Begin to follow; returns when the first state of everything is known."""
        for watch in self._watches:
            self._tasks.append(asyncio.create_task(watch.run()))
        self._tasks.append(asyncio.create_task(self._report()))
        for watch in self._watches:
            await watch.synced.wait()

    async def stop(self) -> None:
        """Follow no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()

    # ---- pods -------------------------------------------------------------------------------

    def _pod_changed(self, key: Key, item: Object) -> None:
        seen, before = self._told(read_pod(item)), self._pods.get(key)
        if before is not None and seen is not None and before.uid == seen.uid:
            before = self._learn(key, before, seen)
        if before is not None and (seen is None or (seen.uid, seen.worker) != (before.uid, before.worker)):
            self._pod_removed(key)
        if seen is None:
            return
        name = seen.worker.name
        slot = self._fleet.slot_of(name)
        if slot is None:
            slot = self._fleet.add(seen.worker)
        self._pods[key] = seen
        self._fleet.set_ready(slot, seen.ready)
        if seen.leaving:
            self._fleet.withdraw(slot)
        if before != seen:
            log.debug("worker", extra={"worker": name, "ready": seen.ready, "leaving": seen.leaving})
            self._changed()

    def _pod_removed(self, key: Key) -> None:
        seen = self._pods.pop(key, None)
        if seen is None:
            return
        slot = self._fleet.slot_of(seen.worker.name)
        if slot is not None:
            self._gateway.remove_worker(slot)
        self._changed()

    # ---- pools ------------------------------------------------------------------------------

    def _told(self, seen: SeenPod | None) -> SeenPod | None:
        """The pod's worker with the speed its pool tells, if it is known."""
        return None if seen is None else with_speed(seen, self._speeds.get(pool_key(seen.worker)))

    def _learn(self, key: Key, before: SeenPod, seen: SeenPod) -> SeenPod:
        """Have the fleet know a worker's new speed; a worker that differs otherwise is left as it was."""
        slot = self._fleet.slot_of(before.worker.name)
        if slot is None or before.worker == seen.worker:
            return before
        try:
            self._fleet.describe(slot, seen.worker)
        except ValueError:
            return before
        known = self._pods[key] = replace(before, worker=seen.worker)
        return known

    def _pool_changed(self, key: Key, item: Object) -> None:
        speed = told_speed(item.get("spec") or {})
        if self._speeds.get(key) == speed:
            return
        if speed is None:
            self._speeds.pop(key, None)
            return  # What was known of its workers stays: nobody said that it was wrong.
        self._speeds[key] = speed
        for pod, seen in list(self._pods.items()):
            if pool_key(seen.worker) == key:
                self._learn(pod, seen, with_speed(seen, speed))

    def _pool_removed(self, key: Key) -> None:
        self._speeds.pop(key, None)

    # ---- deployments ------------------------------------------------------------------------

    def _deployment_changed(self, key: Key, item: Object) -> None:
        self._kind_missing = False
        seen = read_deployment(item)
        if seen is None:
            self._deployment_removed(key)
        elif self._deployments.get(key) != seen:
            self._deployments[key] = seen
            self._changed()

    def _deployment_removed(self, key: Key) -> None:
        if self._deployments.pop(key, None) is not None:
            self._changed()

    def _deployments_missing(self) -> None:
        self._kind_missing = True
        self._changed()

    def _changed(self) -> None:
        self._serve_models()
        self._dirty.set()

    def _serve_models(self) -> None:
        """Models of deployments that count; where the kind is not installed, those the pods themselves name."""
        served: dict[str, ServedModel] = {}
        for d in sorted(self._deployments.values(), key=lambda d: (not d.accepted, d.namespace, d.name)):
            if d.model not in served and self._counts_as_served(d):
                served[d.model] = self._model(d)
        if self._kind_missing:
            for pod in self._pods.values():
                name = pod.worker.model
                served.setdefault(name, ServedModel(name, self._default_policy, self._since(name)))
        self._gateway.models.replace(served.values())

    def _counts_as_served(self, deployment: SeenDeployment) -> bool:
        """Whether it is accepted, or was when its workers were made: a mistake in a spec stops nothing that runs."""
        return deployment.accepted or any(self._belongs(pod, deployment) for pod in self._pods.values())

    def _model(self, d: SeenDeployment) -> ServedModel:
        created = self._since(d.model)
        return ServedModel(d.model, self._policy(d), created, d.max_context_tokens, d.ttft_ms, d.tpot_ms)

    def _since(self, name: str) -> int:
        return self._created.setdefault(name, unix_now())

    def _policy(self, deployment: SeenDeployment) -> Policy:
        if not deployment.policy:
            return self._default_policy
        try:
            return self._find(deployment.policy)
        except UnknownPolicy as unknown:
            where = f"{deployment.namespace}/{deployment.name}"
            log.warning(str(unknown), extra={"deployment": where, "instead": self._default_policy.name})
            return self._default_policy

    # ---- the condition ----------------------------------------------------------------------

    async def _report(self) -> None:
        """Write `RouterReady` wherever it is not what we see, whenever something changed."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._dirty.clear()
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            written = [await self._write(d, now) for d in list(self._deployments.values())]
            if not all(written):
                await asyncio.sleep(random.uniform(*_RETRY_SECONDS))
                self._dirty.set()

    async def _write(self, deployment: SeenDeployment, now: str) -> bool:
        """Apply the condition of one deployment; False when it should be tried again."""
        condition = router_ready(deployment, *self._counts(deployment), now)
        if condition is None:
            return True
        path = _DEPLOYMENTS.format(scope=f"/namespaces/{deployment.namespace}") + f"/{deployment.name}/status"
        try:
            response: aiohttp.ClientResponse = await self._api.call_api(
                path,
                "PATCH",
                query_params=[("fieldManager", FIELD_MANAGER), ("force", "true")],
                header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
                body=condition_patch(deployment, condition),
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=aiohttp.ClientTimeout(total=10.0),
            )
            async with response:
                answer = (await response.text())[:500]
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            log.warning("cannot write RouterReady", extra={"path": path, "problem": repr(problem)})
            return False
        if response.status in (200, 201, 404):
            return True  # 404: the deployment was deleted meanwhile
        log.warning("writing RouterReady was refused", extra={"path": path, "code": response.status, "answer": answer})
        return False

    def _counts(self, deployment: SeenDeployment) -> tuple[int, int, int]:
        """Workers in rotation, ready pods and pods of a deployment."""
        mine = [p for p in self._pods.values() if self._belongs(p, deployment)]
        ready = [p for p in mine if p.ready and not p.leaving]
        slots = {self._fleet.slot_of(p.worker.name) for p in ready}
        # Ejected ones count: that is a matter of seconds, and no news for a condition.
        rotation = set(self._fleet.view().ready(deployment.model).tolist()) if mine else set()
        return len(slots & rotation), len(ready), len(mine)

    @staticmethod
    def _belongs(pod: SeenPod, deployment: SeenDeployment) -> bool:
        return (pod.worker.namespace, pod.worker.deployment) == (deployment.namespace, deployment.name)
