"""OpenAI's HTTP forms as vLLM speaks them: requests, responses, stream chunks, errors.

Structs hold the fields somebody here reads; others pass by unseen. Responses carry the fields clients look for, null
where vLLM has null, so that a client cannot tell a simulated answer from a real one by its shape.
"""

from typing import Any, Literal

import msgspec

TokenIds = list[int]
Prompt = str | list[Any]
"""Text, token ids, a list of texts, or a list of lists of token ids."""
FinishReason = Literal["stop", "length", "abort", "error"]

DONE = b"data: [DONE]\n\n"
DEFAULT_COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that names none; a chat completion may use what is left of the context."""


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries beside its text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What completions and chat completions have in common."""

    model: str | None = None
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | bool | None = None
    seed: int | None = None
    priority: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    kv_transfer_params: Any = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Prompt | None = None
    echo: bool | None = False


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation; content is text or a list of parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None

    def text(self) -> str:
        """The message's text; parts that are not text say nothing to a text model."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(str(part.get("text", "")) for part in self.content if part.get("type") == "text")


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /tokenize`: either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]


class LoadAdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/load_lora_adapter`."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadAdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str = ""


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How many prompt tokens came from the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request; the only place where tokens can be counted, since a chunk is not a token."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: int | str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """An error response."""

    error: ErrorDetail


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a completion."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: None = None
    prompt_token_ids: list[int] | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `POST /v1/completions`."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None = None
    system_fingerprint: None = None
    usage: Usage
    kv_transfer_params: Any = None


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said."""

    role: str = "assistant"
    content: str
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] = []
    reasoning: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `POST /v1/chat/completions`."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None = None
    system_fingerprint: None = None
    usage: Usage
    prompt_logprobs: None = None
    prompt_token_ids: list[int] | None = None
    kv_transfer_params: Any = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `/v1/models`; an adapter's `parent` is its base model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "vllm"
    root: str
    parent: str | None = None
    max_model_len: int | None = None
    permission: list[Any] = []


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `GET /v1/models`."""

    object: str = "list"
    data: list[ModelCard]


_encode = msgspec.json.encode


def error_body(message: str, kind: str, code: int, param: str | None = None) -> bytes:
    """An error response's body; `kind` as vLLM names it (`BadRequestError`, `NotFoundError`)."""
    return _encode(ErrorBody(ErrorDetail(message, kind, param, code)))


class ChunkWriter:
    """Writes one request's stream chunks: everything that stays equal is encoded once.

    Each method returns bytes ready to send; text is the only thing encoded per chunk.
    """

    __slots__ = ("_head", "_usage", "chat")

    def __init__(self, request_id: str, created: int, model: str, *, chat: bool, usage: bool) -> None:
        """`usage`: the client asked for a usage chunk, so every other chunk says `"usage":null`."""
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = _encode({"id": request_id, "object": kind, "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._usage = b',"usage":null' if usage else b""
        self.chat = chat

    def opening(self, index: int) -> bytes:
        """The first chunk of a chat choice, which names the role; completions have none."""
        choice = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        return b"".join((self._head, choice, b"]", self._usage, b"}\n\n"))

    def text(
        self,
        index: int,
        text: str,
        reason: str | None = None,
        stop: int | str | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        """A chunk of text, the last one of its choice with the reason why it ended; `usage`: counts so far."""
        piece = b'"delta":{"content":%b}' if self.chat else b'"text":%b'
        choice = b'{"index":%d,%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b}' % (
            index,
            piece % _encode(text),
            _encode(reason),
            _encode(stop),
        )
        counts = self._usage if usage is None else b',"usage":' + _encode(usage)
        return b"".join((self._head, choice, b"]", counts, b"}\n\n"))

    def usage(self, usage: Usage) -> bytes:
        """The chunk before the end that carries the token counts and no choice."""
        return b"".join((self._head, b'],"usage":', _encode(usage), b"}\n\n"))
