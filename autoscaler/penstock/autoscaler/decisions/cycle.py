"""One scaling cycle between observing and acting, the same functions wherever it runs: plan, guard, remember."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from penstock.autoscaler.decisions.demand import DemandRules
from penstock.autoscaler.decisions.guard import Guarded, GuardRules, guard, remember
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observe import ViewRules
from penstock.autoscaler.decisions.plan import DeploymentPlan, Plan, PlanRules, plan
from penstock.autoscaler.decisions.planners import DEFAULT_PLANNER
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, DeploymentView

FRESH_SCRAPES = 3
"""A sample is fresh for as long as this many scrapes take: one may be lost without a word."""
RECENT_SCRAPES = 2.5
"""The shortest look at the load is as long as this many scrapes take: whatever their rhythm, two lie within."""


@dataclass(frozen=True, slots=True)
class CycleTimes:
    """What a user sets of a cycle, times in seconds; the rules of its parts follow from it."""

    scrape_interval_s: float = 5.0
    signal_window_s: float = 60.0
    """Over which rates and means are taken."""
    scale_in_window_s: float = 300.0
    """Scale-in goes no lower than the largest wish of this long (times the time scale)."""
    time_scale: float = 1.0
    """Multiplies the guard's windows, for clusters whose engines run faster or slower than real ones."""
    planner: str = DEFAULT_PLANNER
    """Who sizes pools."""

    @property
    def fresh_s(self) -> float:
        """How old a sample may be and still count as the present."""
        return FRESH_SCRAPES * self.scrape_interval_s

    @property
    def view(self) -> ViewRules:
        """How demand is measured."""
        recent_s = min(RECENT_SCRAPES * self.scrape_interval_s, self.signal_window_s)
        demand = DemandRules(self.signal_window_s, recent_s, self.fresh_s)
        base, scale = ViewRules(), self.time_scale
        return ViewRules(demand, give_up_s=base.give_up_s * scale, other_writer_s=base.other_writer_s * scale)

    @property
    def plan(self) -> PlanRules:
        """How plans are made."""
        return PlanRules(max_age_s=self.fresh_s + self.scrape_interval_s, planner=self.planner)

    @property
    def guard(self) -> GuardRules:
        """How fast plans may be followed."""
        return GuardRules(window_s=self.scale_in_window_s).scaled(self.time_scale)

    @property
    def rules(self) -> "CycleRules":
        """Plan and guard."""
        return CycleRules(self.plan, self.guard)


@dataclass(frozen=True, slots=True)
class CycleRules:
    """How plans are made, and how fast they are followed."""

    plan: PlanRules = field(default_factory=PlanRules)
    guard: GuardRules = field(default_factory=GuardRules)


@dataclass(frozen=True, slots=True)
class Looked:
    """What a cycle knows: the snapshot it plans from, a fresh one to guard by, and the past."""

    seen: ClusterSnapshot
    fresh: ClusterSnapshot
    history: History


@dataclass(frozen=True, slots=True)
class Decided:
    """The outcome of one cycle for one deployment."""

    view: DeploymentView
    plan: DeploymentPlan
    guarded: Guarded

    def nothing_done(self) -> Guarded:
        """What is remembered where nothing was done: no scale-in, and nothing given up that was never asked for."""
        return replace(self.guarded, moves={pool.name: pool.replicas for pool in self.view.pools}, gave_up=())


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one cycle."""

    plan: Plan
    guarded: tuple[Guarded, ...]

    def joined(self, fresh: ClusterSnapshot) -> tuple[Decided, ...]:
        """By deployment, with what was guarded by."""
        plans = {each.key: each for each in self.plan.deployments}
        views = {view.key: view for view in fresh.deployments}
        return tuple(Decided(views[each.key], plans[each.key], each) for each in self.guarded)


def decide(looked: Looked, rules: CycleRules) -> Outcome:
    """What should be, and what of it may be done now."""
    planned = plan(looked.seen, rules.plan)
    return Outcome(planned, guard(planned, looked.fresh, looked.history, rules.guard))


def conclude(looked: Looked, outcome: Outcome, done: Sequence[Guarded], rules: CycleRules) -> History:
    """The past that the next cycle knows; `done` is what was really done of the outcome."""
    return remember(looked.history, outcome.plan, done, looked.fresh, rules.guard)


def in_order(decided: Decided) -> Iterable[str]:
    """The WorkerPools that change, in the order of writing: what is given back comes before what is asked for."""
    moves, pools = decided.guarded.moves, decided.view.pools
    changed = [pool for pool in pools if moves[pool.name] != pool.replicas]
    return [pool.name for pool in sorted(changed, key=lambda pool: moves[pool.name] - pool.replicas)]
