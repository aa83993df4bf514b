"""Ids from kept segments are those of the whole text, whatever was seen before and however little is kept."""

from __future__ import annotations

import json
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.tokens.segments import SegmentCache, cacheable

from .families import FAMILIES, LINES, SPECIAL, tokenizer_json


@cache
def plain(family: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(family).decode())
    # One special token that begins like another, and one that is not special.
    tokenizer.add_tokens([tokenizers.AddedToken(SPECIAL[family][0] + "x", special=True, normalized=False)])
    tokenizer.add_tokens([tokenizers.AddedToken("turbine", special=False, normalized=True)])
    return tokenizer


special = st.sampled_from([token + tail for tokens in SPECIAL.values() for token in tokens for tail in ("", "x")])
texts = st.lists(special | st.sampled_from(LINES) | st.text(st.characters(codec="utf-8"), max_size=9), max_size=9).map(
    "".join
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FAMILIES), st.lists(texts, min_size=1, max_size=6), st.sampled_from([0, 40, 1 << 20]))
def test_ids_are_those_of_the_whole_text(family: str, many: list[str], most: int) -> None:
    tokenizer = plain(family)
    assert cacheable(tokenizer)
    segments = SegmentCache(tokenizer, most)
    for text in [*many, *many]:
        assert segments.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
        assert segments._ids == sum(map(len, segments._kept.values())) <= most


def test_a_turn_seen_before_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []
    tokenizer = plain("chatml")

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def encode_batch_fast(self, texts: list[str], **others: bool) -> object:
            made.append(texts)
            return tokenizer.encode_batch_fast(texts, **others)

    segments = SegmentCache(Watched())  # type: ignore[arg-type]
    turns = [f"<|im_start|>user\n{line}<|im_end|>\n" for line in LINES]
    segments.encode("".join(turns[:3]))
    segments.encode("".join(turns[:4]))
    assert [len(texts) for texts in made] == [4, 2], "the new turn, and the line end too short to keep"


@pytest.mark.parametrize(
    "token",
    [
        tokenizers.AddedToken("<|s|>", lstrip=True, special=True),
        tokenizers.AddedToken("<|s|>", rstrip=True, special=True),
        tokenizers.AddedToken("<|s|>", single_word=True, special=True),
        tokenizers.AddedToken("<|s|>", normalized=True, special=True),
    ],
)
def test_tokens_that_look_around_themselves_forbid_it(token: tokenizers.AddedToken) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json("chatml").decode())
    tokenizer.add_tokens([token])
    assert not cacheable(tokenizer)


def test_a_tokenizer_that_marks_the_texts_beginning_forbids_it() -> None:
    for scheme, fine in (("first", False), ("never", True), ("always", True)):
        model = json.loads(tokenizer_json("mistral"))
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        model["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [metaspace]}
        assert cacheable(tokenizers.Tokenizer.from_str(json.dumps(model))) is fine
