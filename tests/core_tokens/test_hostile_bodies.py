"""Whatever a client sends, the answer is tokens or one of the two errors: nothing else ever leaves."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.files import read_files
from penstock.core.tokens.prompts import BlockNaming, prompts_of
from penstock.core.tokens.requests import read_request
from penstock.core.tokens.tokenizer import BuiltinTokenizer, ModelTokenizer, PromptTokenizer

from .cases import NOW
from .families import FAMILIES, files


@cache
def tokenizer(family: str) -> PromptTokenizer:
    return BuiltinTokenizer() if family == "built-in" else ModelTokenizer(read_files(files(family)))


def survives(family: str, body: bytes, chat: bool) -> None:
    try:
        for prompt in prompts_of(read_request(body, chat=chat), tokenizer(family), BlockNaming(4), NOW):
            assert prompt.tokens > 0
            assert len(prompt.block_hashes) == prompt.tokens // 4
    except (PromptError, TokensUnknown) as told:
        assert str(told)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def shaped(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the right keys, whose values are mostly of the right form."""
    return st.fixed_dictionaries({}, optional={key: value | anything for key, value in fields.items()})


function = shaped(name=st.text(max_size=5), arguments=st.sampled_from(["{}", '{"a": "\\ud800"}', "[1", '"x"']))
part = shaped(type=st.sampled_from(["text", "refusal", "image_url", "x"]), text=st.text(max_size=5))
message = shaped(
    role=st.sampled_from(["user", "assistant", "tool", "system", "developer"]),
    content=st.text(max_size=8) | st.lists(part, max_size=3),
    tool_calls=st.lists(shaped(id=st.text(max_size=3), function=function), max_size=2),
    reasoning=st.text(max_size=5),
    tool_call_id=st.text(max_size=3),
)
body = shaped(
    messages=st.lists(message, max_size=4),
    prompt=st.text(max_size=9) | st.lists(st.integers(-1, 9), max_size=9) | st.lists(st.text(max_size=4), max_size=3),
    tools=st.lists(shaped(type=st.just("function"), function=shaped(name=st.text(max_size=4))), max_size=2),
    documents=st.lists(anything, max_size=2),
    chat_template_kwargs=st.dictionaries(
        st.sampled_from(["bos_token", "messages", "loop", "date_string", "strftime_now", "self"]), anything, max_size=3
    ),
    truncate_prompt_tokens=st.integers(-2, 9),
    cache_salt=st.text(max_size=3),
    add_generation_prompt=st.booleans(),
    continue_final_message=st.booleans(),
    reasoning_effort=st.sampled_from(["none", "low"]),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*FAMILIES, "built-in"]), body, st.booleans())
def test_shaped_bodies(family: str, body: dict[str, Any], chat: bool) -> None:
    survives(family, json.dumps(body).encode(), chat)


@settings(max_examples=100)
@given(st.binary(max_size=80) | anything.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_any_bytes(body: bytes, chat: bool) -> None:
    survives("built-in", body, chat)


DEEP = "[" * 100_000 + "]" * 100_000
NESTED = '{"a":' * 400 + "1" + "}" * 400


def called(arguments: str) -> str:
    call = {"id": "call00001", "function": {"name": "f", "arguments": arguments}}
    return json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]})


@pytest.mark.parametrize("family", [*FAMILIES, "built-in"])
@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ('{"prompt": ' + DEEP + "}", False),
        ('{"messages": [{"role": "user", "content": ' + DEEP + "}]}", True),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": [' + DEEP + "]}", True),
        (
            '{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f", '
            '"parameters": ' + NESTED + "}}]}",
            True,
        ),
        (called(DEEP), True),
        (called('{"a": "\\ud800"}'), True),
        (called('{"a": ' + "9" * 5000 + "}"), True),
        ('{"prompt": "\\ud800"}', False),
        ('{"messages": [{"role": "user", "content": "\\ud800 \\udfff"}]}', True),
        ('{"prompt": [1e400]}', False),
        ('{"prompt": [' + "9" * 5000 + "]}", False),
        ('{"prompt": "x", "truncate_prompt_tokens": ' + "9" * 30 + "}", False),
        ('{"prompt": "x", "truncate_prompt_tokens": 9223372036854775807}', False),
        ('{"prompt": [1, 2], "cache_salt": "' + "s" * 100_000 + '"}', False),
    ],
)
def test_bodies_made_to_hurt(family: str, body: str, chat: bool) -> None:
    survives(family, body.encode(), chat)
