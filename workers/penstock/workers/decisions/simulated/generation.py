"""What a simulated model says: each token is a hash of everything before it, prompt and output alike.

So the continuation of (prompt + first k output tokens) is exactly the rest of the original output: a replay that is
right cannot be told from the original, and one that loses, repeats or changes a single token shows in every word after.
"""

import zlib
from array import array
from collections.abc import Sequence

from penstock.core.tokens.builtin import FIRST_WORD, VOCABULARY, word

_SPAN = VOCABULARY - FIRST_WORD
_MASK = (1 << 64) - 1
# CRC is linear: drawing tokens from it directly runs into short cycles. The high half of a product is not linear.
_MIX, _MIX_END = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03


def seed_of(*parts: str | int | None) -> int:
    """A starting value from what makes outputs differ for equal tokens: adapter, sampling seed, choice."""
    text = "\0".join("" if part is None else str(part) for part in parts)
    return zlib.crc32(text.encode()) if any(part not in (None, 0, "") for part in parts) else 0


class Output:
    """One choice's tokens, drawn one at a time."""

    __slots__ = ("_state",)

    def __init__(self, prompt: Sequence[int], seed: int = 0) -> None:
        """`prompt`'s ids must lie in the vocabulary; equal (prompt, seed) give equal outputs."""
        self._state = zlib.crc32(array("I", prompt).tobytes(), seed)

    def next(self) -> int:
        """The next token."""
        token = FIRST_WORD + ((self._state * _MIX & _MASK) >> 32) % _SPAN
        self._state = zlib.crc32(token.to_bytes(4, "little"), self._state)
        return token

    def ends(self, mean_tokens: float) -> bool:
        """Whether the model stops here: true for one in `mean_tokens` histories, decided by the history itself."""
        return ((self._state * _MIX_END & _MASK) >> 32) * mean_tokens < 1 << 32


def planned_length(
    prompt: Sequence[int],
    seed: int,
    limit: int,
    *,
    mean_tokens: float = 0.0,
    least: int = 0,
    stops: Sequence[str] = (),
    stop_ids: frozenset[int] = frozenset(),
) -> tuple[int, str, str | int | None]:
    """How many tokens the output has, why it ends, and which stop ended it: (tokens, finish reason, stop reason).

    Output is a function of the prompt, so its end is known before its first token is drawn. `mean_tokens` 0 never ends
    by itself. Nothing ends before `least` tokens.
    """
    output, tail = Output(prompt, seed), ""
    keep = max(map(len, stops), default=0) + 8
    for count in range(1, limit + 1):
        if mean_tokens and count > least and output.ends(mean_tokens):
            return count, "stop", None
        token = output.next()
        if count < least:
            continue
        if token in stop_ids:
            return count, "stop", token
        if stops:
            tail = (tail + " " + word(token))[-keep:]
            for stop in stops:
                if stop in tail:
                    return count, "stop", stop
    return limit, "length", None
