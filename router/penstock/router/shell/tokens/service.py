"""Tokens for the router's requests: who computes them, where, and for how long at most.

Short prompts are computed where the request stands, long ones in threads (the tokenizer lets others run meanwhile)
with a bounded queue and a time-out. A model's tokenizer is loaded when its first request comes, chosen by `choice`,
kept while models asked for more recently leave room, and looked at again now and then. Whatever goes wrong ends in
`TokensUnknown`: a pick without hashes is still a pick.
"""

import asyncio
import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace
from penstock.core.tokens.errors import ModelFilesError, PromptError, TokensUnknown
from penstock.core.tokens.files import read_files
from penstock.core.tokens.prompts import Adapter, BlockNaming, Prompt, prompts_of
from penstock.core.tokens.requests import ChatPrompt, PromptRequest
from penstock.core.tokens.tokenizer import BuiltinTokenizer, ModelTokenizer, PromptTokenizer
from penstock.router.shell.tokens.choice import Candidate, Choice, Kind, choose, kind_of, probes, try_probe
from penstock.router.shell.tokens.engine import EngineTokenizer, NoEngine
from penstock.router.shell.tokens.folders import Fingerprint, ModelFolders

log = logging.getLogger("penstock.router.tokens")

Source = Literal["ids", "files", "built-in", "engine"]
"""Who made the tokens: the client itself, a model's files, the built-in tokenizer, an engine."""


class Unavailable(TokensUnknown):
    """This router has no time or place to compute the tokens now."""

    def __init__(self, message: str, reason: str) -> None:
        """`reason` is one word for metrics: `Loading`, `Busy` or `TimedOut`."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """Limits. Times are seconds."""

    inline_characters: int = 2048
    """Longest text computed on the event loop: about a millisecond."""
    threads: int = 2
    queue: int = 64
    """Prompts in threads or waiting for one; more are not computed."""
    compute_timeout: float = 1.0
    """Longest wait for a thread's answer."""
    load_timeout: float = 2.0
    """Longest wait of a request for its model's tokenizer; loading itself goes on."""
    recheck: float = 60.0
    """How long a choice holds before files and engines are looked at again."""
    retry: float = 5.0
    """The same, for a choice that no engine confirmed; and how long no engine is asked after none could tell."""
    models: int = 16
    """Models whose tokenizers are kept; a large one takes some 100 MB."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Whose tokens are wanted."""

    model: str
    """The served name; adapters go by their base's."""
    naming: BlockNaming
    engines: Sequence[str] = ()
    """Base URLs of ready engines of the model, any order."""
    adapter: Adapter | None = None


class Tokenized(Struct, frozen=True):
    """A request's prompts, and who made them."""

    prompts: tuple[Prompt, ...]
    source: Source


@dataclass(slots=True)
class _Model:
    choice: Choice | None = None
    checked: float = 0.0
    """When the choice was made, on the service's clock."""
    fingerprint: Fingerprint | None = None
    from_files: Candidate | None = None
    task: "asyncio.Task[None] | None" = None
    silent_until: dict[Kind, float] = field(default_factory=dict)
    """Until when engines are not asked for prompts of a kind, since none could tell of the last one."""


@dataclass(slots=True)
class TokenCounts:
    """What was done so far, for metrics."""

    tokenized: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """Requests by model and source."""
    unknown: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """Requests without tokens by model and reason."""
    loads: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """Tokenizers loaded by model and outcome: `ok`, or `failed`."""


