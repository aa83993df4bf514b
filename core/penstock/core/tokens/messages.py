"""OpenAI's messages and tools as an engine hands them to its chat template.

vLLM does not pass a request's JSON through: it joins or wraps content parts, keeps the fields it knows, turns the
arguments of earlier tool calls from JSON text into values, and writes tools in its own field order with absent fields
as null. A template shows all of that (`tool | tojson`), so tokens depend on it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.templates import ContentFormat

_TEXT_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA = frozenset(
    {"image_url", "input_image", "image_embeds", "image_pil", "audio_url", "audio_embeds", "input_audio", "video_url"}
)
_TOOL_FIELDS = ("name", "description", "parameters")

Json = Mapping[str, Any]


def conversation(messages: Sequence[Json], content_format: ContentFormat) -> list[dict[str, Any]]:
    """The messages a template is given.

    Raises `PromptError` for a message an engine refuses, `TokensUnknown` for one with parts that are not text: an
    engine puts placeholders of its own processor there.
    """
    if not messages:
        raise PromptError("messages must hold at least one message")
    return [_message(message, content_format) for message in messages]


def _message(message: Json, content_format: ContentFormat) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise PromptError("each message needs a role, a text such as user")
    made: dict[str, Any] = {"role": role, "content": _content(message.get("content"), content_format)}
    if role == "assistant":
        made |= _assistant_fields(message)
    elif role == "tool":
        made |= {"tool_call_id": message["tool_call_id"]} if "tool_call_id" in message else {}
        if content_format == "openai":
            made["content"] = "\n".join(part["text"] for part in made["content"])
    for key in ("name", "task"):
        if isinstance(message.get(key), str):
            made[key] = message[key]
    if role == "developer":
        made["tools"] = message.get("tools")
    return made


def _content(content: Any, content_format: ContentFormat) -> str | list[dict[str, Any]]:
    """Parts joined by line ends, or wrapped as a list, as the template wants it; no content is no part."""
    if content is None or isinstance(content, str):
        texts = [] if content is None else [content]
    elif isinstance(content, list):
        texts = [text for part in content if (text := _part_text(part)) is not None]
    else:
        raise PromptError("a message's content must be a text or a list of parts")
    if content_format == "openai":
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any) -> str | None:
    """A part's text; None for one that says nothing."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise PromptError("a content part must be a text or an object with a type")
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXT_FIELDS and part.get("uuid") is None:
        text = part.get(_TEXT_FIELDS[kind])
        if text is not None and not isinstance(text, str):
            raise PromptError(f"the text of a content part of type {kind} must be a text")
        return text
    if kind in _MEDIA or kind is None or part.get("uuid") is not None:
        raise TokensUnknown("the prompt has parts that are not text; only the engine knows their tokens")
    raise PromptError(f"content parts of type {kind!r} are not known; text is one that is")


def _assistant_fields(message: Json) -> dict[str, Any]:
    made: dict[str, Any] = {}
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise PromptError("tool_calls must be a list")
    if calls:
        made["tool_calls"] = [_tool_call(call) for call in calls]
    reasoning = message.get("reasoning", message.get("reasoning_content"))
    if reasoning is not None:
        # Templates read it under either name.
        made["reasoning"] = made["reasoning_content"] = reasoning
    return made


def _tool_call(call: Any) -> dict[str, Any]:
    """An earlier call: known fields in the order of the API's type, arguments as values."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError("each of tool_calls needs a function with a name")
    return {
        **({"id": call["id"]} if "id" in call else {}),
        "function": {"arguments": _arguments(function.get("arguments")), "name": function["name"]},
        **({"type": call["type"]} if "type" in call else {}),
    }


def _arguments(arguments: Any) -> Any:
    """Arguments as a value; whatever is no JSON becomes an empty object, as in vLLM."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            return {}
        except RecursionError as problem:
            raise PromptError("the arguments of an earlier call are nested too deeply") from problem
    return arguments if isinstance(arguments, dict | list) else {}


def tools(given: Sequence[Json] | None) -> list[dict[str, Any]] | None:
    """The request's tools as vLLM writes them: its field order, absent fields null, unknown ones kept behind."""
    return None if given is None else [_tool(tool) for tool in given]


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError("each of tools needs a function with a name")
    described = {key: function.get(key) for key in _TOOL_FIELDS}
    made = {"type": tool.get("type", "function"), "function": described | _others(function, _TOOL_FIELDS)}
    return made | _others(tool, ("type", "function"))


def _others(given: Json, known: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in known}
