"""What a worker's accelerators were doing, for how long, and the energy that took."""

from __future__ import annotations

from functools import lru_cache

from penstock.core.models import Accelerator, Parallelism
from penstock.core.models.power import Phase, watts

__all__ = ["Meter"]

_PREFILL, _DECODE = Phase.PREFILL, Phase.DECODE
_FULL_TOKENS = 2048  # From here on a prefill pass draws what it draws at most.


class Meter:
    """Milliseconds and joules by phase, of all accelerators of one worker together. `clock` is the share of the maximum
    clock in the pass that is running; `set_clock` before each pass that runs at another."""

    __slots__ = (
        "_accelerator", "_count", "_decode", "_prefill", "_tensor", "busy_joules", "clock", "idle_watts",
        "milliseconds",
    )  # fmt: skip

    def __init__(self, accelerator: Accelerator, parallelism: Parallelism) -> None:
        self._accelerator, self._tensor = accelerator, parallelism.tensor
        self._count = parallelism.accelerators
        self.idle_watts = watts(accelerator, Phase.IDLE) * self._count
        self.set_clock(1.0)
        self.milliseconds = {_PREFILL: 0.0, _DECODE: 0.0}
        self.busy_joules = 0.0

    def set_clock(self, clock: float) -> None:
        """What follows runs at this share of the maximum clock and draws what `core.models.power` says for it. How long
        passes take then is the engine's affair (`Engine.set_speed`). Raises ValueError for a share out of (0, 1]."""
        self._decode = watts(self._accelerator, Phase.DECODE, clock, self._tensor) * self._count
        self._prefill = _prefill_table(self._accelerator, self._tensor, clock)
        self.clock = clock

    def pass_over(self, prompt_tokens: int, milliseconds: float) -> None:
        """A pass, or a run of them, took so long; with prompt tokens in it, it counts and draws as prefill."""
        self.milliseconds[_PREFILL if prompt_tokens else _DECODE] += milliseconds
        draw = self._prefill_watts(prompt_tokens) if prompt_tokens else self._decode
        self.busy_joules += draw * milliseconds / 1e3

    def draw(self, prompt_tokens: int) -> float:
        """Watts in a pass with so many prompt tokens."""
        return self._prefill_watts(prompt_tokens) if prompt_tokens else self._decode

    @property
    def busy_seconds(self) -> float:
        """Time in passes."""
        return sum(self.milliseconds.values()) / 1e3

    def joules(self, alive_seconds: float) -> float:
        """Energy over a life of so many seconds; what was not spent in passes was spent waiting."""
        return self.busy_joules + self.idle_watts * max(0.0, alive_seconds - self.busy_seconds)

    def _prefill_watts(self, tokens: int) -> float:
        tokens = min(tokens, _FULL_TOKENS)
        draw = self._prefill.get(tokens)
        if draw is None:
            draw = watts(self._accelerator, Phase.PREFILL, self.clock, self._tensor, tokens)
            self._prefill[tokens] = draw
        return draw * self._count


@lru_cache(maxsize=64)
def _prefill_table(accelerator: Accelerator, tensor: int, clock: float) -> dict[int, float]:
    """Watts of one accelerator by prompt tokens of a pass, filled as they are asked for; one table for all alike."""
    return {}
