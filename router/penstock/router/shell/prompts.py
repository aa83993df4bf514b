"""What a pick needs to know of a prompt: its tokens, its block hashes, and who has them cached.

Only policies that read prompts ask for it (`reads_prompts`). Whatever goes wrong (no tokenizer, a prompt engines
would refuse, no time) costs the hashes and never the request: it is picked for by load.

Who has what cached is the longer of two answers: the engines' own KV events, and what our recent picks will have left
there. The second holds for seconds where events will confirm it, for minutes where none ever come.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import httpx
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from penstock.core.fleet import Fleet, Pick, PrefixIndex, Request, Worker
from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.prompts import BlockNaming
from penstock.core.tokens.requests import read_request
from penstock.router.decisions.kv_index import Knowledge, RecentPicks
from penstock.router.shell.kv_events import KvEvents
from penstock.router.shell.settings import Settings
from penstock.router.shell.tokens import Ask, EngineTokenizer, HitBooks, Tokenized, TokenService

log = logging.getLogger("penstock.router.prompts")

DEFAULT_BLOCK_TOKENS = 16
"""Tokens of a block until an engine's metrics page says otherwise: vLLM's own default."""
CONFIRMED_TTL, UNCONFIRMED_TTL = 5.0, 120.0
"""Seconds a pick is remembered: where events confirm it, and where they never will."""
_CACHED = re.compile(rb'"cached_tokens": ?([0-9]{1,9})')
_ENGINES_ASKED = 2
_ENGINE_TIMEOUT = 1.0


class Events(Protocol):
    """The engines' own events, indexed."""

    def sync(self) -> None:
        """Follow the fleet."""
        ...

    def index(self, model: str) -> PrefixIndex:
        """What a model's workers said they hold."""
        ...

    def tells(self, worker: Worker) -> bool:
        """Whether this worker sends events."""
        ...


class EngineEvents:
    """The engines' KV events, as picks ask for them."""

    def __init__(self, events: KvEvents) -> None:
        """Over these streams."""
        self._events = events
        self._telling: dict[str, bool] = {}
        self._until = 0.0

    def sync(self) -> None:
        """Follow the fleet."""
        self._events.sync()

    def index(self, model: str) -> PrefixIndex:
        """What a model's workers said they hold."""
        return self._events.index(model)

    def tells(self, worker: Worker) -> bool:
        """Whether this worker sends events; looked up anew once a second."""
        now = self._events.clock()
        if now >= self._until:
            self._telling, self._until = {}, now + 1.0
        known = self._telling.get(worker.name)
        if known is None:
            known = self._telling[worker.name] = self._events.knowledge(worker) is not Knowledge.UNKNOWN
        return known


class _Known:
    """Both answers for one model as one index."""

    def __init__(self, model: str, events: Events | None, recent: RecentPicks) -> None:
        self._model, self._events, self._recent = model, events, recent

    def longest_prefix(self, hashes: Sequence[bytes], slots: int) -> NDArray[np.int64]:
        """Blocks of this prompt each worker holds or will hold shortly, shape (slots,)."""
        guessed = self._recent.longest_prefix(hashes, slots)
        if self._events is None:
            return guessed
        return np.maximum(guessed, self._events.index(self._model).longest_prefix(hashes, slots))


