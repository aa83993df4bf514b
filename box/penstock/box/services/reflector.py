"""A mirror of one kind of object: list, watch, and list again when the watch is too old. Survives API restarts."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from typing import Any

import httpx

_LOG = logging.getLogger(__name__)
_WATCH_SECONDS = 300
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 3.0
_PAGE = 500


class _Expired(Exception):
    """The watch's resource version is gone; list again."""


class Reflector:
    """Keeps `items` (by namespace and name) equal to what the API server has at `path`; `changed` after each change.

    While the API server is away the last known objects stay: what ran goes on running.
    """

    def __init__(self, client: httpx.AsyncClient, path: str, changed: Callable[[], None]) -> None:
        self._client = client
        self._path = path
        self._changed = changed
        self.items: dict[tuple[str, str], dict[str, Any]] = {}

    async def run(self) -> None:
        """Mirror for ever; ends by cancellation only."""
        pause = _FIRST_PAUSE
        while True:
            try:
                version = await self._list()
                pause = _FIRST_PAUSE
                while True:
                    version = await self._watch(version)
            except _Expired:
                continue
            except (httpx.HTTPError, ValueError, KeyError) as error:
                _LOG.info("%s: %s; asking again", self._path, _in_words(error))
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _list(self) -> str:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        token = ""
        while True:
            response = await self._client.get(self._path, params={"limit": _PAGE, "continue": token})
            response.raise_for_status()
            page = response.json()
            found.update({_key(item): item for item in page["items"]})
            token = page["metadata"].get("continue", "")
            if not token:
                break
        self.items = found
        self._changed()
        return str(page["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        async with self._client.stream("GET", self._path, params=query) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                version = self._apply(json.loads(line))
        return version

    def _apply(self, event: dict[str, Any]) -> str:
        item, kind = event["object"], event["type"]
        if kind == "ERROR":
            raise _Expired
        if kind == "DELETED":
            self.items.pop(_key(item), None)
        elif kind != "BOOKMARK":
            self.items[_key(item)] = item
        if kind != "BOOKMARK":
            self._changed()
        return str(item["metadata"]["resourceVersion"])


def _in_words(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return str(error) or type(error).__name__


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def watch_timeouts() -> httpx.Timeout:
    """Time-outs for a client that watches: silence up to a little more than a watch lasts is normal."""
    return httpx.Timeout(connect=5.0, read=_WATCH_SECONDS + 30.0, write=10.0, pool=5.0)
