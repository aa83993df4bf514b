"""Messages and tools reach a template in the form an engine gives them; the order of keys is part of the tokens."""

from __future__ import annotations

import json

import pytest
from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.messages import conversation, tools

PARTS = [{"type": "text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}, {"type": "text", "text": None}]


def test_parts_are_joined_or_wrapped_as_the_template_wants() -> None:
    message = [{"role": "user", "content": PARTS, "name": "ann", "weight": 3}]
    assert conversation(message, "string") == [{"role": "user", "content": "a\nb\nc", "name": "ann"}]
    wrapped = [{"type": "text", "text": text} for text in "abc"]
    assert conversation(message, "openai") == [{"role": "user", "content": wrapped, "name": "ann"}]


def test_absent_content_is_no_part() -> None:
    message = [{"role": "assistant", "content": None}]
    assert conversation(message, "string")[0]["content"] == ""
    assert conversation(message, "openai")[0]["content"] == []


def test_a_tools_answer_is_always_text() -> None:
    message = [{"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "1"}, "2"]}]
    assert conversation(message, "openai") == [{"role": "tool", "content": "1\n2", "tool_call_id": "x"}]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [('{"b": 1, "a": [2.0]}', {"b": 1, "a": [2.0]}), ("", {}), ("{", {}), (None, {}), ({"k": 1}, {"k": 1}), (7, {})],
)
def test_earlier_calls_carry_values_in_the_apis_order(arguments, wanted) -> None:
    call = {"index": 0, "type": "function", "function": {"name": "f", "arguments": arguments}, "id": "i"}
    (made,) = conversation([{"role": "assistant", "tool_calls": [call]}], "string")
    assert json.dumps(made["tool_calls"]) == json.dumps(
        [{"id": "i", "function": {"arguments": wanted, "name": "f"}, "type": "function"}]
    )


def test_an_empty_list_of_calls_is_none() -> None:
    assert conversation([{"role": "assistant", "content": "x", "tool_calls": []}], "string") == [
        {"role": "assistant", "content": "x"}
    ]


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_goes_by_both_names(key: str) -> None:
    (made,) = conversation([{"role": "assistant", "content": "x", key: "why"}], "string")
    assert made["reasoning"] == made["reasoning_content"] == "why"


def test_a_developers_message_may_bring_tools() -> None:
    assert conversation([{"role": "developer", "content": "x"}], "string")[0]["tools"] is None


def test_tools_are_written_in_the_engines_order() -> None:
    given = [{"function": {"strict": True, "parameters": {"z": 1, "a": 2}, "name": "f"}, "type": "function", "x": 1}]
    assert json.dumps(tools(given)) == (
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"z": 1, "a": 2}, '
        '"strict": true}, "x": 1}]'
    )
    assert tools(None) is None
    assert tools([]) == []


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text", "text": "a", "uuid": "1"}]},
        {"role": "user", "content": [{"image_url": "x"}]},
    ],
)
def test_what_is_not_text_is_left_to_the_engine(message) -> None:
    with pytest.raises(TokensUnknown):
        conversation([message], "string")


@pytest.mark.parametrize(
    "message",
    [
        {"content": "no role"},
        {"role": "user", "content": 3},
        {"role": "user", "content": [3]},
        {"role": "user", "content": [{"type": "text", "text": 3}]},
        {"role": "user", "content": [{"type": "smell", "smell": "x"}]},
        {"role": "assistant", "tool_calls": "f"},
        {"role": "assistant", "tool_calls": [{"function": {}}]},
        {"role": "assistant", "tool_calls": [7]},
    ],
)
def test_what_an_engine_refuses_is_refused(message) -> None:
    with pytest.raises(PromptError):
        conversation([message], "string")


def test_no_messages_and_nameless_tools_are_refused() -> None:
    with pytest.raises(PromptError, match="at least one"):
        conversation([], "string")
    with pytest.raises(PromptError, match="function with a name"):
        tools([{"type": "function"}])
