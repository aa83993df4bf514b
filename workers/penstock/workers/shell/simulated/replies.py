"""Answers in the making: what a request's sequences produce, turned into a stream or a whole response.

The driver hands over tokens one by one and calls `flush` when it has handed over all that are due; a reply writes one
piece for everything that came since. Under load, or to a slow reader, a chunk therefore holds several tokens, as it
does with a real engine.
"""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec
from penstock.core.engine import Finished
from penstock.core.tokens.builtin import decode, word
from penstock.core.wire import openai
from penstock.core.wire.openai import ChunkWriter, PromptTokensDetails, Usage
from penstock.workers.decisions.simulated.requests import Choice, Generation
from penstock.workers.shell.simulated.http import Exchange

_serial = itertools.count()


class _Text:
    """One choice's text so far."""

    __slots__ = ("choice", "finished", "limit", "pending", "reason", "stop", "tokens", "written")

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.pending: list[str] = []
        self.tokens = 0
        self.written = 0
        self.limit: int | None = None
        self.finished = False
        self.reason: str | None = None
        self.stop: int | str | None = None

    def take(self, opens: bool) -> str:
        """The text that came since the last call; words begin with a space, except where a reply opens."""
        text = "".join(self.pending)
        self.pending.clear()
        if opens and not self.written and text:
            text = text[1:]
        if self.limit is not None:
            text = text[: max(0, self.limit - self.written)]
        self.written += len(text)
        return text


class Reply(ABC):
    """What both kinds of answer share: texts, usage, the client's disconnection."""

    def __init__(
        self,
        exchange: Exchange,
        generation: Generation,
        request_id: str,
        *,
        chat: bool,
        details: bool,
        continues: bool = False,
    ) -> None:
        self.exchange = exchange
        self.generation = generation
        self.id = request_id
        self._key = f"{request_id}-{next(_serial):08x}"
        self.chat = chat
        self.opens = chat and not continues
        """Whether the text begins a message; the rest of one, and of a completion, begins with a space."""
        self.created = int(time.time())
        self.texts = [_Text(choice) for choice in generation.choices]
        self.on_gone: Callable[[], None] | None = None
        """Called when nobody waits for the answer any more."""
        self.transfer_params: Any = None
        self.hit_elsewhere: int | None = None
        """What the worker that computed the prompt found cached of it: usage tells that, as vLLM's does since 0.31."""
        self._details = details
        self._open = len(self.texts)
        self._cached = 0
        self._ended = False
        exchange.on_close = self._gone

    def sequence(self, index: int) -> str:
        """The engine's name for a choice: unique, though clients may send the same request id twice."""
        return f"{self._key}-{index}"

    def token(self, index: int, token: int) -> None:
        """Take one output token of a choice."""
        text = self.texts[index]
        text.pending.append(" " + word(token))
        text.tokens += 1

    def finish(self, index: int, end: Finished) -> None:
        """Take the end of a choice."""
        text = self.texts[index]
        choice = text.choice
        text.finished = True
        text.reason = str(end.reason)
        if end.reason == "abort":
            self._open -= 1
            return
        text.reason, text.stop = choice.reason, choice.stop
        if index % self.generation.n == 0:
            # Copies of one prompt share its blocks; only the first lookup says what the cache had.
            found = end.cached_tokens if self.hit_elsewhere is None else self.hit_elsewhere
            self._cached += min(max(0, found), end.prompt_tokens)
        self._open -= 1

    def cut_at(self, index: int, output: list[int]) -> None:
        """Cut a choice's text before its stop string; `output` is all it will say."""
        text = self.texts[index]
        if text.choice.stop_text is not None:
            whole = decode(output) if self.opens else " " + decode(output)
            text.limit = whole.find(text.choice.stop_text)

    def usage(self) -> Usage:
        """Token counts so far."""
        completion = sum(text.tokens for text in self.texts)
        details = PromptTokensDetails(self._cached) if self._details else None
        prompt = self.generation.prompt_tokens
        return Usage(prompt, prompt + completion, completion, details)

    @abstractmethod
    def flush(self) -> None:
        """Write what there is to write."""

    def fail(self, message: str, kind: str = "InternalServerError", status: int = 500) -> None:
        """End with an error."""
        self._ended = True
        self.exchange.respond(status, openai.error_body(message, kind, status))

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return self._open == 0

    def _gone(self) -> None:
        self._ended = True
        if self.on_gone is not None:
            self.on_gone()


