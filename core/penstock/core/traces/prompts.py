"""Prompts of exactly the right length whose shared beginnings are those of the trace.

The prompt of a request is a list of token ids: for each of its prefix blocks the run of ids that stands for this
block, cut to the prompt's length, and after the known blocks ids of its own. Equal blocks give equal runs, so an
engine's prefix cache hits exactly where the trace says that prompts were alike. Ids are sent rather than text,
because only they have one length for every tokenizer; they can be written as words for an engine that counts words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from penstock.core.traces.requests import TraceRequest

FIRST_ID = 10_000
"""Far above control tokens and single bytes, which may be special to a model or leave broken characters."""

END_ID = 31_000
"""Below the smallest vocabulary of the catalogue (32,000), so that every model takes every id.

From FIRST_ID on every id has five digits, so that writing a prompt is one look-up in a table of equal cells.
"""

_BLOCK_CACHE = 4096

Ids = npt.NDArray[np.int32]


def as_json(ids: Ids) -> bytes:
    """The ids as a JSON list."""
    return b"[" + _cells(b"%d,")[ids - FIRST_ID].tobytes()[:-1] + b"]"


def as_words(ids: Ids) -> str:
    """The ids as words with a space between, one word an id: for an engine whose tokens are words."""
    return _cells(b"t%d ")[ids - FIRST_ID].tobytes()[:-1].decode("ascii")


@lru_cache
def _cells(form: bytes) -> npt.NDArray[np.uint8]:
    written = b"".join(form % token for token in range(FIRST_ID, END_ID))
    return np.frombuffer(written, dtype=np.uint8).reshape(END_ID - FIRST_ID, -1)


class PromptMaker:
    """Makes the prompts of one trace; equal seeds make equal prompts."""

    def __init__(self, seed: int, block_tokens: int) -> None:
        self._seed = seed
        self._block_tokens = block_tokens
        self._block: Callable[[int], Ids] = lru_cache(maxsize=_BLOCK_CACHE)(self._make_block)

    def token_ids(self, request: TraceRequest, index: int) -> Ids:
        """The prompt of the request at place `index` of its trace: `request.input_tokens` ids."""
        runs = [self._block(block) for block in request.prefix_blocks]
        own = request.input_tokens - len(runs) * self._block_tokens
        if own > 0:
            runs.append(self._run((1, index), own))
        return np.concatenate(runs)[: request.input_tokens]

    def _make_block(self, block: int) -> Ids:
        return self._run((0, block), self._block_tokens)

    def _run(self, key: tuple[int, int], length: int) -> Ids:
        return np.random.default_rng((self._seed, *key)).integers(FIRST_ID, END_ID, length, dtype=np.int32)
