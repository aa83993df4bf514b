"""The few writes the autoscaler makes: the scale subresource, status, a pod's annotation, Events and one Lease.

Every call has a deadline and nothing here retries: the next cycle looks again and decides anew.
"""

from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes_asyncio.client import ApiClient

MANAGER = "penstock-autoscaler"
_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=5)
_API = "/apis/penstock.dev/v1alpha1"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"

Json = dict[str, Any]


class KubeError(Exception):
    """A call that failed. `code` is the HTTP status; 0 when there was no answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code


class Kube:
    """A thin client; every method raises `KubeError`."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def scale(self, namespace: str, pool: str, replicas: int, version: str) -> None:
        """Write `replicas` of a WorkerPool, unless the object is no longer the one that was looked at (409)."""
        body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
        path = f"{_API}/namespaces/{namespace}/workerpools/{quote(pool)}/scale"
        await self._call("PATCH", path, body, _MERGE)

    async def apply_status(self, namespace: str, deployment: str, status: Json) -> None:
        """Our part of a ModelDeployment's status, by server-side apply."""
        body = {
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": deployment, "namespace": namespace},
            "status": status,
        }
        path = f"{_API}/namespaces/{namespace}/modeldeployments/{quote(deployment)}/status"
        await self._call("PATCH", path, body, _APPLY, force=True)

    async def annotate_pod(self, namespace: str, pod: str, key: str, value: str) -> None:
        """One annotation of a pod."""
        path = f"/api/v1/namespaces/{namespace}/pods/{quote(pod)}"
        await self._call("PATCH", path, {"metadata": {"annotations": {key: value}}}, _MERGE)

    async def create_event(self, namespace: str, body: Json) -> None:
        """Post an Event."""
        await self._call("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)

    async def get_lease(self, namespace: str, name: str) -> Json:
        """Read a Lease."""
        return await self._call("GET", f"{_leases(namespace)}/{name}")

    async def create_lease(self, namespace: str, body: Json) -> Json:
        """Make a Lease."""
        return await self._call("POST", _leases(namespace), body)

    async def replace_lease(self, namespace: str, name: str, body: Json) -> Json:
        """Replace a Lease of the version in `body`."""
        return await self._call("PUT", f"{_leases(namespace)}/{name}", body)

    async def _call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        content: str = "application/json",
        *,
        force: bool = False,
    ) -> Json:
        query = [] if method == "GET" else [("fieldManager", MANAGER)]
        if force:
            query.append(("force", "true"))
        try:
            response: aiohttp.ClientResponse = await self._api.call_api(
                path,
                method,
                query_params=query,
                header_params={"Accept": "application/json", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            async with response:
                if response.status >= 300:
                    raise KubeError(response.status, f"{method} {path}: {(await response.text())[:300]}")
                answer = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise KubeError(0, f"{method} {path}: {error!r}") from error
        return answer if isinstance(answer, dict) else {}


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
