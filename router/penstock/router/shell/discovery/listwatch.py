"""List, then watch, for ever: the last known state of one kind of object, in step with the API server.

While the API server is away nothing changes here: the data plane goes on with what it last knew. Whatever
happened meanwhile comes out of the next list, as the same two calls a watch makes.
"""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient

log = logging.getLogger("penstock.router.discovery")

Object = dict[str, Any]
Key = tuple[str, str]

_PAGE = 500
_LIST_TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)
_WATCH_SECONDS = (60, 120)
"""A watch ends by itself after this long: a connection that died unnoticed costs no more than that."""
_FIRST_BACKOFF = 0.2
_LAST_BACKOFF = 5.0
_MISSING_BACKOFF = 10.0


class Gone(Exception):
    """The resourceVersion is too old: list again."""


class Missing(Exception):
    """The API server does not know this kind."""


class ListWatch:
    """One list and watch; calls `changed(key, object)` and `removed(key)`."""

    def __init__(
        self,
        api: ApiClient,
        path: str,
        selector: str,
        changed: Callable[[Key, Object], None],
        removed: Callable[[Key], None],
        missing: Callable[[], None] | None = None,
    ) -> None:
        """`path` is the collection's URL path; `missing` is called while the kind is not installed."""
        self._api = api
        self._path = path
        self._selector = selector
        self._changed = changed
        self._removed = removed
        self._missing = missing
        self._known: set[Key] = set()
        self.synced = asyncio.Event()
        """Set once the first list (or the certainty that the kind is missing) is there."""

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = _FIRST_BACKOFF
        while True:
            try:
                version = await self._list()
                self.synced.set()
                backoff = _FIRST_BACKOFF
                while True:
                    version = await self._watch(version)
            except Gone:
                log.info("watch expired; listing again", extra={"path": self._path})
            except Missing:
                self._report_missing()
                await asyncio.sleep(_jittered(_MISSING_BACKOFF))
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as problem:
                log.warning("lost the API server", extra={"path": self._path, "problem": repr(problem)})
                await asyncio.sleep(_jittered(backoff))
                backoff = min(_LAST_BACKOFF, backoff * 2)

    def _report_missing(self) -> None:
        if not self.synced.is_set():
            log.warning("the API server does not know this kind; going on without", extra={"path": self._path})
        for key in list(self._known):
            self._forget(key)
        if self._missing is not None:
            self._missing()
        self.synced.set()

    async def _list(self) -> str:
        """Take the whole state, page by page; returns the version to watch from."""
        seen: set[Key] = set()
        token, version = "", ""
        while True:
            query = [("limit", str(_PAGE)), *([("continue", token)] if token else [])]
            response = await self._get(query, _LIST_TIMEOUT)
            async with response:
                page = await response.json()
            for item in page.get("items", []):
                seen.add(self._change(item))
            version = str(page["metadata"]["resourceVersion"])
            token = page["metadata"].get("continue", "")
            if not token:
                break
        for key in self._known - seen:
            self._forget(key)
        return version

    async def _watch(self, version: str) -> str:
        """Follow changes until the server ends the watch; returns the version to go on from."""
        seconds = random.randint(*_WATCH_SECONDS)
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(seconds)),
        ]
        response = await self._get(query, aiohttp.ClientTimeout(sock_connect=5.0, sock_read=seconds + 15.0))
        async with response:
            async for event in _events(response):
                version = self._take(event, version)
        return version

    def _take(self, event: Object, version: str) -> str:
        kind, item = event.get("type"), event.get("object", {})
        if kind == "ERROR":
            if item.get("code") == 410:
                raise Gone
            raise ValueError(f"watch of {self._path} answered {item.get('message', item)}")
        if kind == "DELETED":
            self._forget(_key(item))
        elif kind != "BOOKMARK":
            self._change(item)
        return str(item["metadata"]["resourceVersion"]) or version

    async def _get(self, query: list[tuple[str, str]], timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        selector = [("labelSelector", self._selector)] if self._selector else []
        response: aiohttp.ClientResponse = await self._api.call_api(
            self._path,
            "GET",
            query_params=query + selector,
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        if response.status == 200:
            return response
        body = (await response.text())[:500]
        response.release()
        if response.status == 410:
            raise Gone
        if response.status == 404:
            raise Missing
        raise ValueError(f"GET {self._path} answered {response.status}: {body}")

    def _change(self, item: Object) -> Key:
        key = _key(item)
        self._known.add(key)
        self._changed(key, item)
        return key

    def _forget(self, key: Key) -> None:
        self._known.discard(key)
        self._removed(key)


def _key(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    """Lines of a watch as objects; a line may be longer than any buffer."""
    rest = b""
    async for data in response.content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
