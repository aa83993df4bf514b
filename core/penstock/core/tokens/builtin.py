"""The built-in tokenizer, which the simulated engine speaks: one whitespace-separated word is one token.

A client can therefore make a prompt of exactly N tokens by writing N words, and count tokens by splitting. Every id has
a pseudo-word of three syllables ("bafiro"); that word tokenizes back to its id, so generated text sent again as a
prompt is the same tokens. Any other word is hashed to an id: its text is lost, its identity and count are not.
"""

import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from penstock.core.wire.openai import ChatMessage

VOCABULARY = 1 << 17
"""Ids from 0; also room for the ids of the usual 128k vocabularies, so that id prompts made for them are accepted."""
FIRST_WORD = 512
"""Ids below are kept for special tokens: neither hashed to nor generated."""

_CONSONANTS, _VOWELS = "bdfghklmnprstvwz", "aeio"
_SYLLABLES = tuple(c + v for c in _CONSONANTS for v in _VOWELS)
_PAIRS = tuple(a + b for a in _SYLLABLES for b in _SYLLABLES)
_SYLLABLE_INDEX = {text: index for index, text in enumerate(_SYLLABLES[: VOCABULARY >> 12])}
_PAIR_INDEX = {text: index for index, text in enumerate(_PAIRS)}


def word(token: int) -> str:
    """The pseudo-word of an id in the vocabulary."""
    return _SYLLABLES[token >> 12] + _PAIRS[token & 0xFFF]


@lru_cache(maxsize=1 << 15)
def token_of(text: str) -> int:
    """The id of one word."""
    if len(text) == 6:
        high, low = _SYLLABLE_INDEX.get(text[:2]), _PAIR_INDEX.get(text[2:])
        if high is not None and low is not None:
            return high << 12 | low
    return FIRST_WORD + zlib.crc32(text.encode("utf-8", "surrogatepass")) % (VOCABULARY - FIRST_WORD)


def encode(text: str) -> list[int]:
    """The ids of a text: one for each whitespace-separated word."""
    return list(map(token_of, text.split()))


def decode(tokens: Iterable[int]) -> str:
    """The pseudo-words of `tokens`, separated by spaces."""
    return " ".join(map(word, tokens))


def render_chat(messages: Sequence[ChatMessage], *, add_generation_prompt: bool, continue_final: bool) -> str:
    """The chat template: `<|role|>` before and `<|end|>` after each message, then `<|assistant|>`.

    A message therefore costs its words and two tokens, the reply's opening one more.
    """
    parts = [f"<|{message.role}|> {message.text()} <|end|>" for message in messages]
    if continue_final and parts:
        parts[-1] = parts[-1].removesuffix(" <|end|>")
    elif add_generation_prompt:
        parts.append("<|assistant|>")
    return " ".join(parts)
