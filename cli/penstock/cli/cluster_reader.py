"""Reading a cluster as a person with a kubeconfig may: objects, and pages of pods through the API server's proxy.

Pods' ports are reachable from inside the cluster only; the proxy brings their pages to wherever the kubeconfig works,
with the permissions the person has.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

_TIMEOUT = 5.0
_AT_ONCE = 16
_MAX_ANSWER = 64 * 1024 * 1024


class ClusterError(Exception):
    """The cluster could not be asked, or said no; the message is a sentence for the person.

    `said` is the answer's own sentence, where there was one.
    """

    def __init__(self, message: str, said: str = "") -> None:
        """An error with this message."""
        super().__init__(message)
        self.said = said


def find_kubeconfig(given: Path | None, box: str | None) -> Path | None:
    """The file to use: the one given, the box's, KUBECONFIG's (None: as kubectl finds it), or a running box's."""
    if given is not None:
        if not given.is_file():
            raise ClusterError(f"there is no kubeconfig {given}")
        return given
    if box is None and ("KUBECONFIG" in os.environ or Path("~/.kube/config").expanduser().is_file()):
        return None
    # The box brings half of the house with it: only those who have one pay.
    from penstock.box.errors import BoxError
    from penstock.box.lifecycle import require_box

    try:
        return require_box(box or "default").kubeconfig
    except BoxError as error:
        hint = "" if box else "; or name a cluster with --kubeconfig"
        raise ClusterError(f"{error}{hint}") from None


class ClusterReader:
    """One API server, read only. An async context manager."""

    def __init__(self, kubeconfig: Path | None, context: str | None) -> None:
        """`kubeconfig` None: as kubectl finds it; `context` None: the current one."""
        self._kubeconfig = kubeconfig
        self._context = context
        self._api: ApiClient | None = None
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def __aenter__(self) -> Self:
        """Read the kubeconfig; raises `ClusterError` when it is of no use."""
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client import ApiClient, Configuration

        settings = Configuration()
        try:
            path = None if self._kubeconfig is None else str(self._kubeconfig)
            await config.load_kube_config(config_file=path, context=self._context, client_configuration=settings)
        except (config.ConfigException, OSError) as problem:
            raise ClusterError(f"the kubeconfig is of no use: {problem}") from None
        self._api = ApiClient(settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._api is not None:
            await self._api.close()

    async def objects(self, path: str, selector: str = "") -> list[dict[str, Any]]:
        """The items of a list; raises `ClusterError`."""
        answer = json.loads(await self._get(path, [("labelSelector", selector)] if selector else []))
        return [dict(item) for item in answer.get("items", ())]

    async def page(self, namespace: str, pod: str, port: int, path: str) -> bytes:
        """A page of a pod; raises `ClusterError`."""
        return await self._get(f"/api/v1/namespaces/{namespace}/pods/{quote(pod)}:{port}/proxy{path}", [])

    async def _get(self, path: str, query: list[tuple[str, str]]) -> bytes:
        import aiohttp

        assert self._api is not None, "use the reader as a context manager"
        try:
            async with self._gate, asyncio.timeout(_TIMEOUT):
                response = await self._api.call_api(
                    path,
                    "GET",
                    query_params=query,
                    header_params={"Accept": "*/*"},
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                )
                async with response:
                    body: bytes = await response.content.read(_MAX_ANSWER)
        except (aiohttp.ClientError, OSError, TimeoutError) as problem:
            raise ClusterError(f"the API server did not answer {path}: {problem or 'no answer in time'}") from None
        if response.status != 200:
            said = _said(body)
            raise ClusterError(f"the API server answered {response.status} to {path}: {said}", said)
        return body


def _said(body: bytes) -> str:
    """The sentence in an error of Kubernetes or of ours; else the beginning of what came."""
    try:
        answer = json.loads(body)
        return str(answer.get("message") or answer["error"]["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return body[:200].decode("utf-8", "replace").strip() or "nothing"
