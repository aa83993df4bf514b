"""From an OpenAI request to the sequences an engine runs, or to the error vLLM would answer.

Pure: what the engine is (`EngineShape`) and what was asked go in, prompts as ids with their limits come out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.core.tokens.builtin import VOCABULARY, encode, render_chat
from penstock.core.wire.openai import (
    DEFAULT_COMPLETION_TOKENS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from penstock.workers.decisions.simulated.generation import planned_length, seed_of

MAX_CHOICES = 128
"""Sequences one request may ask for (prompts times n): keeps one request from filling the waiting queue."""


class RequestError(Exception):
    """The request is refused; status and fields are those of vLLM's error body."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.message, self.status, self.kind, self.param = message, status, kind, param


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What bounds a request: served names, context, and how the model ends when nobody tells it to."""

    names: tuple[str, ...]
    max_model_len: int
    default_max_tokens: int
    """Where a chat reply without `max_tokens` ends at the latest; the model's own end, so the reason is `stop`."""
    mean_output_tokens: float = 0.0
    """Mean length the model would write by itself; 0: as long as it is allowed to."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters by name, with their paths."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence to run."""

    index: int
    prompt: Sequence[int]
    seed: int
    tokens: int
    """Output tokens it will have."""
    reason: str
    """Finish reason: `length` or `stop`."""
    stop: str | int | None
    """What stopped it, where a stop string or token did."""
    stop_text: str | None
    """The stop string, which is cut from the text with what follows it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole request: its choices and what is said about it."""

    model: str
    choices: tuple[Choice, ...]
    n: int
    prompt_tokens: int
    """Tokens of all prompts, each counted once however many choices it has."""
    max_tokens: int
    adapter: tuple[str, str] | None