class TokenService:
    """One per process; belongs to one event loop."""

    def __init__(
        self,
        roots: Sequence[Path],
        engine: EngineTokenizer,
        clock: Callable[[], float],
        *,
        options: TokenOptions | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`clock` in seconds, for ages; `now` is what templates call today, on the engines' clock."""
        self.counts = TokenCounts()
        self._folders = ModelFolders(roots)
        self._engine = engine
        self._clock, self._now = clock, now
        self._options = options or TokenOptions()
        self._models: OrderedDict[str, _Model] = OrderedDict()
        # Our threads are the ones there are: the library's own pool would take every processor of the node.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._pool = ThreadPoolExecutor(self._options.threads, "tokens")
        # Of its own, so that a large vocabulary being read keeps nobody's prompt waiting.
        self._loader = ThreadPoolExecutor(1, "tokens-load")
        self._busy = 0
        self._builtin = BuiltinTokenizer()
        self._ids = Candidate("ids", self._builtin)

    async def close(self) -> None:
        """End loading and give the threads back."""
        tasks = [model.task for model in self._models.values() if model.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in (self._pool, self._loader):
            pool.shutdown(wait=False, cancel_futures=True)

    async def tokenize(self, request: PromptRequest, ask: Ask) -> Tokenized:
        """A request's prompts. Raises `PromptError` where engines would refuse it, else `TokensUnknown`."""
        return self.at_once(request, ask) or await self._counted_later(request, ask)

    def at_once(self, request: PromptRequest, ask: Ask) -> Tokenized | None:
        """The same where nothing has to be waited for, which spares most requests a task; `None` where something has.

        That is a thread for a long prompt, an engine's answer, or a choice of tokenizer that is to be made.
        """
        if request.characters > self._options.inline_characters:
            return None
        if _ids_only(request):
            candidate: Candidate | None = self._ids
        else:
            model = self._models.get(ask.model)
            if model is None or model.choice is None or (model.task is None and self._aged(model)):
                return None
            self._models.move_to_end(ask.model)
            found = model.choice.by_kind.get(kind_of(request))
            if found is None and self._clock() >= model.silent_until.get(kind_of(request), 0.0):
                return None
            candidate = found
        try:
            if candidate is None:
                raise _silent(ask)
            prompts = prompts_of(request, candidate.tokenizer, ask.naming, self._now(), ask.adapter)
        except TokensUnknown as unknown:
            self.counts.unknown[ask.model, unknown.reason] += 1
            raise
        self.counts.tokenized[ask.model, candidate.source] += 1
        return Tokenized(prompts, candidate.source)

    async def _counted_later(self, request: PromptRequest, ask: Ask) -> Tokenized:
        try:
            done = await self._tokenize(request, ask)
        except TokensUnknown as unknown:
            self.counts.unknown[ask.model, unknown.reason] += 1
            raise
        self.counts.tokenized[ask.model, done.source] += 1
        return done

    async def _tokenize(self, request: PromptRequest, ask: Ask) -> Tokenized:
        if _ids_only(request):
            return Tokenized(await self._compute(request, ask, self._builtin), "ids")
        choice = await self._choice(ask)
        candidate = choice.by_kind.get(kind_of(request))
        if candidate is not None:
            return Tokenized(await self._compute(request, ask, candidate.tokenizer), candidate.source)
        told = replace(request, prompt=tuple(await self._asked(request, ask)))
        return Tokenized(await self._compute(told, ask, self._builtin), "engine")

    async def _asked(self, request: PromptRequest, ask: Ask) -> list[list[int]]:
        """An engine's ids. Where none can tell they are left alone for a while, or each request would wait in vain."""
        model, kind = self._model(ask.model), kind_of(request)
        if self._clock() < model.silent_until.get(kind, 0.0):
            raise _silent(ask)
        try:
            return await self._engine.ids(ask.engines, request)
        except NoEngine:
            model.silent_until[kind] = self._clock() + self._options.retry
            raise

    # Computing.

    async def _compute(self, request: PromptRequest, ask: Ask, tokenizer: PromptTokenizer) -> tuple[Prompt, ...]:
        def work() -> tuple[Prompt, ...]:
            return prompts_of(request, tokenizer, ask.naming, self._now(), ask.adapter)

        if request.characters <= self._options.inline_characters:
            return work()
        if self._busy >= self._options.queue:
            raise Unavailable(f"{self._busy} prompts are being made into tokens already", "Busy")
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._busy += 1
        future.add_done_callback(self._done)
        try:
            async with asyncio.timeout(self._options.compute_timeout):
                # A thread cannot be stopped: it stays counted until it ends, however long nobody waits for it.
                return await asyncio.shield(future)
        except TimeoutError:
            raise Unavailable(f"no tokens within {self._options.compute_timeout} s", "TimedOut") from None

    def _done(self, future: "asyncio.Future[tuple[Prompt, ...]]") -> None:
        self._busy -= 1
        if not future.cancelled():
            future.exception()  # looked at here, since nobody may wait any more

    # Choosing.

    async def _choice(self, ask: Ask) -> Choice:
        """The model's choice; made now where there is none, made anew behind the scenes where it has aged."""
        model = self._model(ask.model)
        if model.task is None and self._aged(model):
            model.task = asyncio.get_running_loop().create_task(self._choose(model, ask))
        if model.choice is None and model.task is not None:
            # Waited for, not awaited: that this request gives up, or the task, is not the other's affair.
            await asyncio.wait((model.task,), timeout=self._options.load_timeout)
        if model.choice is None:
            raise Unavailable(f"the tokenizer of {ask.model} is not loaded yet", "Loading")
        return model.choice

    def _model(self, name: str) -> _Model:
        model = self._models.setdefault(name, _Model())
        self._models.move_to_end(name)
        while len(self._models) > self._options.models:
            _, oldest = self._models.popitem(last=False)
            if oldest.task is not None:
                oldest.task.cancel()
        return model

    def _aged(self, model: _Model) -> bool:
        if model.choice is None:
            return True
        holds = self._options.recheck if model.choice.verified else self._options.retry
        return self._clock() - model.checked > holds

    async def _choose(self, model: _Model, ask: Ask) -> None:
        loop = asyncio.get_running_loop()
        try:
            wanted = probes(ask.model)
            candidates, made = await loop.run_in_executor(self._loader, self._candidates, model, ask.model, wanted)
            told = await self._told(ask, wanted)
            if told is None and model.choice is not None and model.choice.verified:
                return  # what an engine once confirmed is better than what nobody does
            before, model.choice = model.choice, choose(candidates, made, told)
            if before != model.choice:
                sources = {kind: candidate.source for kind, candidate in model.choice.by_kind.items()}
                log.info("tokenizer chosen", extra={"model": ask.model, "sources": sources, "asked": told is not None})
        except Exception:
            log.exception("no tokenizer could be chosen", extra={"model": ask.model})
        finally:
            model.checked, model.task = self._clock(), None

    def _candidates(
        self, model: _Model, name: str, wanted: dict[Kind, PromptRequest]
    ) -> tuple[list[Candidate], list[dict[Kind, list[int] | None]]]:
        """Every candidate with its ids of the probes. Runs in the loading thread."""
        self._load(model, name)
        own = [model.from_files] if model.from_files is not None else []
        candidates = [*own, Candidate("built-in", self._builtin)]
        now = self._now()
        return candidates, [{kind: try_probe(c, request, now) for kind, request in wanted.items()} for c in candidates]

    def _load(self, model: _Model, name: str) -> None:
        """Load the model's files where they are new or changed."""
        folder = self._folders.find(name)
        if folder is None:
            model.from_files = model.fingerprint = None
            return
        try:
            fingerprint = self._folders.fingerprint(folder)
            if fingerprint == model.fingerprint:
                return
            tokenizer = ModelTokenizer(read_files(self._folders.read(folder)))
            model.from_files, outcome = Candidate("files", tokenizer), "ok"
        except (ModelFilesError, OSError) as problem:
            log.warning("tokenizer files are of no use", extra={"model": name, "problem": str(problem)})
            fingerprint, model.from_files, outcome = (), None, "failed"
        model.fingerprint = fingerprint
        self.counts.loads[name, outcome] += 1

    async def _told(self, ask: Ask, wanted: dict[Kind, PromptRequest]) -> dict[Kind, list[int]] | None:
        """What an engine makes of the probes; None where none can be asked at all."""
        told: dict[Kind, list[int]] = {}
        for kind, request in wanted.items():
            try:
                (told[kind],) = await self._engine.ids(ask.engines, request)
            except PromptError:
                continue  # this kind the engine refuses: nobody needs its tokens
            except TokensUnknown as problem:
                log.info("no engine to compare with", extra={"model": ask.model, "problem": str(problem)})
                return None
        return told


def _ids_only(request: PromptRequest) -> bool:
    """Whether the client gave ids, so that there is nothing to make into tokens."""
    return not isinstance(request.prompt, ChatPrompt) and not any(isinstance(p, str) for p in request.prompt)


def _silent(ask: Ask) -> NoEngine:
    return NoEngine(f"no engine could tell the tokens of {ask.model} a moment ago")