class WholeReply(Reply):
    """One JSON body when all choices have ended."""

    def flush(self) -> None:
        """Answer if everything is there."""
        if not self.done or self._ended:
            return
        self._ended = True
        self.exchange.respond(200, msgspec.json.encode(self._body()))

    def _body(self) -> openai.Completion | openai.ChatCompletion:
        common: dict[str, Any] = {
            "id": self.id,
            "created": self.created,
            "model": self.generation.model,
            "usage": self.usage(),
            "kv_transfer_params": self.transfer_params,
        }
        if self.chat:
            return openai.ChatCompletion(choices=[self._chat_choice(text) for text in self.texts], **common)
        return openai.Completion(choices=[self._choice(text) for text in self.texts], **common)

    def _choice(self, text: _Text) -> openai.CompletionChoice:
        return openai.CompletionChoice(
            index=text.choice.index,
            text=text.take(self.opens),
            finish_reason=text.reason,  # type: ignore[arg-type]
            stop_reason=text.stop,
        )

    def _chat_choice(self, text: _Text) -> openai.ChatChoice:
        return openai.ChatChoice(
            index=text.choice.index,
            message=openai.AssistantMessage(content=text.take(self.opens)),
            finish_reason=text.reason,  # type: ignore[arg-type]
            stop_reason=text.stop,
        )


class StreamReply(Reply):
    """Server-sent events as tokens come. The head goes out at once, as vLLM's does: it promises nothing yet."""

    def __init__(
        self,
        exchange: Exchange,
        generation: Generation,
        request_id: str,
        *,
        chat: bool,
        details: bool,
        usage: bool,
        continuous: bool = False,
        continues: bool = False,
    ) -> None:
        super().__init__(exchange, generation, request_id, chat=chat, details=details, continues=continues)
        self._usage = usage
        self._continuous = continuous
        self._chunks = ChunkWriter(request_id, self.created, generation.model, chat=chat, usage=usage)
        self._opened = False
        exchange.on_drain = self.flush
        exchange.begin()

    def flush(self) -> None:
        """Write one chunk for each choice that has something new; nothing while the client does not read."""
        if self._ended or not self.exchange.writable:
            return
        pieces = self._opening()
        for text in self.texts:
            if text.pending or text.finished:
                pieces.append(self._chunk(text))
        if self.done:
            self._end(pieces)
        elif pieces:
            self.exchange.write(b"".join(pieces))

    def fail(self, message: str, kind: str = "InternalServerError", status: int = 500) -> None:
        """The head is out already: the error comes as an event, then the end."""
        self._ended = True
        self.exchange.end(b"data: " + openai.error_body(message, kind, status) + b"\n\n" + openai.DONE)

    def _opening(self) -> list[bytes]:
        """A chat's first chunks name the role; they come with the first token, not before."""
        if not self.chat or self._opened or not any(text.pending or text.finished for text in self.texts):
            return []
        self._opened = True
        return [self._chunks.opening(text.choice.index) for text in self.texts]

    def _chunk(self, text: _Text) -> bytes:
        piece = text.take(self.opens)
        reason, stop = (text.reason, text.stop) if text.finished else (None, None)
        text.finished = False  # Its last chunk is on the way; `_open` knows that it has ended.
        usage = self.usage() if self._continuous else None
        return self._chunks.text(text.choice.index, piece, reason, stop, usage)

    def _end(self, pieces: list[bytes]) -> None:
        self._ended = True
        if self._usage:
            pieces.append(self._chunks.usage(self.usage()))
        pieces.append(openai.DONE)
        self.exchange.end(b"".join(pieces))
