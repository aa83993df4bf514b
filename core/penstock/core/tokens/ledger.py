"""Predicted against measured cache hits, per model: the proof that tokens, hashes and index say what engines do.

A pick predicts how many prompt tokens its worker has cached; the engine later reports how many it found
(`usage.prompt_tokens_details.cached_tokens`). Where the two part, something between is wrong: a template that renders
otherwise, another hash seed, lost events. The alarm looks at the last requests only, so that it also clears.

A request whose engine reported nothing is counted and otherwise left out: unknown is not zero.
"""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """When prediction and measurement are too far apart."""

    window: int = 200
    """Requests looked back on."""
    least: int = 50
    """Requests in the window before anything is said."""
    rise: float = 0.10
    """Mean error, as a share of prompt tokens, above which the alarm rises."""
    clear: float = 0.05
    """Mean error below which it clears again."""

    def __post_init__(self) -> None:
        """Refuse a rule that could not work."""
        if not 1 <= self.least <= self.window:
            raise ValueError(f"least must lie from 1 to window, got {self.least} and {self.window}")
        if not 0 <= self.clear <= self.rise:
            raise ValueError(f"clear must lie from 0 to rise, got {self.clear} and {self.rise}")


@dataclass(frozen=True, slots=True)
class HitReading:
    """What the ledger says now. Totals count from the start, shares are of the window (None: nothing in it)."""

    requests: int
    unmeasured: int
    prompt_tokens: int
    predicted_tokens: int
    measured_tokens: int
    predicted_ratio: float | None
    measured_ratio: float | None
    error: float | None
    """Tokens predicted but not found, or found but not predicted, as a share of prompt tokens."""
    alarm: bool

    @property
    def message(self) -> str:
        """What to tell about it, and what to look at."""
        if self.predicted_ratio is None or self.measured_ratio is None or self.error is None:
            return "no request's cache hits were measured yet"
        told = f"predicted hit ratio {self.predicted_ratio:.3f}, measured {self.measured_ratio:.3f}"
        if not self.alarm:
            return told
        return (
            f"{told}, mean error {self.error:.3f} of the prompt: check that engines publish KV events, hash blocks "
            "with sha256_cbor and the seed set here, and run the chat template the router has"
        )


class HitLedger:
    """Keeps the accounts of one model. O(1) per request; holds `window` small entries."""

    __slots__ = ("_alarm", "_entries", "_measured", "_missed", "_predicted", "_prompt", "_rule", "_totals")

    def __init__(self, rule: AlarmRule | None = None) -> None:
        """An empty ledger."""
        self._rule = rule or AlarmRule()
        self._entries: deque[tuple[int, int, int]] = deque()
        self._prompt = self._predicted = self._measured = self._missed = 0
        self._totals = [0, 0, 0, 0, 0]
        self._alarm = False

    @property
    def alarm(self) -> bool:
        """Whether prediction and measurement are too far apart."""
        return self._alarm

    def record(self, prompt_tokens: int, predicted: int, measured: int | None) -> None:
        """One finished request: tokens of its prompt, cached ones predicted at the pick, and found by the engine.

        `measured` None: the engine did not say. Raises `ValueError` for counts that cannot be.
        """
        if prompt_tokens < 1 or not 0 <= predicted <= prompt_tokens or not 0 <= (measured or 0) <= prompt_tokens:
            raise ValueError(f"cannot be: {predicted} predicted and {measured} measured of {prompt_tokens} tokens")
        if measured is None:
            self._totals[1] += 1
            return
        for place, value in ((0, 1), (2, prompt_tokens), (3, predicted), (4, measured)):
            self._totals[place] += value
        self._entries.append((prompt_tokens, predicted, measured))
        self._count((prompt_tokens, predicted, measured), 1)
        if len(self._entries) > self._rule.window:
            self._count(self._entries.popleft(), -1)
        self._judge()

    def _count(self, entry: tuple[int, int, int], sign: int) -> None:
        prompt, predicted, measured = entry
        self._prompt += sign * prompt
        self._predicted += sign * predicted
        self._measured += sign * measured
        self._missed += sign * abs(predicted - measured)

    def _judge(self) -> None:
        if len(self._entries) < self._rule.least:
            return
        limit = self._rule.clear if self._alarm else self._rule.rise
        self._alarm = self._missed > limit * self._prompt

    def reading(self) -> HitReading:
        """The accounts as they stand."""
        shares = (self._predicted, self._measured, self._missed)
        predicted, measured, error = (part / self._prompt if self._prompt else None for part in shares)
        requests, unmeasured, *tokens = self._totals
        return HitReading(
            requests, unmeasured, tokens[0], tokens[1], tokens[2], predicted, measured, error, self._alarm
        )


def usable_tokens(matched_blocks: int, block_size: int, prompt_tokens: int) -> int:
    """Cached tokens an engine makes use of: whole blocks, and never the last token, which it has to compute."""
    return min(matched_blocks, (prompt_tokens - 1) // block_size) * block_size if prompt_tokens > 0 else 0
