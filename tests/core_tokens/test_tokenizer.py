"""Token ids equal what the reference's tokenizers make of the same folder."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.tokens.errors import ModelFilesError, TokensUnknown
from penstock.core.tokens.files import read_files
from penstock.core.tokens.requests import ChatPrompt
from penstock.core.tokens.tokenizer import BuiltinTokenizer, ModelTokenizer

from .cases import LOOKUP, NOW, PLAIN, TURNS
from .families import BEGIN, FAMILIES, SPECIAL, config, files, write


@cache
def ours(family: str) -> ModelTokenizer:
    return ModelTokenizer(read_files(files(family)))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The reference's own loading of each family's folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    load = transformers.AutoTokenizer.from_pretrained
    return {family: load(write(family, folder / family), truncation_side="left") for family in FAMILIES}


pieces = st.sampled_from(
    [token for tokens in SPECIAL.values() for token in tokens] + [" ", "\n", "the ", "Zürich", "1024"]
)
texts = st.lists(pieces | st.text(st.characters(codec="utf-8"), max_size=12), max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=texts, family=st.sampled_from(FAMILIES), special=st.booleans())
def test_ids_equal_the_references(theirs, text: str, family: str, special: bool) -> None:
    assert ours(family).encode(text, special=special) == theirs[family].encode(text, add_special_tokens=special)


@settings(max_examples=150, deadline=None)
@given(texts, st.sampled_from(FAMILIES), st.booleans(), st.integers(1, 12), st.sampled_from(["left", "right"]))
def test_cut_ids_equal_the_references(theirs, text: str, family: str, special: bool, limit: int, side: str) -> None:
    reference = theirs[family]
    reference.truncation_side = side
    wanted = reference.encode(text, add_special_tokens=special, truncation=True, max_length=limit)
    assert ours(family).encode(text, special=special, limit=limit, side=side) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chats_ids_equal_the_references_and_begin_once(theirs, family: str) -> None:
    tools = None if family == "gemma" else [LOOKUP]
    text = ours(family).render(ChatPrompt([dict(m) for m in TURNS], tools), NOW)
    ids = ours(family).encode(text, special=False)
    messages = [{**m, "content": m["content"]} for m in TURNS]
    wanted = theirs[family].apply_chat_template(
        messages,
        tools=tools,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **({"date_string": NOW.strftime("%d %b %Y")} if family == "llama3" else {}),
    )
    assert ids == wanted
    if family in BEGIN:
        begin = theirs[family].convert_tokens_to_ids(BEGIN[family])
        assert ids.count(begin) == 1 and ids[0] == begin
        # What a chat must not do: the template's own first token and the tokenizer's.
        assert ours(family).encode(text, special=True)[:2] == [begin, begin]


def test_tokens_only_the_config_knows_are_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write("chatml", tmp_path)
    named = {
        **config("chatml"),
        "pad_token": "<|padding|>",
        "extra_special_tokens": ["<|more|>"],
        "image_token": "<|img|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = ModelTokenizer(read_files({p.name: p.read_bytes() for p in tmp_path.iterdir()}))
    text = "a<|padding|> b <|more|>c<|img|>"
    assert mine.encode(text, special=True) == reference.encode(text)
    assert mine.vocabulary == len(reference)


def test_the_special_tokens_map_has_the_last_word() -> None:
    given = {**files("llama3"), "special_tokens_map.json": b'{"bos_token": {"content": "<|eot_id|>"}}'}
    assert read_files(given).special_tokens["bos_token"] == "<|eot_id|>"
    table = {**config("llama3"), "added_tokens_decoder": {"0": {"content": "<|begin_of_text|>", "special": True}}}
    given["tokenizer_config.json"] = json.dumps(table).encode()
    assert read_files(given).special_tokens["bos_token"] == "<|begin_of_text|>"


def test_templates_by_name_serve_tools() -> None:
    both = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].function.name }}"}]
    given = files("chatml")
    del given["chat_template.jinja"]
    given["tokenizer_config.json"] = json.dumps({**config("chatml"), "chat_template": both}).encode()
    tokenizer = ModelTokenizer(read_files(given))
    assert tokenizer.render(ChatPrompt(PLAIN), NOW) == "plain"
    assert tokenizer.render(ChatPrompt(PLAIN, [LOOKUP]), NOW) == "lookup"
    given |= {"additional_chat_templates/tool_use.jinja": b"own", "chat_template.jinja": b"first\r\nline"}
    tokenizer = ModelTokenizer(read_files(given))
    assert tokenizer.render(ChatPrompt(PLAIN, [LOOKUP]), NOW) == "own"
    assert tokenizer.render(ChatPrompt(PLAIN), NOW) == "first\nline"


def test_a_model_without_template_leaves_chats_to_the_engine() -> None:
    given = files("chatml")
    del given["chat_template.jinja"]
    with pytest.raises(TokensUnknown, match="no default chat template"):
        ModelTokenizer(read_files(given)).render(ChatPrompt(PLAIN), NOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.json": None}, "tokenizer.json is missing"),
        ({"tokenizer.json": b"{}"}, "cannot be loaded"),
        ({"tokenizer.json": b"\xff"}, "cannot be loaded"),
        ({"tokenizer_config.json": b"{"}, "not JSON"),
        ({"tokenizer_config.json": b"[]"}, "must be a JSON object"),
        ({"tokenizer_config.json": b'{"added_tokens_decoder": {"1": 2}}'}, "added_tokens_decoder"),
        ({"tokenizer_config.json": b'{"added_tokens_decoder": {"x": {"content": "y"}}}'}, "added_tokens_decoder"),
        ({"chat_template.jinja": None, "tokenizer_config.json": b'{"chat_template": [1]}'}, "chat_template must be"),
        ({"chat_template.jinja": b"\xff"}, "not UTF-8"),
        ({"chat_template.jinja": b"{% if %}"}, "not valid jinja2"),
        ({"chat_template.jinja": b" " * (1 << 21)}, "more than such a file may have"),
    ],
)
def test_bad_files_are_refused_with_their_name(change: dict[str, bytes | None], message: str) -> None:
    given = {name: content for name, content in {**files("llama3"), **change}.items() if content is not None}
    with pytest.raises(ModelFilesError, match=message):
        ModelTokenizer(read_files(given))


def test_the_built_in_one_is_the_simulated_engines() -> None:
    tokenizer = BuiltinTokenizer()
    text = tokenizer.render(ChatPrompt([{"role": "user", "content": [{"type": "text", "text": "a b"}]}]), NOW)
    assert text == "<|user|> a b <|end|> <|assistant|>"
    assert len(tokenizer.encode(text, special=True)) == 5
