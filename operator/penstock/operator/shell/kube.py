"""The few verbs the operator speaks to the API server, over one pooled connection.

kopf's own client only reads; the official one loads 700 model classes (60 MB) to send JSON we already have. Every
call has a deadline; nothing here retries: a failed reconcile goes back to the work queue, which backs off.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from penstock.operator.decisions.writes import MANAGER, Apply, Ref
from penstock.operator.shell.quiet_kopf import (
    ConnectionInfo,
    OperatorSettings,
    login_with_kubeconfig,
    login_with_service_account,
)

REQUEST_TIMEOUT_S = 15.0
LIST_TIMEOUT_S = 60.0
CREDENTIALS_AGE_S = 60.0
"""Projected tokens rotate; the file is read again after this long."""

PLURALS: Mapping[tuple[str, str], str] = {
    ("penstock.dev/v1alpha1", "ModelDeployment"): "modeldeployments",
    ("penstock.dev/v1alpha1", "WorkerPool"): "workerpools",
    ("penstock.dev/v1alpha1", "EngineClass"): "engineclasses",
    ("penstock.dev/v1alpha1", "AcceleratorClass"): "acceleratorclasses",
    ("penstock.dev/v1alpha1", "PerformanceProfile"): "performanceprofiles",
    ("apps/v1", "ReplicaSet"): "replicasets",
    ("v1", "Pod"): "pods",
    ("v1", "Node"): "nodes",
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Service"): "services",
    ("events.k8s.io/v1", "Event"): "events",
    ("coordination.k8s.io/v1", "Lease"): "leases",
}


class ApiError(Exception):
    """The API server answered with a failure; `code`, `reason` and `message` are those of its Status object."""

    def __init__(self, code: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class Unreachable(Exception):
    """No answer from the API server in time."""


def connection() -> ConnectionInfo:
    """Where the API server is and who we are: the pod's service account, else the kubeconfig.

    Raises `Unreachable` where neither is there.
    """
    settings = OperatorSettings()
    info = login_with_service_account(settings=settings)
    if info is not None:
        return replace(info, server=_service_address(info.server))
    info = login_with_kubeconfig(settings=settings)
    if info is None:
        raise Unreachable("no service account and no kubeconfig: run in a pod, or set KUBECONFIG")
    return info


def _service_address(otherwise: str) -> str:
    """The API server by the address the kubelet injects: works without cluster DNS."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return otherwise
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def own_namespace() -> str | None:
    """The namespace of the service account's pod; None outside a cluster."""
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def path_of(api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """URL path of a collection, or of one object in it."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    parts = [root]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(PLURALS[api_version, kind])
    if name is not None:
        parts.append(quote(name, safe=""))
    return "/".join(parts)


class Kube:
    """A client for one API server. Open with `async with`; safe to use from many tasks of one loop."""

    def __init__(self, login: Callable[[], ConnectionInfo] = connection, *, concurrency: int = 16) -> None:
        self.unreachable: Callable[[], None] = lambda: None
        """Called whenever the API server does not answer: something may have been missed."""
        self._login = login
        self._info = login()
        self._read_at = 0.0
        self._concurrency = concurrency
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Kube:
        tls = self._info.as_ssl_context() if self._info.server.startswith("https") else False
        connector = aiohttp.TCPConnector(ssl=tls, limit=self._concurrency, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": "penstock-operator"})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def apply(self, write: Apply) -> dict[str, Any]:
        """Server-side apply; gives the object as stored."""
        ref = write.ref
        path = path_of(ref.api_version, ref.kind, ref.namespace, ref.name)
        query = {"fieldManager": write.manager, "force": str(write.force).lower()}
        if write.dry_run:
            query["dryRun"] = "All"
        target = f"{path}/{write.subresource}" if write.subresource else path
        return await self._call("PATCH", target, query, write.body, "application/apply-patch+yaml")

    async def scale(self, ref: Ref, replicas: int, *, manager: str = MANAGER) -> dict[str, Any]:
        """Write `spec.replicas` through the scale subresource; gives the Scale object."""
        path = path_of(ref.api_version, ref.kind, ref.namespace, ref.name) + "/scale"
        body = {"spec": {"replicas": replicas}}
        return await self._call("PATCH", path, {"fieldManager": manager}, body, "application/merge-patch+json")

    async def delete(self, ref: Ref, uid: str) -> None:
        """Delete that very object in the background; one already gone is no error."""
        path = path_of(ref.api_version, ref.kind, ref.namespace, ref.name)
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call("DELETE", path, {}, body, "application/json")
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def get(self, ref: Ref) -> dict[str, Any]:
        """One object; `ApiError` 404 where it does not exist."""
        return await self._call("GET", path_of(ref.api_version, ref.kind, ref.namespace, ref.name))

    async def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; `ApiError` 409 where it exists."""
        path = path_of(body["apiVersion"], body["kind"], body["metadata"].get("namespace"))
        return await self._call("POST", path, {}, body, "application/json")

    async def replace(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object of the given resourceVersion; `ApiError` 409 where someone was faster."""
        metadata = body["metadata"]
        path = path_of(body["apiVersion"], body["kind"], metadata.get("namespace"), metadata["name"])
        return await self._call("PUT", path, {}, body, "application/json")

    async def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, selector: str | None = None
    ) -> dict[str, Any]:
        """All objects of a kind, from the API server's cache, as a List object."""
        query = {"resourceVersion": "0"}
        if selector:
            query["labelSelector"] = selector
        return await self._call("GET", path_of(api_version, kind, namespace), query, timeout_s=LIST_TIMEOUT_S)

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError("the client is not open; use `async with Kube()`")
        url = self._info.server.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", **self._credentials()}
        if content_type:
            headers["Content-Type"] = content_type
        data = json.dumps(body, separators=(",", ":")).encode() if body is not None else None
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, url, data=data, headers=headers, timeout=timeout) as response:
                text = await response.text()
                if response.status >= 400:
                    raise _error(response.status, response.headers, text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.unreachable()
            raise Unreachable(f"{method} {path}: {error or type(error).__name__}") from error
        return json.loads(text) if text else {}

    def _credentials(self) -> dict[str, str]:
        now = asyncio.get_running_loop().time()
        if now - self._read_at > CREDENTIALS_AGE_S:
            self._info, self._read_at = self._login(), now
        return dict(self._info.as_http_headers())


def _error(code: int, headers: Mapping[str, str], text: str) -> ApiError:
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except ValueError:
        reason, message = "Unknown", text[:500]
    wait = headers.get("Retry-After", "")
    return ApiError(code, reason, message, float(wait) if wait.isdigit() else None)
