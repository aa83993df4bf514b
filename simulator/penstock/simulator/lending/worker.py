"""A worker whose sequences may have their last blocks at other workers, and which may hold others' blocks."""

from __future__ import annotations

from itertools import islice
from typing import Protocol

from penstock.core.engine import Step
from penstock.core.engine.active import Active, Phase
from penstock.simulator.events import EventQueue
from penstock.simulator.policies.infinite_llm import LOOKAHEAD, Instance, Need
from penstock.simulator.scenario import WorkerSpec
from penstock.simulator.worker import Listener, TwinWorker

__all__ = ["Charges", "LendingWorker"]


class Charges(Protocol):
    """Who knows what a pass costs beyond what the profile says."""

    def added_ms(self, worker: LendingWorker, step: Step) -> float:
        """What to add to the pass that begins; below 0 where creditors do more than trips cost."""
        ...


class LendingWorker(TwinWorker):
    """`own` blocks are its memory's; its engine's pool is larger, and a ledger keeps what is beyond closed."""

    __slots__ = ("_added", "_charges", "away", "creditor", "door_shut", "owed_ms")

    def __init__(
        self, number: int, slot: int, spec: WorkerSpec, events: EventQueue, listener: Listener, charges: Charges
    ) -> None:
        super().__init__(number, slot, spec, events, listener)
        self._charges = charges
        self._added = 0.0
        self.owed_ms = 0.0
        """Attention for debtors that its next pass has to take in."""
        self.away = 0
        """Blocks that lay elsewhere in the last pass."""
        self.creditor = False
        """Whether it has lent blocks: then it admits only what has room to its end."""
        self.door_shut = False
        """Whether it admits nobody."""

    @property
    def busy(self) -> bool:
        """Whether a pass is running."""
        return self._flight is not None or self._run is not None

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.spec.config.block_size)

    def blocks_of(self, active: Active) -> int:
        """Blocks that a sequence has, wherever they lie."""
        return active.capacity // self.spec.config.block_size

    def growth(self, active: Active) -> int:
        """Blocks that a sequence may still come to need."""
        return self.blocks_for(active.sequence.prompt_tokens + active.end_at) - self.blocks_of(active)

    def waiting(self) -> list[Active]:
        """The next in line: sequences live in the order they came, and the first to come is the first to be served."""
        waits = Phase.WAITING
        return list(islice((one for one in self.engine.living() if one.phase is waits), LOOKAHEAD))

    def seen(self, own: int) -> Instance:
        """What the manager sees of it; `settle` it first."""
        queues = self.engine.scheduler
        return Instance(
            own,
            queues.pool.free,
            sum(map(self.growth, queues.running)),
            len(queues.running),
            sum(active.total for active in queues.running),
            tuple(Need(self.growth(one), one.total, one.started) for one in self.waiting()),
        )

    def heed(self, now: float) -> None:
        """Its blocks have changed, which the next step may heed."""
        self._look_up(now)

    # How it differs from a worker that keeps to itself

    def _wake(self, now: float, argument: int) -> None:
        if self.busy or not (self.creditor or self.door_shut):
            super()._wake(now, argument)
            return
        pool = self.engine.scheduler.pool
        kept = pool.free - self._next_step() - self._admissible()
        pool.take(kept)
        super()._wake(now, argument)
        pool.give_back((), kept)

    def _next_step(self) -> int:
        """Blocks that the running sequences take in the next step, as the scheduler gives them out."""
        budget, need = self.spec.config.max_num_batched_tokens, 0
        for active in self.engine.scheduler.running:
            if budget <= 0:
                break
            tokens = min(active.total - active.computed, budget)
            need += max(0, self.blocks_for(active.computed + tokens) - self.blocks_of(active))
            budget -= tokens
        return min(need, self.engine.scheduler.pool.free)

    def _admissible(self) -> int:
        """Blocks for the prompts of those next in line that have room to their end beside all that run."""
        if self.door_shut:
            return 0
        queues = self.engine.scheduler
        room, prompts = queues.pool.free - sum(map(self.growth, queues.running)), 0
        for one in self.waiting() if room > 0 else ():
            room -= self.growth(one)
            if room < 0:
                break
            prompts += self.blocks_for(one.total)
        return prompts

    def _end_after(self, milliseconds: float) -> None:
        if self._flight is not None:
            self._added = self._charges.added_ms(self, self._flight)
            milliseconds += self._added
        super()._end_after(milliseconds)

    def _end_step(self, step: Step, now: float) -> None:
        self.meter.pass_over(step.prompt_tokens, self._added)
        super()._end_step(step, now)
