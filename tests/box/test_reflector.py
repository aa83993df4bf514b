"""The mirror of Services and EndpointSlices: complete, current, and steady while the API server is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from penstock.box.services import reflector as reflector_module
from penstock.box.services.reflector import Reflector


def _item(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "resourceVersion": str(version)}, **more}


class _Stream(httpx.AsyncByteStream):
    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in self._events:
            yield json.dumps(event).encode() + b"\n"


class _Api:
    """Gives the prepared answers in order; then stays silent, as a watch without news does."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.URL] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url)
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer)
        return (
            httpx.Response(200, stream=_Stream(answer))
            if isinstance(answer, list)
            else httpx.Response(200, json=answer)
        )


def _page(*items: dict[str, Any], version: int = 1, more: str = "") -> dict[str, Any]:
    return {"items": list(items), "metadata": {"resourceVersion": str(version), "continue": more}}


async def _mirror(api: _Api, until: Callable[[Reflector], bool]) -> Reflector:
    async with httpx.AsyncClient(transport=httpx.MockTransport(api), base_url="http://api") as client:
        reflector = Reflector(client, "/things", lambda: None)
        task = asyncio.create_task(reflector.run())
        async with asyncio.timeout(20):
            while not until(reflector):  # noqa: ASYNC110 - a dictionary's content has no event
                await asyncio.sleep(0.01)
        task.cancel()
        return reflector


def _names(reflector: Reflector) -> set[str]:
    return {name for _, name in reflector.items}


async def test_it_lists_all_pages_and_follows_the_watch() -> None:
    events = [
        {"type": "ADDED", "object": _item("c", 3)},
        {"type": "MODIFIED", "object": _item("a", 4, changed=True)},
        {"type": "DELETED", "object": _item("b", 5)},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}},
    ]
    api = _Api(_page(_item("a", 1), more="next"), _page(_item("b", 2), version=2), events)
    mirror = await _mirror(api, lambda r: _names(r) == {"a", "c"} and len(api.asked) == 4)
    assert mirror.items[("ns", "a")]["changed"] is True
    assert api.asked[1].params["continue"] == "next"
    # The next watch begins where the last one ended, bookmarks included.
    assert [url.params.get("resourceVersion") for url in api.asked[2:]] == ["2", "9"]


async def test_a_watch_that_is_too_old_begins_again_with_a_list() -> None:
    gone = [{"type": "ERROR", "object": {"code": 410}}]
    api = _Api(_page(_item("a", 1)), gone, _page(_item("b", 5), version=5))
    await _mirror(api, lambda r: _names(r) == {"b"})


async def test_while_the_api_server_is_away_the_last_objects_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector_module, "_FIRST_PAUSE", 0.001)
    away: list[Any] = [httpx.ConnectError("refused"), 503, httpx.ReadTimeout("silent")]
    seen: list[set[str]] = []
    api = _Api(_page(_item("a", 1)), *away, _page(_item("a", 1), _item("b", 2)))

    def until(reflector: Reflector) -> bool:
        if reflector.items:
            seen.append(_names(reflector))
        return _names(reflector) == {"a", "b"}

    await _mirror(api, until)
    assert all("a" in names for names in seen)
