"""From a request's bytes to token ids and block hashes: the four forms of a prompt, salt, adapter, seed, cuts."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.tokens import builtin
from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.files import read_files
from penstock.core.tokens.prompts import BlockNaming, Prompt, prompts_of
from penstock.core.tokens.requests import ChatPrompt, read_request
from penstock.core.tokens.tokenizer import BuiltinTokenizer, ModelTokenizer
from penstock.core.wire.openai import ChatRequest, CompletionRequest
from penstock.workers.decisions.simulated.requests import EngineShape, plan_chat, plan_completion

from .cases import NOW, PLAIN
from .families import BEGIN, files

BUILTIN = BuiltinTokenizer()
NAMING = BlockNaming(4)


def made(body: dict[str, Any], chat: bool = False, tokenizer: Any = BUILTIN, **others: Any) -> tuple[Prompt, ...]:
    request = read_request(json.dumps(body).encode(), chat=chat)
    return prompts_of(request, tokenizer, others.pop("naming", NAMING), NOW, **others)


def reference(ids: list[int], size: int, seed: str, salt: str | None, adapter: tuple[str, str] | None) -> list[bytes]:
    """The engine's chain, written down once more over an independent CBOR encoder."""
    cbor2 = pytest.importorskip("cbor2")

    def digest(value: object) -> bytes:
        return sha256(cbor2.dumps(value, canonical=True)).digest()

    parent, hashes = digest(seed), []
    for start in range(0, len(ids) - size + 1, size):
        extra = (("lora", *adapter),) if adapter else ()
        extra += (("cache_salt", salt),) if salt and start == 0 else ()
        parent = digest((parent, tuple(ids[start : start + size]), extra or None))
        hashes.append(parent)
    return hashes


@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=40),
    st.integers(1, 9),
    st.sampled_from(["vllm-none-hash", "0", "42"]),
    st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    st.none() | st.tuples(st.text(max_size=5), st.text(max_size=5)),
)
def test_hashes_equal_the_engines_chain(ids, size, seed, salt, adapter) -> None:
    body = {"prompt": ids, "cache_salt": salt}
    (prompt,) = made(body, naming=BlockNaming(size, seed), adapter=adapter)
    assert list(prompt.token_ids) == ids and prompt.tokens == len(ids)
    assert list(prompt.block_hashes) == reference(ids, size, seed, salt, adapter)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda t: t.split())


@given(words, st.lists(st.tuples(st.sampled_from(["user", "assistant"]), words), min_size=1, max_size=4), st.booleans())
def test_built_in_tokens_are_what_the_simulated_engine_counts(text, turns, open_end) -> None:
    shape = EngineShape(("m",), max_model_len=10_000, default_max_tokens=5)
    (prompt,) = made({"prompt": text})
    assert prompt.token_ids == plan_completion(CompletionRequest(prompt=text), shape).choices[0].prompt
    body = {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "add_generation_prompt": not open_end,
        "continue_final_message": open_end,
    }
    (prompt,) = made(body, chat=True)
    import msgspec

    request = msgspec.json.decode(json.dumps(body).encode(), type=ChatRequest)
    assert prompt.token_ids == plan_chat(request, shape).choices[0].prompt


def test_a_completion_may_be_text_ids_or_many_of_either() -> None:
    ids = builtin.encode("one two")
    assert [p.token_ids for p in made({"prompt": "one two"})] == [ids]
    assert [p.token_ids for p in made({"prompt": ids})] == [ids]
    assert [p.token_ids for p in made({"prompt": ["one two", "one"]})] == [ids, ids[:1]]
    assert [p.token_ids for p in made({"prompt": [ids, [7]]})] == [ids, [7]]


def test_completions_begin_with_the_models_token_and_chats_with_the_templates() -> None:
    tokenizer = ModelTokenizer(read_files(files("llama3")))
    (begin,) = tokenizer.encode(BEGIN["llama3"], special=False)
    for body, chat, begins in [
        ({"prompt": "Which"}, False, 1),
        ({"prompt": "Which", "add_special_tokens": False}, False, 0),
        ({"messages": PLAIN}, True, 1),
        ({"messages": PLAIN, "add_special_tokens": True}, True, 2),
    ]:
        (prompt,) = made(body, chat, tokenizer)
        assert list(prompt.token_ids).count(begin) == begins
        assert list(prompt.token_ids)[:begins] == [begin] * begins


