"""The guard's promises as a state machine: any load, any delay, any fault, any other hand on the pods, in any order."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoscaler_views import KEY, load, pool, snapshot, view
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from penstock.autoscaler.decisions.guard import Guarded, GuardRules, guard, remember
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import Plan, PlanRules, plan
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, Pods, PoolView

GUARD = GuardRules(window_s=60.0, pause_s=20.0, retry_s=120.0)
PLAN = PlanRules()
COST = {"h100": 4.0, "a100": 2.0}


@dataclass
class Pool:
    """A WorkerPool and its pods, as operator, scheduler and kubelet would have them."""

    role: str
    accelerator: str
    accelerators: int
    replicas: int = 1
    least: int = 1
    most: int = 12
    ready: int = 1
    starting: int = 0
    pending: list[float] = field(default_factory=list)
    terminating: int = 0

    @property
    def name(self) -> str:
        return pool(self.role, accelerator=self.accelerator).name

    @property
    def held(self) -> int:
        return self.ready + self.starting + len(self.pending) + self.terminating

    def follow(self, now: float) -> None:
        """Make or end pods until they are what is wanted; pending and starting ones end first, without grace."""
        while self.ready + self.starting + len(self.pending) < self.replicas:
            self.pending.append(now)
        while self.ready + self.starting + len(self.pending) > self.replicas:
            if self.pending:
                self.pending.pop()
            elif self.starting:
                self.starting -= 1
                self.terminating += 1
            else:
                self.ready -= 1
                self.terminating += 1


class GuardMachine(RuleBasedStateMachine):
    """Two roles on h100, decode also on a100; budgets of accelerators and money; one class with little capacity."""

    max_accelerators = 16
    max_cost = 56.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 10_000.0
        self.pools = [Pool("Prefill", "h100", 2), Pool("Decode", "h100", 2), Pool("Decode", "a100", 1, 0, 0, ready=0)]
        self.room = 40
        self.rates = {"Prefill": 1.0, "Decode": 1.0}
        self.age, self.coverage = 1.0, 1.0
        self.history = History(since=self.now)
        self.certain_since = self.now
        self.other_writer = ""
        self.last_in = -1e9
        self.wishes: list[tuple[float, dict[str, int]]] = []
        self.gave_up_at: dict[str, float] = {}
        self.over_by_others = False

    # ---- the world ------------------------------------------------------------------------------

    @rule(rate=st.floats(0.0, 250.0), share=st.floats(0.5, 1.0))
    def load_changes(self, rate: float, share: float) -> None:
        self.rates = {"Prefill": rate * share, "Decode": rate}

    @rule(seconds=st.floats(1.0, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def capacity_is_found(self) -> None:
        for each in self.pools:
            while each.pending and self.room >= each.accelerators:
                each.pending.pop(0)
                each.starting += 1
                self.room -= each.accelerators

    @rule(room=st.integers(0, 6))
    def capacity_is_short(self, room: int) -> None:
        self.room = room

    @rule()
    def workers_become_ready(self) -> None:
        for each in self.pools:
            each.ready, each.starting = each.ready + each.starting, 0

    @rule()
    def drains_end(self) -> None:
        for each in self.pools:
            self.room += each.terminating * each.accelerators
            each.terminating = 0

    @rule(which=st.integers(0, 2))
    def a_person_deletes_a_worker(self, which: int) -> None:
        """Its ReplicaSet replaces it at once: an overlap that the guard must count, and cannot prevent."""
        chosen = self.pools[which]
        if chosen.ready:
            chosen.ready -= 1
            chosen.terminating += 1
            chosen.follow(self.now)

    @rule(age=st.sampled_from([1.0, 15.0, 90.0]), coverage=st.sampled_from([1.0, 0.95, 0.6]))
    def signals_change(self, age: float, coverage: float) -> None:
        self.age, self.coverage = age, coverage

    @rule(writer=st.sampled_from(["", "", "kube-controller-manager"]))
    def another_writer(self, writer: str) -> None:
        self.other_writer = writer

    @rule()
    def the_autoscaler_is_killed(self) -> None:
        self.history = History(since=self.now)

    # ---- a cycle --------------------------------------------------------------------------------

    @rule()
    def cycle(self) -> None:
        seen = self.look()
        planned = plan(seen, PLAN)
        (guarded,) = guard(planned, seen, self.history, GUARD)
        self.check(planned, guarded)
        for each in self.pools:
            each.replicas = guarded.moves[each.name]
            each.follow(self.now)
        self.history = remember(self.history, planned, (guarded,), seen, GUARD)

    @precondition(lambda self: self.now < 11_000.0)
    @rule(times=st.integers(2, 8))
    def quiet_minutes(self, times: int) -> None:
        """Cycles with everything working, so that scale-ins and give-ups are reached."""
        for _ in range(times):
            self.now += 15.0
            self.capacity_is_found()
            self.workers_become_ready()
            self.drains_end()
            self.cycle()

    def look(self) -> ClusterSnapshot:
        loads = {role: load(rate, age_s=self.age, coverage=self.coverage) for role, rate in self.rates.items()}
        return snapshot(
            view(
                *(self.as_seen(each) for each in self.pools),
                loads=loads,
                max_accelerators=self.max_accelerators,
                max_cost=self.max_cost,
                ranges={"prefill": (1, 12), "decode": (1, 12)},
            ),
            now=self.now,
        )

    def as_seen(self, each: Pool) -> PoolView:
        oldest = max((self.now - made for made in each.pending), default=0.0)
        siblings = [p for p in self.pools if p.role == each.role and p is not each]
        taken = sum(p.replicas for p in siblings)
        return pool(
            each.role,
            each.replicas,
            each.accelerator,
            accelerators=each.accelerators,
            cost_per_hour=COST[each.accelerator] * each.accelerators,
            least=max(0, 1 - taken),
            most=max(1, 12 - taken),
            pods=Pods(each.ready, each.starting, len(each.pending), each.terminating, oldest),
            exhausted=self.history.exhausted((KEY[0], each.name), self.now),
            other_writer=self.other_writer,
            give_up_s=45.0,
        )

    # ---- the promises ---------------------------------------------------------------------------

    def check(self, planned: Plan, guarded: Guarded) -> None:
        before = {each.name: each.replicas for each in self.pools}
        after = dict(guarded.moves)
        shrinking = {name for name in after if after[name] < before[name]}
        growing = {name for name in after if after[name] > before[name]}
        pending_given_up = {e.name for e in self.pools if e.pending and self.now - min(e.pending) > 45.0}
        if self.other_writer:
            assert after == before, "another manager writes, and ours wrote too"
            return
        if self.age > PLAN.max_age_s or self.coverage < PLAN.least_coverage:
            assert shrinking <= pending_given_up, f"took workers away blindly: {before} -> {after}"
        if self.now - self.history.since < GUARD.window_s:
            assert shrinking <= pending_given_up, "took workers away before a whole window was seen"
        for each in self.pools:
            if each.name in pending_given_up:
                assert after[each.name] <= max(1, each.ready + each.starting), "waits for capacity that does not come"
            if each.name in shrinking & pending_given_up and each.name in self.still_wanted(planned):
                assert after[each.name] >= min(each.ready + each.starting, before[each.name]), (
                    "gave up a worker that is there"
                )
            if self.history.exhausted((KEY[0], each.name), self.now):
                assert each.name not in growing or after[each.name] <= max(1, each.ready + each.starting)
        for role in ("Prefill", "Decode"):
            self.check_role(role, planned, shrinking - pending_given_up, after)
        self.check_budget(before, after, growing)

    def still_wanted(self, planned: Plan) -> set[str]:
        moves = planned.deployments[0].moves
        return {each.name for each in self.pools if moves[each.name] >= each.replicas}

    def check_role(self, role: str, planned: Plan, shrinking: set[str], after: dict[str, int]) -> None:
        """Ready workers that stay carry the load that the plan was made for."""
        pools = [each for each in self.pools if each.role == role]
        lost = [each for each in pools if each.name in shrinking and after[each.name] < each.ready]
        if not lost:
            return
        (only,) = planned.deployments
        carried = sum(
            min(each.ready, after[each.name]) * (only.targets[each.name].requests_per_s or 0) for each in pools
        )
        assert carried >= only.needs[role] - 1e-9, f"{role}: {carried:.2f}/s left for {only.needs[role]:.2f}/s"

    def check_budget(self, before: dict[str, int], after: dict[str, int], growing: set[str]) -> None:
        """Whatever order pods come and go in: what may be held stays within the budgets, if anything was asked for."""
        held = {
            each.name: max(before[each.name], after[each.name], each.ready + each.starting + len(each.pending))
            + each.terminating
            for each in self.pools
        }
        accelerators = sum(held[each.name] * each.accelerators for each in self.pools)
        money = sum(held[each.name] * each.accelerators * COST[each.accelerator] for each in self.pools)
        assert not growing or (accelerators <= self.max_accelerators and money <= self.max_cost)

    @invariant()
    def bounds_hold(self) -> None:
        for role in ("Prefill", "Decode"):
            total = sum(each.replicas for each in self.pools if each.role == role)
            assert 1 <= total <= 12, f"{role} has {total}"

    @invariant()
    def asked_for_is_within_the_budget(self) -> None:
        """Not what others overlap by deleting, but what we ask for."""
        assert sum(each.replicas * each.accelerators for each in self.pools) <= self.max_accelerators


TestGuard = GuardMachine.TestCase
TestGuard.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
