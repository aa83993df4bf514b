"""Deployments that share an accelerator class, as a state machine: what may be held never grows beyond what it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoscaler_views import load, pool, snapshot, view
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from penstock.autoscaler.decisions.cycle import CycleRules, Looked, conclude, decide
from penstock.autoscaler.decisions.guard import GuardRules, Refused
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import PlanRules
from penstock.autoscaler.decisions.snapshot import DeploymentView, Pods

NAMES = ("one", "two", "three")
RULES = CycleRules(PlanRules(), GuardRules(window_s=30.0, pause_s=10.0, settle_s=5.0))
POOL = "chat-serve-h100"


@dataclass
class Deployment:
    """One WorkerPool and its pods."""

    accelerators: int
    """Of one worker."""
    replicas: int = 1
    live: int = 1
    leaving: int = 0
    rate: float = 1.0

    @property
    def held(self) -> int:
        return (max(self.live, self.replicas) + self.leaving) * self.accelerators

    def follow(self) -> None:
        self.leaving += max(0, self.live - self.replicas)
        self.live = self.replicas

    def seen(self, name: str, capacity: int) -> DeploymentView:
        pods = Pods(ready=self.live, terminating=self.leaving)
        members = pool(replicas=self.replicas, accelerators=self.accelerators, pods=pods, most=capacity)
        return replace(view(members, loads={"PrefillDecode": load(self.rate)}), key=("team", name))


class ClassMachine(RuleBasedStateMachine):
    """Three deployments, of one, two and four accelerators a worker, on sixteen of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.limit = 10_000.0, 16
        self.history = History(since=self.now)
        self.all = {name: Deployment(each) for name, each in zip(NAMES, (1, 2, 4), strict=True)}

    @rule(name=st.sampled_from(NAMES), rate=st.floats(0.0, 200.0))
    def load_changes(self, name: str, rate: float) -> None:
        self.all[name].rate = rate

    @rule(seconds=st.floats(1.0, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(NAMES))
    def a_drain_ends(self, name: str) -> None:
        self.all[name].leaving = 0

    @rule(name=st.sampled_from(NAMES))
    def a_person_deletes_a_worker(self, name: str) -> None:
        """Its ReplicaSet makes another at once, whatever the class has."""
        self.all[name].leaving += self.all[name].live > 0

    @rule(limit=st.integers(0, 24))
    def the_class_gets_more_or_less(self, limit: int) -> None:
        self.limit = limit

    @rule(order=st.permutations(NAMES))
    def cycle(self, order: list[str]) -> None:
        seen = snapshot(*(self.all[name].seen(name, 32) for name in order), now=self.now, h100=self.limit)
        looked = Looked(seen, seen, self.history)
        outcome = decide(looked, RULES)
        assert [each.key[1] for each in outcome.guarded] == list(order)
        before = {name: each.replicas for name, each in self.all.items()}
        after = {each.key[1]: each.moves[POOL] for each in outcome.guarded}
        young = self.now - self.history.since < RULES.guard.window_s
        grew = [name for name in NAMES if after[name] > before[name]]
        for name in NAMES:
            assert not young or after[name] >= before[name], "took a worker before a window was seen"
            self.all[name].replicas = after[name]
        held = sum(each.held for each in self.all.values())
        assert not grew or held <= self.limit, f"{grew} grew to {held} of {self.limit}"
        for each, plan in zip(outcome.guarded, outcome.plan.deployments, strict=True):
            wish, name = plan.moves[POOL], each.key[1]
            short = Refused.CLASS_EXHAUSTED in [refusal.refused for refusal in each.refusals]
            assert not short or (after[name] >= before[name] and wish > after[name]), "a class takes growth alone"
        self.history = conclude(looked, outcome, outcome.guarded, RULES)
        for deployment in self.all.values():
            deployment.follow()

    @invariant()
    def nobody_is_left_without_a_worker(self) -> None:
        assert all(each.replicas >= 1 for each in self.all.values())

    @invariant()
    def memory_is_bounded_by_the_window(self) -> None:
        """Cycles at one instant aside, a wish leaves when its window is over."""
        for wishes in self.history.wishes.values():
            newest = max(at for at, _ in wishes)
            assert all(at >= newest - RULES.guard.window_s for at, _ in wishes)


TestSharedClass = ClassMachine.TestCase
TestSharedClass.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
