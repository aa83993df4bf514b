"""A stream that broke after its first byte, asked for again from where it broke: pure, bytes in and bytes out.

While a stream runs its bytes are only kept (`Transcript.add`), and read a batch at a time where they become many; a
stream that ends well is hardly ever looked at. When its worker is lost, what the client has is put behind the prompt
and the rest is asked of another worker; its answer is rewritten to carry on under the first one's id, without a second
opening, with token counts that add up.

Text is continued as text: a tokenizer may cut the seam differently than the lost worker did, which a model forgives,
and a word is never given twice or left out. What cannot be continued so is named by `why_not`, never guessed at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

FOLD_BYTES = 64 * 1024
"""Raw bytes kept before they are read and reduced to their text: most answers are shorter."""
ABORTED = b'"finish_reason":"abort"'
"""How a worker that is told to end says good-bye in the middle of a stream; quotes inside text are escaped."""
DONE = b"data: [DONE]\n\n"
_DATA = b"data: "
_DEFAULT_COMPLETION_TOKENS = 16

_NOT_CONTINUED = {
    "logprobs": "log probabilities",
    "top_logprobs": "log probabilities",
    "prompt_logprobs": "log probabilities",
    "echo": "an echoed prompt",
    "suffix": "a suffix",
    "tools": "tools",
    "functions": "functions",
    "structured_outputs": "structured output",
    "guided_json": "structured output",
    "guided_regex": "structured output",
    "guided_choice": "structured output",
    "guided_grammar": "structured output",
    "use_beam_search": "beam search",
    "return_token_ids": "token ids",
    "presence_penalty": "penalties on what was said",
    "frequency_penalty": "penalties on what was said",
}
"""Fields of a request that tie its output together so that its second half cannot be asked for alone."""

_object = msgspec.json.Decoder(dict[str, Any])


class _Delta(msgspec.Struct):
    content: str | None = None
    role: str | None = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None

    @property
    def plain(self) -> bool:
        odd = (self.tool_calls, self.function_call, self.reasoning, self.reasoning_content, self.refusal)
        return not any(odd)


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    created: int = 0
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk)


class Transcript:
    """What a client has been given of a stream."""

    __slots__ = ("_raw", "_rest", "_size", "_text", "created", "done", "finished", "id", "odd", "started", "usage")

    def __init__(self) -> None:
        """Nothing has been given yet."""
        self._raw: list[bytes] = []
        self._size = 0
        self._rest = b""
        self._text: list[str] = []
        self.id = ""
        self.created = 0
        self.started = False
        """Whether any event was given: an opening must not come twice."""
        self.finished = False
        """Whether the chunk with the finish reason was given."""
        self.usage = False
        """Whether token counts were given after it."""
        self.done = False
        self.odd = ""
        """Why the rest cannot be asked for; empty where it can."""

    def add(self, data: bytes) -> None:
        """Keep whole chunks of a chunked body, as they came."""
        self._raw.append(data)
        self._size += len(data)
        if self._size > FOLD_BYTES:
            self.fold()

    def fold(self) -> None:
        """Read what was kept."""
        raw, self._raw, self._size = b"".join(self._raw), [], 0
        try:
            self._rest += b"".join(payloads(raw))
        except ValueError:
            self.odd = "the stream's chunks are of an unknown form"
        *events, self._rest = self._rest.split(b"\n\n")
        for event in events:
            self.note(event)

    def note(self, event: bytes) -> None:
        """Take one event, without the empty line that ends it."""
        if event == DONE[:-2]:
            self.done = True
            return
        if not event.startswith(_DATA):
            return  # a comment or a ping says nothing
        try:
            chunk = _chunk.decode(event[len(_DATA) :])
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.odd = "the stream held an event of an unknown form"
            return
        if chunk.error is not None:
            self.odd = "the worker reported an error"
        elif chunk.choices is None:
            self.odd = "the stream held an event of an unknown form"
        if not self.started:
            self.started, self.id, self.created = True, chunk.id, chunk.created
        self.usage = self.usage or (not chunk.choices and chunk.usage is not None)
        for choice in chunk.choices or ():
            self._note_choice(choice)

    def _note_choice(self, choice: _Choice) -> None:
        if choice.index:
            self.odd = "the answer has several choices"
        if choice.delta is not None and not choice.delta.plain:
            self.odd = "the answer holds more than text"
        self._text.append(choice.text or (choice.delta.content if choice.delta else None) or "")
        self.finished = self.finished or choice.finish_reason is not None

    @property
    def text(self) -> str:
        """Everything the model has said so far, as of the last `fold`."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    @property
    def in_event(self) -> bool:
        """Whether the client has a part of an event."""
        return bool(self._rest)


