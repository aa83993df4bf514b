"""A run that is given up as soon as it is lost, so that a plan which does not hold costs a part of a run only.

A request has missed its objectives for good when its first token is late, whether or not it has come by now, or when
its last one can no longer come in time. Once more requests have missed than may, nothing that follows can make the plan
hold: the answer is that of the whole run and comes earlier, the earlier the worse the plan is.

In haste a run is also given up when far more have missed by now than by now may, though the rest could make up for it.
Runs begin with idle workers, so that what comes later is hardly better; a plan that holds is rarely lost by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from penstock.core.reports import Outcome, Verdict
from penstock.simulator.events import SAMPLE
from penstock.simulator.planning.goal import Objectives
from penstock.simulator.twin import Twin

__all__ = ["GivenUp", "Watch", "latency"]

_LOOKS = 64  # Over the time in which requests arrive.
_KEY = -2  # Its place among those that look at the twin.
_AT_LEAST, _TIMES = 0.5, 1.6  # In haste: of all that may miss, and times what may have missed by now.
_SLACK_S = 1e-9  # Sums in another order than the twin's differ by rounding.


class GivenUp(Exception):
    """More requests than may have missed their objectives; `met` of the `decided` ones met them."""

    def __init__(self, met: int, decided: int) -> None:
        super().__init__(f"{decided - met} of {decided} requests have missed their objectives")
        self.met, self.decided = met, decided


class Watch:
    """Looks at a run now and then and raises `GivenUp` out of it when it is lost. It changes nothing of the run."""

    def __init__(
        self, twin: Twin, goal: Objectives, arrivals: Sequence[float], outputs: Sequence[int], fills: Sequence[float],
        spare: int, *, hasty: bool = False,
    ) -> None:  # fmt: skip
        """`fills` are the seconds that the twin leaves out of each TTFT; so many requests as `spare` may miss."""
        self._twin, self._goal, self._spare, self._hasty = twin, goal, spare, hasty
        self._arrivals, self._outputs, self._fills = arrivals, outputs, fills
        self._open: list[int] = []
        self._seen = self._met = self._missed = 0
        self._interval = max(arrivals[-1], goal.ttft_s) / _LOOKS
        self._look_again(0.0)

    def _look_again(self, now: float) -> None:
        self._twin.events.at(now + self._interval, SAMPLE, _KEY, self._look)

    def _look(self, now: float, _: int) -> None:
        while self._seen < len(self._arrivals) and self._arrivals[self._seen] < now:
            self._open.append(self._seen)
            self._seen += 1
        self._open = [index for index in self._open if not self._decided(index, now)]
        if self._missed > self._most():
            raise GivenUp(self._met, self._met + self._missed)
        self._look_again(now)

    def _most(self) -> float:
        """How many may have missed by now."""
        if not self._hasty:
            return self._spare
        return self._spare * min(1.0, max(_AT_LEAST, _TIMES * self._seen / len(self._arrivals)))

    def _decided(self, index: int, now: float) -> bool:
        """Whether this request is known to have met its objectives or to have missed them; counts it then."""
        outcome = self._twin.outcomes[index]
        if outcome is None:
            missed = now > self._due(index) + _SLACK_S
            self._missed += missed
            return missed
        ttft, tpot = latency(outcome, self._fills[index])
        met = ttft <= self._goal.ttft_s and tpot <= self._goal.tpot_s
        self._met += met
        self._missed += not met
        return True

    def _due(self, index: int) -> float:
        """When at the latest the next that is owed to a live request must have come: its first token or its last."""
        first_due = self._arrivals[index] + self._goal.ttft_s - self._fills[index]
        lived = self._twin.requests.living.get(index)
        first = None if lived is None else lived.first_s
        if first is None or first > first_due + _SLACK_S:
            return first_due
        return first + (self._outputs[index] - 1) * self._goal.tpot_s


def latency(outcome: Outcome, fill_s: float) -> tuple[float, float]:
    """(TTFT, TPOT) as the client has them, in seconds; no TPOT where there is one token only."""
    if outcome.verdict is not Verdict.COMPLETED or outcome.ttft_s is None:
        return math.inf, math.inf
    return outcome.ttft_s + fill_s, outcome.tpot_s or 0.0