def test_prompts_are_cut_where_the_request_says() -> None:
    tokenizer = ModelTokenizer(read_files(files("llama3")))
    whole = tokenizer.encode("Which worker holds the first blocks", special=True)
    (left,) = made({"prompt": "Which worker holds the first blocks", "truncate_prompt_tokens": 3}, tokenizer=tokenizer)
    assert list(left.token_ids) == [whole[0], *whole[-2:]]
    body = {"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 3}
    assert made(body)[0].token_ids == [2, 3, 4]
    assert made({**body, "truncation_side": "right"})[0].token_ids == [1, 2, 3]


def test_effort_turns_thinking_on_unless_the_request_says_otherwise() -> None:
    def arguments(**body: Any) -> dict[str, Any]:
        request = read_request(json.dumps({"messages": PLAIN, **body}).encode(), chat=True)
        assert isinstance(request.prompt, ChatPrompt)
        return dict(request.prompt.arguments)

    assert arguments() == {}
    assert arguments(reasoning_effort="low") == {"reasoning_effort": "low", "enable_thinking": True}
    assert arguments(reasoning_effort="none")["enable_thinking"] is False
    assert (
        arguments(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False})["enable_thinking"] is False
    )


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({}, False),
        ({"prompt": None}, False),
        ({"prompt": ""}, False),
        ({"prompt": "   "}, False),
        ({"prompt": []}, False),
        ({"prompt": [[]]}, False),
        ({"prompt": [1, "a"]}, False),
        ({"prompt": [[1, "a"]]}, False),
        ({"prompt": [True]}, False),
        ({"prompt": [-1]}, False),
        ({"prompt": [1 << 32]}, False),
        ({"prompt": ["x"] * 1025}, False),
        ({"prompt": "x", "cache_salt": ""}, False),
        ({"prompt": "x", "truncate_prompt_tokens": 0}, False),
        ({}, True),
        ({"messages": []}, True),
        ({"messages": [7]}, True),
        ({"messages": PLAIN, "tools": 3}, True),
        ({"messages": PLAIN, "chat_template_kwargs": {"tokenize": False}}, True),
        ({"messages": [{"content": "x"}]}, True),
    ],
)
def test_what_an_engine_refuses_is_refused(body: dict[str, Any], chat: bool) -> None:
    with pytest.raises(PromptError):
        made(body, chat)


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({"prompt_embeds": "AAAA"}, False),
        ({"prompt": "x", "truncate_prompt_tokens": -1}, False),
        ({"messages": PLAIN, "chat_template": "x"}, True),
        ({"messages": PLAIN, "mm_processor_kwargs": {"a": 1}}, True),
    ],
)
def test_what_only_the_engine_knows_is_said_to_be_unknown(body: dict[str, Any], chat: bool) -> None:
    with pytest.raises(TokensUnknown):
        made(body, chat)


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_make_it_fall_over(body: bytes, chat: bool) -> None:
    with pytest.raises((PromptError, TokensUnknown)):
        read_request(b"\x00" + body, chat=chat)


def test_how_much_text_there_is_counts_all_that_is_rendered() -> None:
    def characters(chat: bool, **body: Any) -> int:
        return read_request(json.dumps(body).encode(), chat=chat).characters

    assert characters(False, prompt="x" * 50) == 50
    assert characters(False, prompt=["x" * 50, [1, 2]]) == 52
    messages = [{"role": "user", "content": "x" * 50}, {"role": "assistant", "content": None}]
    assert characters(True, messages=messages) == 50
    assert characters(True, messages=messages, tools=[{"d": "y" * 900}]) > 950
    assert characters(True, messages=messages, documents=[{"text": "y" * 900}]) > 950


def test_a_block_holds_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        BlockNaming(0)


def test_the_built_in_tokenizer_loads_without_the_libraries_a_model_needs() -> None:
    program = (
        "import sys, penstock.core.tokens.builtin; sys.exit('jinja2' in sys.modules or 'tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