def payloads(raw: bytes) -> Iterator[bytes]:
    """The payload of whole chunks; extensions and trailers are dropped."""
    at = 0
    while at < len(raw):
        line = raw.index(b"\r\n", at)
        size = int(raw[at:line].partition(b";")[0], 16)
        if not size:
            return
        yield raw[line + 2 : line + 2 + size]
        at = line + 4 + size


def whole_chunks(raw: bytes) -> int:
    """Length of the part of `raw`, which begins with a chunk, that consists of whole chunks."""
    at = 0
    while True:
        line = raw.find(b"\r\n", at)
        if line < 0:
            return at
        try:
            size = int(raw[at:line].partition(b";")[0], 16)
        except ValueError:
            return len(raw)  # not ours to judge: the parser has or will
        if not size:
            return len(raw)
        end = line + 4 + size
        if end > len(raw):
            return at
        at = end


def why_not(body: bytes, transcript: Transcript) -> str:
    """Why the rest of an answer cannot be asked of another worker; empty where it can. `fold` first."""
    if transcript.odd:
        return transcript.odd
    if transcript.in_event:
        return "the break is in the middle of an event"
    try:
        fields = _object.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "the request cannot be read again"
    if odd := _odd_field(fields):
        return f"the request's {odd} is of an unknown form"
    for name, what in _NOT_CONTINUED.items():
        if fields.get(name):
            return f"a request with {what} cannot be continued"
    if (fields.get("n") or 1) != 1 or (fields.get("best_of") or 1) != 1:
        return "a request with several choices cannot be continued"
    if (fields.get("response_format") or {"type": "text"}) != {"type": "text"}:
        return "a request with structured output cannot be continued"
    return _why_not_prompt(fields)


def _odd_field(fields: dict[str, Any]) -> str:
    """A field whose type is not the usual one, though an engine may have understood it; empty where there is none."""
    for name in ("n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens"):
        if type(fields.get(name)) not in (int, type(None)):
            return name
    if not isinstance(fields.get("stream_options") or {}, dict):
        return "stream_options"
    messages = fields.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "messages"
    return ""


def _why_not_prompt(fields: dict[str, Any]) -> str:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(messages, list) and messages:
        if fields.get("continue_final_message") and not isinstance(messages[-1].get("content"), str):
            return "the message to be continued is not plain text"
        return ""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt)):
        return ""
    return "a request with several prompts cannot be continued"


def token_question(body: bytes, text: str) -> bytes:
    """Body of `POST /tokenize` that counts the tokens of what was said."""
    model = _object.decode(body).get("model")
    return msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})


def read_tokens(answer: bytes) -> list[int] | None:
    """Tokens of an answer to `token_question`; None where it is none."""
    try:
        tokens = _object.decode(answer).get("tokens")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return tokens if isinstance(tokens, list) and all(type(t) is int for t in tokens) else None


@dataclass(frozen=True, slots=True)
class Rest:
    """The request for what is missing, and how its answer is to be read."""

    body: bytes
    said: int
    """Tokens said before the break."""
    wants_usage: bool
    """Whether the client asked for token counts."""
    only_end: bool
    """Whether all tokens were said, and only the end (and the counts) are missing."""


