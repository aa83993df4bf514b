"""Following one kind of object: a list, then a watch, and again from the start when either breaks.

What is known stays known while the API server is away; after that the next list says what was missed.
"""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient

log = logging.getLogger("penstock.autoscaler.watching")

Key = tuple[str, str]
Object = Mapping[str, Any]

_PAGE = 500
_LIST_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_WATCH_S = (120, 240)
"""Length of one watch: a connection that died without a word is found out at its end."""
_BACKOFF_S = (0.5, 10.0)
_NOT_INSTALLED_S = 15.0


class _Expired(Exception):
    """The place to watch from is too old to be known."""


class _NotInstalled(Exception):
    """The API server does not know the kind."""


class Watching:
    """The objects of one collection, by namespace (empty for cluster-scoped ones) and name, as fresh as can be."""

    def __init__(self, api: ApiClient, path: str, selector: str, changed: Callable[[], None]) -> None:
        """`changed` is called after every change of `objects`."""
        self._api, self._path, self._selector, self._changed = api, path, selector, changed
        self.objects: dict[Key, Object] = {}
        self.listed = asyncio.Event()
        """Set once the whole collection was seen, or is known not to be installed."""

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                while True:
                    version = await self._watch(version)
            except _Expired:
                log.info("watch expired, listing again", extra={"path": self._path})
            except _NotInstalled:
                self._not_installed()
                await asyncio.sleep(_NOT_INSTALLED_S * random.uniform(0.8, 1.2))
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as error:
                pause = min(_BACKOFF_S[1], _BACKOFF_S[0] * 2**failures) * random.uniform(0.5, 1.0)
                failures = min(failures + 1, 8)
                log.warning("API server lost", extra={"path": self._path, "error": repr(error), "retry_in_s": pause})
                await asyncio.sleep(pause)

    async def _list(self) -> str:
        """Replace what is known by what there is; returns the version to watch from."""
        found: dict[Key, Object] = {}
        token, version = None, ""
        while True:
            query = {"limit": str(_PAGE)} | ({"continue": token} if token else {})
            async with await self._get(query, _LIST_TIMEOUT) as response:
                page = await response.json()
            found |= {_key(item): item for item in page["items"]}
            version, token = page["metadata"]["resourceVersion"], page["metadata"].get("continue")
            if not token:
                break
        self.objects = found
        self.listed.set()
        self._changed()
        return str(version)

    async def _watch(self, version: str) -> str:
        """Take changes until the server ends the watch; returns the version to go on from."""
        seconds = random.randint(*_WATCH_S)
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        timeout = aiohttp.ClientTimeout(sock_connect=5, sock_read=seconds + 20)
        async with await self._get(query | {"timeoutSeconds": str(seconds)}, timeout) as response:
            async for event in _lines(response):
                version = self._take(event)
        return version

    def _take(self, event: Object) -> str:
        item = event["object"]
        if event["type"] == "ERROR":
            if item.get("code") == 410:
                raise _Expired
            raise ValueError(f"the watch of {self._path} answered: {item.get('message', item)}")
        if event["type"] == "DELETED":
            self.objects.pop(_key(item), None)
        elif event["type"] != "BOOKMARK":
            self.objects[_key(item)] = item
        if event["type"] != "BOOKMARK":
            self._changed()
        return str(item["metadata"]["resourceVersion"])

    async def _get(self, query: dict[str, str], timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await self._api.call_api(
            self._path,
            "GET",
            query_params=list((query | ({"labelSelector": self._selector} if self._selector else {})).items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        if response.status == 200:
            return response
        async with response:
            said = (await response.text())[:300]
        if response.status == 410:
            raise _Expired
        if response.status == 404:
            raise _NotInstalled
        raise ValueError(f"GET {self._path} answered {response.status}: {said}")

    def _not_installed(self) -> None:
        if not self.listed.is_set():
            log.warning("kind not installed, going on without it", extra={"path": self._path})
        self.objects = {}
        self.listed.set()
        self._changed()


def _key(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    """The events of a watch; an object may be longer than any read of the socket."""
    rest = b""
    async for data in response.content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line:
                yield json.loads(line)
