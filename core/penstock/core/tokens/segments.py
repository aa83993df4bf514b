"""Tokens of texts that were seen before, without making them again: a chat's earlier turns are most of its prompt.

A tokenizer first cuts a text at its special tokens and then treats each segment by itself, so a segment's ids can be
kept. That holds where special tokens are matched as they stand (no stripping of spaces around them, no normalizing
before) and where no segment is treated as the first one; `cacheable` says whether it does. A turn of a chat is a
segment, so of a long conversation only the new turns are work.
"""

import json
import re
from array import array
from collections import OrderedDict
from threading import Lock

import tokenizers

MOST_IDS = 1 << 22
"""Ids kept in all segments together: 16 MiB for one model, and about as much again for their texts."""
_SHORTEST = 32
"""Characters below which a segment is not worth a place."""


def cacheable(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a text's ids are those of its segments, one after the other."""
    plain = all(
        not (token.lstrip or token.rstrip or token.single_word or (token.normalized and token.special))
        for token in tokenizer.get_added_tokens_decoder().values()
    )
    return plain and not _marks_first(json.loads(tokenizer.to_str())["pre_tokenizer"])


def _marks_first(step: object) -> bool:
    """Whether a pre-tokenizer does something else with the text's beginning than with a later segment's."""
    if isinstance(step, dict):
        return step.get("prepend_scheme") == "first" or any(map(_marks_first, step.values()))
    return isinstance(step, list) and any(map(_marks_first, step))


class SegmentCache:
    """Encodes texts without the tokens put around them, as the tokenizer does. Safe to use from several threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, most_ids: int = MOST_IDS) -> None:
        """`tokenizer` must be `cacheable`; no tokens may be added to it afterwards."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in added.items() if not token.normalized}
        # The tokenizer takes the leftmost match and of these the longest; so does this order.
        longest_first = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._kept: OrderedDict[str, array[int]] = OrderedDict()
        self._ids, self._most = 0, most_ids
        self._lock = Lock()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, special tokens in it among them, none put around it."""
        segments = [segment for segment in self._cut.split(text) if segment] if self._cut is not None else [text]
        found = self._find(segments)
        missing = list(dict.fromkeys(s for s in segments if s not in self._special and s not in found))
        # One call for all of them, during which other threads run.
        encodings = self._tokenizer.encode_batch_fast(missing, add_special_tokens=False) if missing else []
        made = {segment: array("I", encoding.ids) for segment, encoding in zip(missing, encodings, strict=True)}
        self._keep(made)
        return self._joined(segments, found | made)

    def _joined(self, segments: list[str], known: dict[str, "array[int]"]) -> list[int]:
        ids: list[int] = []
        for segment in segments:
            number = self._special.get(segment)
            if number is None:
                ids.extend(known[segment])
            else:
                ids.append(number)
        return ids

    def _find(self, segments: list[str]) -> dict[str, "array[int]"]:
        found = {}
        with self._lock:
            for segment in segments:
                ids = self._kept.get(segment)
                if ids is not None:
                    self._kept.move_to_end(segment)
                    found[segment] = ids
        return found

    def _keep(self, made: dict[str, "array[int]"]) -> None:
        with self._lock:
            for segment, ids in made.items():
                if len(segment) >= _SHORTEST and segment not in self._kept:
                    self._kept[segment] = ids
                    self._ids += len(ids)
            while self._ids > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._ids -= len(oldest)
