"""A step being filled: the token budget, the work so far and the sums the latency model asks for."""

from __future__ import annotations

from penstock.core.engine.active import Active
from penstock.core.engine.step import Admission, Step, Work
from penstock.core.models.latency import LatencyProfile

__all__ = ["Batch"]


class Batch:
    """Filled by the scheduler, then turned into a `Step`."""

    __slots__ = (
        "admitted", "budget", "context", "counts", "members", "preempted", "prompt_tokens", "sequences", "squares",
    )  # fmt: skip

    def __init__(self, budget: int) -> None:
        self.budget = budget  # Tokens this step may still compute.
        self.members: list[Active] = []
        self.counts: list[int] = []  # Tokens each of `members` computes.
        self.admitted: list[Admission] = []
        self.preempted: list[str] = []
        self.prompt_tokens = 0
        self.squares = 0
        self.sequences = 0
        self.context = 0

    def put(self, active: Active, tokens: int) -> None:
        """Let a sequence compute its next `tokens` tokens: a decode if that is one token after its own output."""
        computed = active.computed
        self.members.append(active)
        self.counts.append(tokens)
        self.budget -= tokens
        if tokens == 1 and active.generated and computed + 1 == active.total:
            self.sequences += 1
            self.context += computed + 1
        else:
            self.prompt_tokens += tokens
            self.squares += tokens * (tokens + 2 * computed)

    def step(self, number: int, profile: LatencyProfile) -> Step:
        """The step, timed. To be called before anything of it is computed."""
        ids = [active.id for active in self.members]
        computed = [active.computed for active in self.members]
        return Step(
            number=number,
            work=tuple(map(Work._make, zip(ids, self.counts, computed, strict=True))),
            duration_ms=profile.step_ms(self.prompt_tokens, self.squares, self.sequences, self.context),
            prompt_tokens=self.prompt_tokens,
            squares=float(self.squares),
            sequences=self.sequences,
            context=self.context,
            admitted=tuple(self.admitted),
            preempted=tuple(self.preempted),
        )
