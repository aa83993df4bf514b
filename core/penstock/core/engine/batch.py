"""A step being filled: the token budget, the work so far and the sums the latency model asks for."""

from __future__ import annotations

from penstock.core.engine.active import Active
from penstock.core.engine.step import Admission, Step
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
        """Let a sequence compute its next `tokens` tokens: a decode if that is one token after its own output, or the
        last of a prompt whose other KV came from elsewhere, which is as little work."""
        computed = active.computed
        self.members.append(active)
        self.counts.append(tokens)
        self.budget -= tokens
        if tokens == 1 and computed + 1 == active.total and (active.generated or active.remote_tokens):
            self.sequences += 1
            self.context += computed + 1
        else:
            self.prompt_tokens += tokens
            self.squares += tokens * (tokens + 2 * computed)

    def step(self, number: int, profile: LatencyProfile, mixed: float | None = None, swap_ms: float = 0.0) -> Step:
        """The step, timed: `mixed` is `EngineConfig.mixed_pass_factor`, `swap_ms` what copies to and from the host
        take. To be called before anything of it is computed."""
        return Step(
            number=number,
            ids=tuple([active.id for active in self.members]),
            counts=tuple(self.counts),
            computed=tuple([active.computed for active in self.members]),
            duration_ms=self._pass_ms(profile, mixed) + swap_ms,
            prompt_tokens=self.prompt_tokens,
            squares=float(self.squares),
            sequences=self.sequences,
            context=self.context,
            admitted=tuple(self.admitted),
            preempted=tuple(self.preempted),
            swap_ms=swap_ms,
        )

    def _pass_ms(self, profile: LatencyProfile, mixed: float | None) -> float:
        if mixed is None or not self.prompt_tokens or not self.sequences:
            return profile.step_ms(self.prompt_tokens, self.squares, self.sequences, self.context)
        prompts = profile.prefill_ms(self.prompt_tokens, self.squares)
        return max(mixed * prompts, profile.decode_ms(self.sequences, self.context))
