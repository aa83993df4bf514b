"""Which tokenizer a model's prompts get: the one that an engine agrees with.

Files on our disk may be of another revision than the engine's, and an engine may have been started with a template of
its own. So a candidate (the model's files, then the built-in tokenizer) is tried once on probes, and serves only those
kinds of prompt for which its ids equal what an engine's `/tokenize` says. What no candidate gets right, engines are
asked. Without an engine to compare with, the model's files are believed until one can be asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.requests import ChatPrompt, PromptRequest
from penstock.core.tokens.tokenizer import PromptTokenizer

Kind = Literal["text", "chat", "tools"]
"""Prompts that can go wrong each in their own way: a text, a chat, a chat with tools."""

_TEXT = 'Which worker holds  the first\n\tblocks? {"n": [1, 20, 300]} Grüße, 東京 🙂 <tag>'
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "probe", "parameters": {"type": "object", "properties": {"b": {"type": "string"}}}},
}
_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": _TEXT},
    {"role": "assistant", "content": " The first. "},
    {"role": "user", "content": [{"type": "text", "text": "And then?"}, {"type": "text", "text": "& why"}]},
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tokenizer that may be the engine's; `ids`: one that is never asked, since the client gave ids."""

    source: Literal["files", "built-in", "ids"]
    tokenizer: PromptTokenizer


@dataclass(frozen=True, slots=True)
class Choice:
    """Who makes which kind of prompt into tokens; a kind that is missing is left to engines."""

    by_kind: Mapping[Kind, Candidate]
    verified: bool
    """Whether an engine was asked."""


def kind_of(request: PromptRequest) -> Kind:
    """The kind of a request's prompt."""
    if not isinstance(request.prompt, ChatPrompt):
        return "text"
    return "chat" if request.prompt.tools is None else "tools"


def probes(model: str) -> dict[Kind, PromptRequest]:
    """One request per kind, each with what templates and tokenizers differ in."""
    return {
        "text": PromptRequest(model, (_TEXT,), special=True),
        "chat": PromptRequest(model, ChatPrompt(_TURNS), special=False),
        "tools": PromptRequest(model, ChatPrompt(_TURNS, [_TOOL]), special=False),
    }


def try_probe(candidate: Candidate, request: PromptRequest, now: datetime) -> list[int] | None:
    """The candidate's ids of a probe; None where it has none to give."""
    prompt = request.prompt
    try:
        text = candidate.tokenizer.render(prompt, now) if isinstance(prompt, ChatPrompt) else prompt[0]
        return candidate.tokenizer.encode(str(text), special=request.special)
    except (PromptError, TokensUnknown):
        return None


def choose(
    candidates: Sequence[Candidate],
    made: Sequence[Mapping[Kind, list[int] | None]],
    told: Mapping[Kind, list[int]] | None,
) -> Choice:
    """The choice from what each candidate `made` of the probes and what an engine `told` (None: nothing)."""
    by_kind: dict[Kind, Candidate] = {}
    for candidate, ids in zip(candidates, made, strict=True):
        for kind, own in ids.items():
            right = candidate.source == "files" if told is None else kind in told and own == told[kind]
            if own is not None and right:
                by_kind.setdefault(kind, candidate)
    return Choice(by_kind, told is not None)
