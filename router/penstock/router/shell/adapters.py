"""LoRA adapters that workers have loaded: whose model they adapt, from where, and who has which.

Adapters are loaded into engines at run time (`/v1/load_lora_adapter`), so engines are asked: `/v1/models` lists an
adapter with its base as `parent` and its path as `root`. The path matters, because engines put it into the hashes of an
adapter's blocks. A request that names an adapter is served as its base model, by those workers alone that have it.

What a worker last said stays until it says something else: a list that cannot be had says nothing about adapters.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx
import msgspec
from penstock.core.fleet import Fleet, Worker
from penstock.core.tokens.prompts import Adapter
from penstock.core.wire import openai

log = logging.getLogger("penstock.router.adapters")

_TIMEOUT = 2.0
_AT_ONCE = 16
_MAX_BYTES = 256 * 1024
_MAX_ADAPTERS = 1024
"""Adapters of one worker that are known; more are passed over."""

_listing = msgspec.json.Decoder(openai.ModelList)


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """One adapter that at least one worker of its base model has loaded."""

    name: str
    path: str
    """As most workers have it; who has another path under this name is not asked."""
    base: str
    """The model it adapts, as served here."""
    workers: frozenset[str]
    """Names of the workers that have it."""

    @property
    def key(self) -> Adapter:
        """What goes into the hashes of its blocks."""
        return self.name, self.path


def read_listing(body: bytes, served: str) -> dict[str, str]:
    """Adapters in a worker's `/v1/models`, paths by name; `msgspec.DecodeError` or `ValueError` where it is none.

    `served` is the base model's name here: an adapter cannot take it.
    """
    cards = _listing.decode(body).data
    found = {card.id: card.root for card in cards if card.parent is not None and card.id != served}
    return dict(list(found.items())[:_MAX_ADAPTERS])


def gathered(told: Mapping[str, tuple[str, Mapping[str, str]]]) -> dict[str, LoadedAdapter]:
    """Adapters by name from what workers told: worker's name -> (its model, paths by adapter).

    One name is one adapter: of several bases and paths the one most workers have counts, then the first by name.
    """
    votes: dict[str, Counter[tuple[str, str]]] = {}
    for base, paths in told.values():
        for name, path in paths.items():
            votes.setdefault(name, Counter())[base, path] += 1
    adapters = {}
    for name, counted in votes.items():
        base, path = min(counted, key=lambda known: (-counted[known], known))
        workers = frozenset(w for w, (model, paths) in told.items() if model == base and paths.get(name) == path)
        adapters[name] = LoadedAdapter(name, path, base, workers)
    return adapters


class Adapters:
    """The adapters known now, and the asking for them."""

    def __init__(self, fleet: Fleet) -> None:
        """None known yet."""
        self._fleet = fleet
        self._told: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._known: dict[str, LoadedAdapter] = {}

    def find(self, name: str) -> LoadedAdapter | None:
        """The adapter of that name, `None` where no worker has one."""
        return self._known.get(name)

    def all(self) -> list[LoadedAdapter]:
        """Every adapter, by name."""
        return [self._known[name] for name in sorted(self._known)]

    def without(self, adapter: LoadedAdapter) -> frozenset[int]:
        """Slots of the base model's workers that do not have the adapter: not to be picked for it."""
        slots = self._fleet.workers()
        here = (slot for name, slot in slots.items() if name not in adapter.workers)
        return frozenset(slot for slot in here if self._fleet.worker(slot).model == adapter.base)

    def learn(self, worker: Worker, paths: Mapping[str, str]) -> None:
        """A worker says which adapters it has, paths by name."""
        before = self._told.get(worker.name)
        if before == (worker.model, paths) or (before is None and not paths):
            return
        self._told[worker.name] = (worker.model, paths)
        self._gather()
        log.info("adapters", extra={"worker": worker.name, "model": worker.model, "adapters": sorted(paths)})

    def forget(self, gone: Iterable[str]) -> None:
        """Workers that are here no more have nothing."""
        lost = [name for name in gone if self._told.pop(name, None) is not None]
        if lost:
            self._gather()

    def _gather(self) -> None:
        self._known = gathered(self._told)

    async def run(self, interval: float) -> None:
        """Ask every ready worker once per interval (seconds), until cancelled."""
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=False) as client:
            while True:
                await self.ask_all(client)
                # Jitter keeps several routers from asking every worker at the same moment.
                await asyncio.sleep(interval * random.uniform(0.8, 1.2))

    async def ask_all(self, client: httpx.AsyncClient) -> None:
        """Ask every ready worker now."""
        fleet = self._fleet
        self.forget(self._told.keys() - fleet.workers().keys())
        workers = [fleet.worker(slot) for slot in fleet.workers().values() if fleet.ready[slot]]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(worker: Worker) -> None:
            async with gate:
                await self._ask(client, worker)

        await asyncio.gather(*(one(worker) for worker in workers))

    async def _ask(self, client: httpx.AsyncClient, worker: Worker) -> None:
        try:
            async with client.stream("GET", f"http://{worker.address}/v1/models") as response:
                response.raise_for_status()
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _MAX_BYTES:
                        raise ValueError(f"its list of models has more than {_MAX_BYTES} bytes")
            paths = read_listing(body, worker.model)
        except (httpx.HTTPError, msgspec.DecodeError, ValueError, RecursionError) as problem:
            log.debug("no list of adapters", extra={"worker": worker.name, "problem": repr(problem)})
            return
        if self._fleet.slot_of(worker.name) is not None:
            self.learn(worker, paths)
