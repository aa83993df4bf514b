"""What of a request's body decides its tokens: read once, checked, and nothing else looked at."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from penstock.core.tokens.errors import PromptError, TokensUnknown

MAX_PROMPTS = 1024
"""Prompts one completion may batch."""
MAX_SALT = 1024
"""Characters of a cache salt, as in vLLM."""
MAX_TOKEN_ID = (1 << 32) - 1

TextOrIds = str | list[int]
Side = Literal["left", "right"]


class ChatPrompt(msgspec.Struct, frozen=True):
    """A chat completion's prompt."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    arguments: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """For the template: `chat_template_kwargs`, and what the request's `reasoning_effort` says."""


class PromptRequest(msgspec.Struct, frozen=True):
    """What one request's tokens and block hashes depend on."""

    model: str | None
    prompt: ChatPrompt | tuple[TextOrIds, ...]
    """A chat, or a completion's prompts."""
    special: bool
    """Whether the model's special tokens are put around a text: True for completions, False for chats, whose template
    writes them."""
    cache_salt: str | None = None
    keep: int | None = None
    """`truncate_prompt_tokens`: ids to keep; None: all."""
    side: Side = "left"

    @property
    def characters(self) -> int:
        """How much text there is to work on: what decides whether it is worth a thread."""
        if isinstance(self.prompt, ChatPrompt):
            chat = self.prompt
            shown = [message.get("content") or "" for message in chat.messages]
            return sum(len(str(value)) for value in (*shown, *(chat.tools or ()), *(chat.documents or ())))
        return sum(len(prompt) for prompt in self.prompt)


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    cache_salt: str | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Side | None = None


class _Completion(_Body, kw_only=True):
    prompt: Any = None
    prompt_embeds: Any = None


class _Chat(_Body, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


_completions = msgspec.json.Decoder(_Completion)
_chats = msgspec.json.Decoder(_Chat)


def read_request(body: bytes | bytearray | memoryview, *, chat: bool) -> PromptRequest:
    """A body of `/v1/chat/completions` (`chat`) or `/v1/completions`.

    Raises `PromptError` for one an engine refuses, `TokensUnknown` for one that only the engine can understand.
    """
    try:
        return _chat(_chats.decode(body)) if chat else _completion(_completions.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise PromptError(f"the request's body cannot be read: {problem}") from problem


def _completion(body: _Completion) -> PromptRequest:
    if body.prompt_embeds is not None:
        raise TokensUnknown("the prompt is given as embeddings, which have no tokens")
    special = body.add_special_tokens is not False
    return PromptRequest(body.model, _prompts(body.prompt), special, _salt(body), *_cut(body))


def _chat(body: _Chat) -> PromptRequest:
    if body.chat_template is not None:
        raise TokensUnknown("the request brings its own chat template, which engines refuse unless told to trust it")
    if body.mm_processor_kwargs:
        raise TokensUnknown("the request sets up the engine's media processor")
    chat = ChatPrompt(
        body.messages,
        body.tools,
        body.documents,
        body.add_generation_prompt,
        body.continue_final_message,
        _arguments(body),
    )
    return PromptRequest(body.model, chat, body.add_special_tokens is True, _salt(body), *_cut(body))


def _arguments(body: _Chat) -> dict[str, Any]:
    """Template arguments; an effort to reason also turns thinking on or off, unless the request says so itself."""
    arguments = dict(body.chat_template_kwargs or {})
    if refused := arguments.keys() & {"chat_template", "tokenize"}:
        raise PromptError(f"chat_template_kwargs must not set {min(refused)}")
    if body.reasoning_effort is not None:
        arguments["reasoning_effort"] = body.reasoning_effort
        arguments.setdefault("enable_thinking", body.reasoning_effort != "none")
    return arguments


def _salt(body: _Body) -> str | None:
    if body.cache_salt == "":
        raise PromptError("cache_salt must not be empty; leave it out to share the cache")
    if body.cache_salt is not None and len(body.cache_salt) > MAX_SALT:
        raise PromptError(f"cache_salt has {len(body.cache_salt)} characters; send at most {MAX_SALT}")
    return body.cache_salt


def _cut(body: _Body) -> tuple[int | None, Side]:
    keep = body.truncate_prompt_tokens
    if keep is not None and keep < 1:
        if keep == -1:
            raise TokensUnknown("truncate_prompt_tokens: -1 depends on the engine's context length")
        raise PromptError(f"truncate_prompt_tokens must be at least 1, or -1, got {keep}")
    return keep, body.truncation_side or "left"


def _prompts(prompt: Any) -> tuple[TextOrIds, ...]:
    """One entry per prompt of the four forms: a text, ids, texts, lists of ids."""
    if isinstance(prompt, str):
        given: list[TextOrIds] = [prompt]
    elif isinstance(prompt, list) and prompt:
        given = [prompt] if all(type(item) is int for item in prompt) else prompt
    else:
        raise PromptError("prompt must be a text, token ids, a list of texts, or a list of lists of token ids")
    if len(given) > MAX_PROMPTS:
        raise PromptError(f"prompt holds {len(given)} prompts; send at most {MAX_PROMPTS} in one request")
    for one in given:
        _check_prompt(one)
    return tuple(given)


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str | list):
        raise PromptError("prompt must be a text, token ids, a list of texts, or a list of lists of token ids")
    if not prompt:
        raise PromptError("prompt must not be empty")
    if isinstance(prompt, list):
        if not all(type(token) is int for token in prompt):
            raise PromptError("a prompt of token ids may hold integers only")
        if min(prompt) < 0 or max(prompt) > MAX_TOKEN_ID:
            raise PromptError(f"token ids must lie from 0 to {MAX_TOKEN_ID}")