class Prompts:
    """Describes requests to the policies that read prompts. One per process, on the loop that picks."""

    def __init__(
        self, settings: Settings, fleet: Fleet, clock: Callable[[], float], events: Events | None = None
    ) -> None:
        """`clock` is the one picks are made by; without `events` only our own picks are known."""
        self._settings = settings
        self._fleet = fleet
        self._clock = clock
        self._events = events
        self._recent: dict[str, RecentPicks] = {}
        self._block_tokens: dict[str, int] = {}
        self._generations: dict[int, int] = {}
        self._asks: dict[str, Ask] = {}
        """By model, for as long as membership stands."""
        self._epoch = -1
        self._reporting: set[str] = set()
        self.books = HitBooks()
        limits = httpx.Limits(max_connections=16, max_keepalive_connections=4)
        self._http = httpx.AsyncClient(timeout=_ENGINE_TIMEOUT, limits=limits, trust_env=False)
        roots = [Path(root.strip()) for root in settings.model_folders.split(",") if root.strip()]
        self.tokens = TokenService(roots, EngineTokenizer(self._http, _ENGINE_TIMEOUT), clock)

    async def close(self) -> None:
        """End what runs beside the requests."""
        await self.tokens.close()
        await self._http.aclose()

    async def describe(self, request: Request, body: bytes, *, chat: bool) -> Request:
        """The request with its prompt's exact tokens and block hashes; as it was where they cannot be told."""
        self.follow(request.model)
        try:
            done = await self.tokens.tokenize(read_request(body, chat=chat), self._ask(request))
        except (PromptError, TokensUnknown) as problem:
            return _undescribed(request, problem)
        return _described(request, done)

    def describe_at_once(self, request: Request, body: bytes, *, chat: bool) -> Request | None:
        """The same where nothing has to be waited for; `None` where something has: then `describe` it."""
        self.follow(request.model)
        try:
            done = self.tokens.at_once(read_request(body, chat=chat), self._ask(request))
        except (PromptError, TokensUnknown) as problem:
            return _undescribed(request, problem)
        return None if done is None else _described(request, done)

    def follow(self, model: str) -> None:
        """Let picks for this model see who has what cached."""
        self.sync()
        self._register(model)

    def picked(self, request: Request, pick: Pick) -> None:
        """Remember that this prompt's blocks will be where the pick sends it; a pair leaves them at both ends."""
        recent = self._recent.get(request.model)
        if recent is None or not request.block_hashes:
            return
        now = self._clock()
        for slot in {pick.decode, pick.decode if pick.prefill is None else pick.prefill}:
            told = self._events is not None and self._events.tells(self._fleet.worker(slot))
            recent.remember(slot, request.block_hashes, now, CONFIRMED_TTL if told else UNCONFIRMED_TTL)

    def recent(self, model: str) -> RecentPicks | None:
        """What is remembered of our own picks for a model; `None` before its first request."""
        return self._recent.get(model)

    def finished(self, request: Request, expected: int | None, measured: int | None) -> int | None:
        """A request was answered: compare the hit its pick expected with the one its engine `measured` (see there).

        Returns the measured hit where it can be one.
        """
        if measured is not None and measured > request.prompt_tokens:
            measured = None
        if expected is not None and request.exact_tokens:
            self.books.record(request.model, request.prompt_tokens, expected, measured)
        return measured

    def measured(self, worker: str, tail: bytes) -> int | None:
        """Prompt tokens that a worker found in its cache, by the end of its answer; `None`: it does not say.

        To be asked of the worker that ran the prompt: one that got the prompt's KV from another reports nothing about
        its cache. Engines leave the figure out when it is 0: that is told from silence by their having given it before.
        """
        found = _CACHED.findall(tail)
        if found:
            self._reporting.add(worker)
            return int(found[-1])
        return 0 if worker in self._reporting and b'"usage":{' in tail else None

    def learned_block_size(self, model: str, tokens: int) -> None:
        """An engine of this model says how many tokens its blocks have."""
        if tokens >= 1 and self._block_tokens.get(model) != tokens:
            self._block_tokens[model] = tokens
            self._recent.pop(model, None)
            self._asks.pop(model, None)

    def sync(self) -> None:
        """Follow the fleet: forget what was remembered of workers that are gone. Cheap when nothing moved."""
        now = self._clock()
        for recent in self._recent.values():
            recent.expire(now)
        if self._events is not None:
            self._events.sync()
        fleet = self._fleet
        if self._epoch == fleet.epoch:
            return
        self._epoch = fleet.epoch
        self._asks = {}
        here = {slot: int(fleet.generation[slot]) for slot in fleet.workers().values()}
        for slot, generation in self._generations.items():
            if here.get(slot) != generation:
                for recent in self._recent.values():
                    recent.forget_worker(slot)
        self._generations = here
        self._reporting &= fleet.workers().keys()

    def _register(self, model: str) -> None:
        """Make sure picks for this model find its index."""
        if model in self._recent:
            return
        size = self._block_tokens.setdefault(model, DEFAULT_BLOCK_TOKENS)
        recent = self._recent[model] = RecentPicks(self._settings.kv_index_bytes // 4)
        self._fleet.index_by(model, _Known(model, self._events, recent), size)

    def _ask(self, request: Request) -> Ask:
        """Whose tokens are wanted, and who may be asked for them; an adapter's go by its base, its blocks do not."""
        model = request.model
        ask = self._asks.get(model)
        if ask is None:
            naming = BlockNaming(self._block_tokens[model], self._settings.kv_hash_seed)
            ready = self._fleet.view().ready(model)[:_ENGINES_ASKED]
            workers = [self._fleet.worker(int(slot)) for slot in ready]
            ask = self._asks[model] = Ask(model, naming, [f"http://{w.address}" for w in workers])
        return ask if request.adapter is None else dataclasses.replace(ask, adapter=request.adapter)


def _described(request: Request, done: Tokenized) -> Request:
    # A batch of prompts has no one prefix; its size is known all the same.
    hashes = done.prompts[0].block_hashes if len(done.prompts) == 1 else ()
    total = sum([prompt.tokens for prompt in done.prompts])
    return replace(request, prompt_tokens=total, exact_tokens=True, block_hashes=hashes)


def _undescribed(request: Request, problem: Exception) -> Request:
    log.debug("no tokens", extra={"request": request.id, "model": request.model, "problem": str(problem)})
    return request