def plan_completion(request: CompletionRequest, shape: EngineShape) -> Generation:
    """The sequences of a completion; raises `RequestError`."""
    model, adapter = _resolve_model(request.model, shape)
    if request.echo:
        raise RequestError("the simulated engine does not echo prompts; leave echo out", param="echo")
    prompts = [_ids(prompt) for prompt in _prompts(request.prompt)]
    asked = request.max_tokens if request.max_tokens is not None else DEFAULT_COMPLETION_TOKENS
    choices, limit = _choices(request, prompts, asked, shape, adapter)
    total = sum(map(len, prompts))
    return Generation(model, choices, len(choices) // len(prompts), total, limit, adapter)


def plan_chat(request: ChatRequest, shape: EngineShape) -> Generation:
    """The sequences of a chat completion; raises `RequestError`."""
    model, adapter = _resolve_model(request.model, shape)
    if not request.messages:
        raise RequestError("messages must hold at least one message", param="messages")
    text = render_chat(
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final=request.continue_final_message,
    )
    prompt = encode(text)
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    choices, limit = _choices(request, [prompt], asked, shape, adapter)
    return Generation(model, choices, len(choices), len(prompt), limit, adapter)


def _resolve_model(model: str | None, shape: EngineShape) -> tuple[str, tuple[str, str] | None]:
    """Served name and adapter of a request's `model`; vLLM takes an absent one as the first served name."""
    if not model:
        return shape.names[0], None
    if model in shape.names:
        return model, None
    if model in shape.adapters:
        return model, (model, shape.adapters[model])
    raise RequestError(f"The model `{model}` does not exist.", status=404, kind="NotFoundError", param="model")


def _prompts(prompt: Any) -> list[str | list[int]]:
    """One entry per prompt of the four forms a completion's `prompt` can take."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(type(item) is int for item in prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt) or all(isinstance(item, list) for item in prompt):
            return prompt
    raise RequestError(
        "prompt must be a text, a list of token ids, a list of texts, or a list of lists of token ids", param="prompt"
    )


def _ids(prompt: str | list[int]) -> list[int]:
    tokens = encode(prompt) if isinstance(prompt, str) else prompt
    if not tokens:
        raise RequestError("The decoder prompt cannot be empty", param="prompt")
    if isinstance(prompt, list):
        if not all(type(token) is int for token in tokens):
            raise RequestError("a prompt of token ids may hold integers only", param="prompt")
        if min(tokens) < 0 or max(tokens) >= VOCABULARY:
            wrong = min(tokens) if min(tokens) < 0 else max(tokens)
            raise RequestError(f"Token id {wrong} is out of vocabulary", param="prompt")
    return tokens


def _choices(
    request: GenerationRequest,
    prompts: list[list[int]],
    asked: int | None,
    shape: EngineShape,
    adapter: tuple[str, str] | None,
) -> tuple[tuple[Choice, ...], int]:
    """The request's choices in order, and the output limit that holds for the longest prompt."""
    n = 1 if request.n is None else request.n
    _check_sampling(request, asked, n * len(prompts))
    choices: list[Choice] = []
    limit = shape.max_model_len
    for number, prompt in enumerate(prompts):
        room, natural_end = _room(len(prompt), asked, shape)
        limit = min(limit, room)
        for copy in range(n):
            # Choice 0 without seed or adapter starts from 0: its continuation must not depend on where it is asked.
            seed = seed_of(adapter[0] if adapter else None, request.seed, copy)
            choices.append(_choice(request, number * n + copy, prompt, seed, room, natural_end, shape))
    return tuple(choices), limit


def _check_sampling(request: GenerationRequest, asked: int | None, sequences: int) -> None:
    if request.n is not None and request.n < 1:
        raise RequestError(f"n must be at least 1, got {request.n}.", param="n")
    if sequences > MAX_CHOICES:
        raise RequestError(f"{sequences} sequences in one request; send at most {MAX_CHOICES}", param="n")
    if request.logprobs:
        raise RequestError("the simulated engine has no log probabilities; leave logprobs out", param="logprobs")
    if asked is not None and asked < 1:
        raise RequestError(f"max_tokens must be at least 1, got {asked}.", param="max_tokens")
    if request.min_tokens < 0 or (asked is not None and request.min_tokens > asked):
        raise RequestError(f"min_tokens must be from 0 to max_tokens, got {request.min_tokens}.", param="min_tokens")
    if request.stream_options is not None and not request.stream:
        raise RequestError("Stream options can only be defined when `stream=True`.", param="stream_options")


def _room(prompt_tokens: int, asked: int | None, shape: EngineShape) -> tuple[int, bool]:
    """Output tokens there is room for, and whether reaching them is the model's own end."""
    left = shape.max_model_len - prompt_tokens
    if left < (asked or 1):
        wanted = f" and {asked} output tokens were requested" if asked else ""
        raise RequestError(
            f"This model's maximum context length is {shape.max_model_len} tokens. However, the prompt has "
            f"{prompt_tokens} tokens{wanted}. Please reduce the length of the prompt or of the completion.",
            param="input_tokens",
        )
    if asked is not None:
        return asked, False
    return min(left, shape.default_max_tokens), left > shape.default_max_tokens


def _choice(
    request: GenerationRequest,
    index: int,
    prompt: list[int],
    seed: int,
    room: int,
    natural_end: bool,
    shape: EngineShape,
) -> Choice:
    stops = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
    stop_ids = frozenset(request.stop_token_ids or ())
    mean = 0.0 if request.ignore_eos else shape.mean_output_tokens
    tokens, reason, stop = room, "length", None
    if mean or stops or stop_ids:
        tokens, reason, stop = planned_length(
            prompt, seed, room, mean_tokens=mean, least=request.min_tokens, stops=stops, stop_ids=stop_ids
        )
    if reason == "length" and natural_end and not request.ignore_eos:
        reason = "stop"
    return Choice(index, prompt, seed, tokens, reason, stop, stop if isinstance(stop, str) else None)