def ask_for_rest(body: bytes, transcript: Transcript, tokens: list[int]) -> Rest:
    """The continuation of a request; `tokens` are those of the transcript's text."""
    fields, said = _object.decode(body), len(tokens)
    options = fields.get("stream_options") or {}
    chat = "messages" in fields
    asked = fields.get("max_completion_tokens") or fields.get("max_tokens")
    if asked is None and not chat:
        asked = _DEFAULT_COMPLETION_TOKENS
    only_end = transcript.finished or (asked is not None and said >= asked)
    if chat:
        _continue_chat(fields, transcript.text)
    elif isinstance(fields["prompt"], str):
        fields["prompt"] += transcript.text
    else:
        fields["prompt"] = fields["prompt"] + tokens
    fields.pop("max_completion_tokens", None)
    if asked is not None or only_end:
        fields["max_tokens"] = 1 if only_end or asked is None else asked - said
    if fields.get("min_tokens"):
        fields["min_tokens"] = max(0, min(fields["min_tokens"] - said, fields.get("max_tokens") or 1))
    fields["stream_options"] = options | {"include_usage": True}
    return Rest(msgspec.json.encode(fields), said, bool(options.get("include_usage")), only_end)


def _continue_chat(fields: dict[str, Any], text: str) -> None:
    messages = list(fields["messages"])
    if fields.get("continue_final_message"):
        messages[-1] = messages[-1] | {"content": messages[-1]["content"] + text}
    elif text:
        messages.append({"role": "assistant", "content": text})
    else:
        return
    fields |= {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def wants_usage(body: bytes) -> bool:
    """Whether a request asks for token counts at the end of its stream."""
    try:
        options = _object.decode(body).get("stream_options")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(options, dict) and bool(options.get("include_usage"))


class WorkerError(Exception):
    """The worker that was to continue reported an error instead."""


def carry_on(event: bytes, rest: Rest, transcript: Transcript) -> bytes:
    """One event of the continuation as the client is to get it, ended by an empty line; empty where it gets none.

    Notes it in the transcript. Raises `WorkerError` where the event is an error or the worker's good-bye.
    """
    if event == DONE[:-2] or not event.startswith(_DATA):
        transcript.note(event)
        return event + b"\n\n"
    try:
        chunk = _object.decode(event[len(_DATA) :])
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise WorkerError("the continuation held an event of an unknown form") from bad
    choices = chunk.get("choices") or []
    if "error" in chunk or any(c.get("finish_reason") == "abort" for c in choices):
        raise WorkerError("the worker that was to continue did not")
    if not _rewrite(chunk, choices, rest, transcript):
        return b""
    written = _DATA + msgspec.json.encode(chunk)
    transcript.note(written)
    return written + b"\n\n"


def _rewrite(chunk: dict[str, Any], choices: list[dict[str, Any]], rest: Rest, transcript: Transcript) -> bool:
    """Make a chunk the client's; False where it gets none of it."""
    if transcript.started:
        chunk |= {"id": transcript.id, "created": transcript.created}
        if any((c.get("delta") or {}).get("role") and not (c["delta"].get("content")) for c in choices):
            return False  # a second opening
    usage = chunk.pop("usage", None)
    if rest.wants_usage:
        chunk["usage"] = usage and _summed(usage, rest)
    if not choices:
        return rest.wants_usage and not transcript.usage
    if rest.only_end:
        # The one token asked for in order to hear the counts is nobody's.
        if transcript.finished or not any(c.get("finish_reason") for c in choices):
            return False
        for choice in choices:
            choice["finish_reason"] = "length"
            choice.update({"text": ""} if "text" in choice else {"delta": {"content": ""}})
    return True


def _summed(usage: dict[str, Any], rest: Rest) -> dict[str, Any]:
    prompt = usage["prompt_tokens"] - rest.said
    completion = rest.said + (0 if rest.only_end else usage["completion_tokens"])
    return usage | {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
