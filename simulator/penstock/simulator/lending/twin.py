"""The twin of a cluster whose workers lend KV blocks to one another, as Infinite-LLM has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from penstock.core.engine import Step
from penstock.core.engine.active import Active
from penstock.core.traces import Trace
from penstock.simulator.events import CYCLE
from penstock.simulator.lending.ledger import Ledger
from penstock.simulator.lending.rules import LendingRules, check_scenario
from penstock.simulator.lending.worker import LendingWorker
from penstock.simulator.policies.infinite_llm import Law, Plan, plan_lending
from penstock.simulator.scenario import Impossible, Scenario, WorkerSpec
from penstock.simulator.twin import Twin
from penstock.simulator.worker import TwinWorker
from penstock.simulator.workloads.source import Workload

__all__ = ["Lending", "LendingTwin"]


@dataclass(frozen=True, slots=True)
class Lending:
    """What was lent in a run."""

    plans: int
    loans: int
    """Times that blocks were lent."""
    most_blocks: int
    """Lent at one time."""
    collections: int
    """Plans that collected blocks for a request too long for any worker."""


class LendingTwin(Twin):
    """Engines have the KV memory that `scenario` gives each, and sequences as long as all of it together."""

    def __init__(
        self, scenario: Scenario, trace: Trace | Workload, rules: LendingRules, numbers: Iterator[int] | None = None
    ) -> None:
        """Raises `Impossible` for a scenario that lending is not modelled with, as of workers of different pace, and as
        `Twin` does."""
        check_scenario(scenario)
        self.rules = rules
        self.lenders: list[LendingWorker] = []
        super().__init__(scenario, trace, numbers)
        profile = self.specs[0].profile
        if any(spec.profile != profile for spec in self.specs):
            raise Impossible("workers that lend KV memory must have one pace; give nodes of one accelerator class")
        self._law = Law(*profile.decode, rules.trip_ms, self.specs[0].config.block_size)
        self.ledger = Ledger(
            [worker.engine.scheduler.pool for worker in self.lenders], [spec.config.num_blocks for spec in self.specs]
        )
        self._plans = self._loans = self._most = self._collections = 0

    def lending(self) -> Lending:
        """What was lent so far."""
        return Lending(self._plans, self._loans, self._most, self._collections)

    def _add(self, number: int, spec: WorkerSpec) -> TwinWorker:
        alone = super()._add(number, spec)
        every = sum(one.config.num_blocks for one in self.specs)
        longest = min(every * spec.config.block_size, self.scenario.model.max_context)
        config = replace(spec.config, num_blocks=every, max_model_len=longest)
        worker = LendingWorker(number, alone.slot, replace(spec, config=config), self.events, self, self)
        self.lenders.append(worker)
        return worker

    def _begin(self) -> None:
        super()._begin()
        self.events.at(self.rules.period_s, CYCLE, 0, self._manage)

    # The manager

    def _manage(self, now: float, _: int) -> None:
        self.events.at(now + self.rules.period_s, CYCLE, 0, self._manage)
        for worker in self.lenders:
            worker.settle(now)
        seen = [worker.seen(own) for worker, own in zip(self.lenders, self.ledger.own, strict=True)]
        self._carry_out(plan_lending(seen, self.ledger.loans(), self._law), now)

    def _carry_out(self, plan: Plan, now: float) -> None:
        self._plans += 1
        self._collections += plan.collecting is not None
        before = self.ledger.loans()
        for change in plan.changes:
            if change.blocks > 0:
                self.ledger.lend(change.debtor, change.creditor, change.blocks)
            else:
                self.ledger.give_back(change.debtor, change.creditor, -change.blocks)
        loans = self.ledger.loans()
        self._loans += sum(blocks > before.get(pair, 0) for pair, blocks in loans.items())
        self._most = max(self._most, sum(loans.values()))
        partners = {number for pair in loans for number in pair}
        touched = {number for change in plan.changes for number in (change.debtor, change.creditor)}
        for worker in self.lenders:
            shut = plan.shut and worker.number != plan.collecting
            if worker.number in touched or worker.door_shut != shut:
                worker.creditor, worker.door_shut = bool(self.ledger.lent(worker.number)), shut
                # Passes of those who share one by one: what one asks of another is known only as each begins.
                worker.walk = shut or worker.number in partners
                worker.heed(now)

    # What passes cost

    def added_ms(self, worker: LendingWorker, step: Step) -> float:
        """As `Charges` has it: what debtors asked of this worker, and what its own remote context changes."""
        owed, worker.owed_ms = worker.owed_ms, 0.0
        away = self.ledger.away(worker.number)
        came, worker.away = away - worker.away, away
        if not away:
            return owed
        moved = max(0, came) * worker.spec.config.block_size * self.rules.move_ms
        return owed + moved + self._attention_ms(worker, step, away)

    def _attention_ms(self, worker: LendingWorker, step: Step, away: int) -> float:
        """What attention takes longer than at home: both parts run at one time, and the slower one counts."""
        queries, far = _remote(worker.engine.scheduler.running, step, away, worker.spec.config.block_size)
        if not queries:
            return 0.0
        per_token = worker.spec.profile.decode[2]
        parts = self.ledger.creditors(worker.number)
        borrowed = sum(parts.values())
        for creditor, blocks in parts.items():
            lender = self.lenders[creditor]
            if lender.busy:  # One that is idle does it beside nothing.
                lender.owed_ms += per_token * far * blocks / borrowed
        slowest = per_token * far * max(parts.values()) / borrowed
        trip = self.rules.trip_ms + self.rules.query_ms * queries + slowest
        home = per_token * (step.context - far)
        return max(home, trip) - per_token * step.context


def _remote(running: Sequence[Active], step: Step, away: int, block_size: int) -> tuple[int, int]:
    """(queries, tokens) of a step's attention to blocks elsewhere: these are the last of the longest sequences, of
    those that decode before those whose prompts are still computed, as a prompt has a query for each token. Tokens are
    those of output only, because profiles charge the attention of prompts to no context."""
    computes = dict(zip(step.ids, step.counts, strict=True))
    queries = tokens = 0
    for active in sorted(running, key=lambda one: (not one.decodes, -one.capacity, one.rank)):
        part = min(active.capacity // block_size, away)
        away -= part
        if active.id in computes:
            queries += computes[active.id]
            if active.decodes:
                tokens += min(part * block_size, active.computed + 1)
        if not away:
            break
    return queries, tokens
