"""A small client of the box's own API server: read, apply, wait. Users have kubectl; this is for `penstock up`."""

from __future__ import annotations

import json
import ssl
import time
from types import TracebackType
from typing import Any

import httpx
from penstock.box.errors import BoxError

_FIELD_MANAGER = "penstock-box"
_RETRY_SECONDS = 0.2


class Kube:
    """One API server and one identity."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._client = httpx.Client(base_url=url, verify=context, timeout=10.0, trust_env=False)

    def __enter__(self) -> Kube:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any] | None:
        """The object or list at `path`; None when there is none or the API server is away."""
        try:
            response = self._client.get(path)
        except httpx.HTTPError:
            return None
        return dict(response.json()) if response.status_code == 200 else None

    def ok(self, path: str) -> bool:
        """True when GET `path` succeeds, whatever it says."""
        try:
            return self._client.get(path, timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def apply(self, path: str, document: dict[str, Any], timeout: float) -> None:
        """Server-side apply, tried again while the API server is still filling itself; raises BoxError at `timeout`."""
        deadline = time.monotonic() + timeout
        while (reason := self._apply_once(path, document)) is not None:
            if time.monotonic() > deadline:
                raise BoxError(f"{document['kind']} {document['metadata']['name']} was not taken: {reason}")
            time.sleep(_RETRY_SECONDS)

    def _apply_once(self, path: str, document: dict[str, Any]) -> str | None:
        try:
            response = self._client.patch(
                path,
                params={"fieldManager": _FIELD_MANAGER, "force": "true"},
                content=json.dumps(document),
                headers={"content-type": "application/apply-patch+yaml"},
            )
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__
        return None if response.is_success else response.text[:300]

    def ready_nodes(self) -> frozenset[str]:
        """Names of the nodes whose condition Ready is True."""
        nodes = self.get("/api/v1/nodes") or {"items": []}
        return frozenset(item["metadata"]["name"] for item in nodes["items"] if _is_ready(item))


def _is_ready(item: dict[str, Any]) -> bool:
    conditions = item.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
