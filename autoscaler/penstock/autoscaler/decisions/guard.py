"""The guard: what of a plan may be done now. It re-checks a fresh snapshot and may only make the plan safer.

Each check is a small function from replicas to replicas that says what it refused; they stand in one list, in an order
where later ones are the harder ones. Scale-out is limited by step, bounds and budgets; scale-in by everything else too:
it needs a certain load, a whole window of lower wishes, a pause since the last one, and ready workers that carry what
is there without those that go.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from penstock.autoscaler.decisions.budgets import cut_growth, cut_to_fit, total_held
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import DeploymentPlan, Plan, Target, Why
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, DeploymentView, Key, PoolView

Moves = dict[str, int]


class Refused(StrEnum):
    """Why the guard did not do what the plan said."""

    OTHER_WRITER = "OtherWriter"
    """Another manager writes replicas: two autoscalers would fight, so ours steps back."""
    NOTHING_WAKES = "NothingWakes"
    """`scaleToZeroAfter` is asked for and no request comes, but a deployment without workers could not be woken."""
    SIGNALS_MISSING = "SignalsMissing"
    """Nothing is taken away while the load is not known well enough."""
    STARTING = "Starting"
    """Workers of a role are coming up, so its load cannot be known yet; it will be without anybody's doing."""
    SETTLING = "Settling"
    """Nothing is taken away before the load was measured long enough."""
    STABILISING = "Stabilising"
    """The load was higher within the window, or the window was not observed yet."""
    COOLING_DOWN = "CoolingDown"
    """The last scale-in is too recent."""
    ROLLING_OUT = "RollingOut"
    """Nothing is taken away while revisions are exchanged."""
    UNCONFIRMED = "Unconfirmed"
    """More than the load surely asks for is added when two cycles in a row ask for it."""
    STEP_LIMITED = "StepLimited"
    """The rest follows in the next cycles."""
    SERVING = "Serving"
    """The workers that are ready could not carry the load, or the running requests, without those that would go."""
    TOGETHER = "Together"
    """Prefill and decode move by the same share of their way."""
    OUT_OF_BOUNDS = "OutOfBounds"
    """The WorkerPool's bounds, or those of the pool over its classes."""
    OVER_BUDGET = "OverBudget"
    """Accelerators or money; pods on their way out count."""
    CLASS_EXHAUSTED = "ClassExhausted"
    """The accelerator class has no more."""
    GAVE_UP = "GaveUp"
    """Capacity did not come in time; it is tried elsewhere."""


DEGRADING = frozenset({Refused.OTHER_WRITER, Refused.SIGNALS_MISSING, Refused.GAVE_UP})
"""Refusals that somebody should look at; the others are the guard's daily work."""
_TOLD = DEGRADING | {Refused.NOTHING_WAKES}
"""Refusals that are told though no move was changed."""


@dataclass(frozen=True, slots=True)
class GuardRules:
    """Limits of change. Seconds; `scaled` shortens or stretches all of them."""

    window_s: float = 300.0
    """Scale-in goes no lower than the largest wish of this long."""
    pause_s: float = 60.0
    """Between two scale-ins of a deployment."""
    settle_s: float = 30.0
    """Before this has passed since observation began, or since a role's first worker is ready, silence is no news.
    Not scaled: workers are asked as ever."""
    retry_s: float = 600.0
    """How long a class that gave no capacity is left alone."""
    out_factor: float = 2.0
    """A scale-out at most multiplies the workers by this..."""
    out_least: int = 4
    """...or adds this many, if that is more."""
    in_share: float = 0.34
    """A scale-in takes at most this share of the workers, and always may take one."""

    def scaled(self, factor: float) -> "GuardRules":
        """The same with all times multiplied."""
        return replace(
            self, window_s=self.window_s * factor, pause_s=self.pause_s * factor, retry_s=self.retry_s * factor
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that was not done."""

    refused: Refused
    message: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """What may be done about one deployment now."""

    key: Key
    moves: Mapping[str, int]
    """Replicas by WorkerPool; equal to the present ones where nothing changes."""
    refusals: tuple[Refusal, ...] = ()
    gave_up: tuple[str, ...] = ()
    """WorkerPools whose class is left alone from now on."""

    @property
    def degraded(self) -> Refusal | None:
        """The refusal that somebody should look at, if there is one."""
        return next((refusal for refusal in self.refusals if refusal.refused in DEGRADING), None)


@dataclass(frozen=True, slots=True)
class _Case:
    """What every check looks at."""

    view: DeploymentView
    plan: DeploymentPlan
    history: History
    rules: GuardRules
    now: float

    def current(self) -> Moves:
        return {pool.name: pool.replicas for pool in self.view.pools}

    def target(self, pool: PoolView) -> Target:
        return self.plan.targets.get(pool.name, Target(pool.replicas))


_Check = Callable[[_Case, Moves], tuple[Moves, str]]


def guard(plan: Plan, fresh: ClusterSnapshot, history: History, rules: GuardRules) -> tuple[Guarded, ...]:
    """What may be done now, deployment by deployment; one that is gone from the fresh snapshot is left out."""
    cases = [
        _Case(view, each, history, rules, fresh.now)
        for each in plan.deployments
        if (view := fresh.find(each.key)) is not None
    ]
    return _within_classes([_guarded(case) for case in cases], fresh)


def remember(
    history: History, plan: Plan, guarded: Sequence[Guarded], fresh: ClusterSnapshot, rules: GuardRules
) -> History:
    """The history after this cycle: wishes that rest on a known load, scale-ins, and classes given up."""
    views = {view.key: view for view in fresh.deployments}
    known = [each for each in plan.deployments if each.why in _MEASURED and each.key in views]
    wished = {(each.key[0], name): count for each in known for name, count in each.moves.items()}
    history = history.wishing(wished, fresh.now, rules.window_s)
    for each in guarded:
        if any(each.moves[pool.name] < pool.replicas for pool in views[each.key].pools):
            history = history.after_scale_in(each.key, fresh.now)
        for name in each.gave_up:
            history = history.giving_up((each.key[0], name), fresh.now + rules.retry_s)
    pools = {(view.key[0], pool.name) for view in fresh.deployments for pool in view.pools}
    return history.forgetting(pools, set(views), fresh.now)


_MEASURED = frozenset({Why.LOAD, Why.AT_LEAST, Why.AT_MOST})


def _guarded(case: _Case) -> Guarded:
    moves = {pool.name: case.target(pool).replicas for pool in case.view.pools}
    refusals: list[Refusal] = []
    for refused, check in CHECKS:
        checked, message = check(case, moves)
        if checked != moves or (refused in _TOLD and message):
            refusals.append(Refusal(refused, message))
        moves = checked
        if refused is Refused.OTHER_WRITER and message:
            return Guarded(case.view.key, moves, tuple(refusals))
    gave_up = tuple(p.name for p in case.view.pools if _overdue(p) and not p.exhausted) if _acts(case) else ()
    return Guarded(case.view.key, moves, tuple(refusals), gave_up)


def _acts(case: _Case) -> bool:
    return case.plan.why is not Why.OFF


def _other_writer(case: _Case, moves: Moves) -> tuple[Moves, str]:
    writers = sorted({pool.other_writer for pool in case.view.pools if pool.other_writer})
    if not writers or not _acts(case):
        return moves, ""
    return case.current(), (
        f"{', '.join(writers)} wrote replicas of this deployment's WorkerPools lately; remove that autoscaler, or set "
        "autoscaling.mode to Advise or Off"
    )


def _kept_awake(case: _Case, moves: Moves) -> tuple[Moves, str]:
    """Says why a deployment that nobody asks keeps its last workers; the plan never has fewer than one of a role."""
    after_s = case.view.to_zero_after_s
    if after_s is None or not _acts(case) or not _unasked(case.plan):
        return moves, ""
    return moves, (
        f"no request comes and scaleToZeroAfter is {after_s:g} s, but nothing wakes a deployment without workers yet: "
        "one of each role stays"
    )


def _unasked(plan: DeploymentPlan) -> bool:
    """Whether no request is expected, or none was ever seen."""
    return plan.why is Why.UNUSED or (bool(plan.needs) and not any(plan.needs.values()))


def _not_in_doubt(case: _Case, moves: Moves) -> tuple[Moves, str]:
    said = "" if case.plan.certain or not _acts(case) else _doubt(case)
    return (_no_scale_in(case, moves) if said else moves), said


def _started(case: _Case, moves: Moves) -> tuple[Moves, str]:
    roles = _coming_up(case) if _acts(case) else []
    if not roles:
        return moves, ""
    return _no_scale_in(case, moves), (
        f"workers of role {', '.join(roles)} are coming up, so its load is not known yet; nothing is taken away before"
    )


def _settled(case: _Case, moves: Moves) -> tuple[Moves, str]:
    if case.plan.certain or not _acts(case):
        return moves, ""
    return _no_scale_in(case, moves), "the load was not measured long enough to take workers away"


def _doubt(case: _Case) -> str:
    """What is not known, with its age; empty while nothing could be known yet."""
    if case.plan.why is Why.NO_PROFILE:
        return case.plan.reason
    if case.now - case.history.since < case.rules.settle_s:
        return ""
    return "; ".join(said for role in case.plan.doubtful if (said := _silence(case, role)))


def _silence(case: _Case, role: str) -> str:
    """What is not known of a role whose workers are up long enough to be known; empty for one that is coming up."""
    load = case.view.loads.get(role)
    if load is None:
        if _serving_s(case, role) < case.rules.settle_s:
            return ""
        return f"the load of role {role} is not known; nothing is taken away until its workers answer"
    return (
        f"the load of role {role} is known from {load.coverage:.0%} of its workers, {load.age_s:.0f} s ago; nothing is "
        "taken away until they answer"
    )


def _coming_up(case: _Case) -> list[str]:
    """Roles without a ready worker, or whose workers are ready for so short a time that no load can be known."""
    unknown = [role for role in case.plan.doubtful if case.view.loads.get(role) is None]
    return [role for role in unknown if _serving_s(case, role) < case.rules.settle_s]


def _serving_s(case: _Case, role: str) -> float:
    """How long a worker of the role has been ready; zero where none is."""
    ready = (pool.pods.ready_s for pool in case.view.pools if pool.role == role and pool.pods.ready > 0)
    return max(ready, default=0.0)


def _stabilised(case: _Case, moves: Moves) -> tuple[Moves, str]:
    after = case.now - case.rules.window_s
    kept = dict(moves)
    for pool in case.view.pools:
        if moves[pool.name] >= pool.replicas:
            continue
        wished = case.history.most_wished((case.view.key[0], pool.name), after)
        observed = case.history.since <= after
        floor = max(moves[pool.name], wished or 0) if observed else pool.replicas
        kept[pool.name] = min(pool.replicas, floor)
    return kept, f"the load was higher within the last {case.rules.window_s:.0f} s, or was not observed that long"


def _paused(case: _Case, moves: Moves) -> tuple[Moves, str]:
    since = case.now - case.history.scaled_in.get(case.view.key, -math.inf)
    if since >= case.rules.pause_s:
        return moves, ""
    return _no_scale_in(case, moves), f"the last scale-in was {since:.0f} s ago"


def _not_while_rolling(case: _Case, moves: Moves) -> tuple[Moves, str]:
    return (_no_scale_in(case, moves) if case.view.moving else moves), "workers of two revisions stand side by side"


def _no_scale_in(case: _Case, moves: Moves) -> Moves:
    return {pool.name: max(moves[pool.name], pool.replicas) for pool in case.view.pools}


def _confirmed(case: _Case, moves: Moves) -> tuple[Moves, str]:
    """Growth of a role that one look alone asks for waits for the next one; what is sure does not.

    Roles are counted, not WorkerPools: a wish that goes from one class to another is no less confirmed for it.
    """
    kept = dict(moves)
    for role in {pool.role for pool in case.view.pools}:
        pools = [pool for pool in case.view.pools if pool.role == role]
        excess = sum(case.target(pool).replicas for pool in pools) - _backed(case, pools)
        for pool in sorted(pools, key=lambda pool: (pool.replicas - moves[pool.name], pool.name)):
            cut = max(0, min(excess, moves[pool.name] - pool.replicas))
            kept[pool.name] -= cut
            excess -= cut
    return kept, "the load may be lower, and the cycle before asked for fewer"


def _backed(case: _Case, pools: Sequence[PoolView]) -> int:
    """Workers of a role that either the load surely needs or the cycle before asked for too."""
    targets = [case.target(pool) for pool in pools]
    sure = sum(target.replicas if target.sure is None else target.sure for target in targets)
    before = sum(case.history.last_wished((case.view.key[0], pool.name)) or 0 for pool in pools)
    return max(sure, before)


def _stepwise(case: _Case, moves: Moves) -> tuple[Moves, str]:
    rules, limited = case.rules, dict(moves)
    for pool in case.view.pools:
        most = max(pool.replicas + rules.out_least, math.ceil(pool.replicas * rules.out_factor))
        least = pool.replicas - max(1, int(pool.replicas * rules.in_share))
        limited[pool.name] = max(least, min(most, moves[pool.name]))
    return limited, "larger than one step"


def _carrying(case: _Case, moves: Moves) -> tuple[Moves, str]:
    """Workers go only where those that are ready carry the load, and the requests running, without them."""
    kept = dict(moves)
    for role in {pool.role for pool in case.view.pools}:
        pools = [pool for pool in case.view.pools if pool.role == role]
        if all(kept[pool.name] >= pool.replicas for pool in pools):
            continue
        if not _carries(case, pools, kept, role):
            kept |= {pool.name: max(kept[pool.name], pool.replicas) for pool in pools}
    for pool in case.view.pools:
        if kept[pool.name] < pool.replicas and pool.running.known and pool.worker is not None:
            busy = math.ceil(pool.running.value / pool.worker.max_sequences)
            kept[pool.name] = min(pool.replicas, max(kept[pool.name], busy))
    return kept, "the ready workers that would stay do not carry the load"


def _carries(case: _Case, pools: Sequence[PoolView], moves: Moves, role: str) -> bool:
    need = case.plan.needs.get(role)
    if need is None:
        return False
    ready = math.fsum(min(moves[p.name], p.pods.ready) * (case.target(p).requests_per_s or 0.0) for p in pools)
    # Pods that never served are no loss: giving up what is not ready is judged by what is.
    losing = any(moves[p.name] < min(p.replicas, p.pods.ready) for p in pools)
    return not losing or ready >= need


def _together(case: _Case, moves: Moves) -> tuple[Moves, str]:
    """Prefill and decode that shrink do so by the same share of their way, so that their ratio stays the plan's."""
    roles = {pool.role for pool in case.view.pools}
    if not {"Prefill", "Decode"} <= roles:
        return moves, ""
    shrinking = [p for p in case.view.pools if case.target(p).replicas < p.replicas]
    shares = [(p.replicas - moves[p.name]) / (p.replicas - case.target(p).replicas) for p in shrinking]
    share = max(0.0, min(shares, default=1.0))
    kept = dict(moves)
    for pool in shrinking:
        way = (pool.replicas - case.target(pool).replicas) * share
        # Rounded up where this step had some way to go at all: a whole worker must be able to leave.
        kept[pool.name] = max(moves[pool.name], pool.replicas - math.ceil(way - 1e-9))
    return kept, "prefill and decode move together"


def _given_up(case: _Case, moves: Moves) -> tuple[Moves, str]:
    late = [pool for pool in case.view.pools if _overdue(pool)]
    if not late or not _acts(case):
        return moves, ""
    kept = dict(moves)
    for pool in late:
        kept[pool.name] = min(moves[pool.name], max(pool.least, pool.pods.scheduled))
    waited = ", ".join(f"{pool.pods.pending} of {pool.accelerator} for {pool.pods.pending_s:.0f} s" for pool in late)
    return kept, f"no capacity came for {waited}; what is not there is no longer asked for, other classes are tried"


def _overdue(pool: PoolView) -> bool:
    return pool.pods.pending > 0 and pool.pods.pending_s > pool.give_up_s


def _bounded(case: _Case, moves: Moves) -> tuple[Moves, str]:
    bounded = {pool.name: max(pool.least, min(pool.most, moves[pool.name])) for pool in case.view.pools}
    for name, (least, most) in case.view.ranges.items():
        members = [pool for pool in case.view.pools if pool.pool == name]
        for pool in members:  # Growth over the sum is given back, last pool first; so is shrinking below it.
            excess = sum(bounded[p.name] for p in members) - most
            bounded[pool.name] -= max(0, min(excess, bounded[pool.name] - pool.replicas))
            missing = least - sum(bounded[p.name] for p in members)
            bounded[pool.name] += max(0, min(missing, pool.replicas - bounded[pool.name]))
    return bounded, "the bounds of a WorkerPool or of the pool over its classes"


def _within_budget(case: _Case, moves: Moves) -> tuple[Moves, str]:
    view, cut, said = case.view, dict(moves), []
    least = {pool.name: pool.least for pool in view.pools}
    limits: tuple[tuple[str, float | None, Callable[[PoolView], float]], ...] = (
        ("accelerators", view.max_accelerators, lambda pool: float(pool.accelerators)),
        ("money per hour", view.max_cost, lambda pool: pool.cost_per_hour or 0.0),
    )
    for name, limit, weigh in limits:
        if limit is None:
            continue
        # Growth goes first; only a budget below what is asked for already takes workers away.
        fitting = cut_to_fit(view.pools, cut_growth(view.pools, cut, limit, weigh), least, limit, weigh)
        if fitting != cut:
            now = total_held(view.pools, case.current(), weigh)
            said.append(f"the budget is {limit:g} {name}, pods hold or were promised {now:g}")
        cut = fitting
    return cut, "; ".join(said)


CHECKS: tuple[tuple[Refused, _Check], ...] = (
    (Refused.OTHER_WRITER, _other_writer),
    (Refused.NOTHING_WAKES, _kept_awake),
    (Refused.SIGNALS_MISSING, _not_in_doubt),
    (Refused.STARTING, _started),
    (Refused.SETTLING, _settled),
    (Refused.STABILISING, _stabilised),
    (Refused.COOLING_DOWN, _paused),
    (Refused.ROLLING_OUT, _not_while_rolling),
    (Refused.UNCONFIRMED, _confirmed),
    (Refused.STEP_LIMITED, _stepwise),
    (Refused.SERVING, _carrying),
    (Refused.TOGETHER, _together),
    (Refused.GAVE_UP, _given_up),
    (Refused.OUT_OF_BOUNDS, _bounded),
    (Refused.OVER_BUDGET, _within_budget),
)
"""In order; later ones may overrule earlier ones."""


def _within_classes(guarded: Sequence[Guarded], fresh: ClusterSnapshot) -> tuple[Guarded, ...]:
    """Growth cut to what the accelerator classes have, over all deployments together."""
    result = list(guarded)
    views = {view.key: view for view in fresh.deployments}
    for accelerator, limit in sorted(fresh.class_limits.items()):
        pools = {
            (view.key, p.name): replace(p, name=f"{'/'.join(view.key)}/{p.name}")
            for view in views.values()
            for p in view.pools
            if p.accelerator == accelerator
        }
        wanted = {pool.name: pool.replicas for pool in pools.values()}
        wanted |= {pools[g.key, n].name: count for g in result for n, count in g.moves.items() if (g.key, n) in pools}
        allowed = cut_growth(list(pools.values()), wanted, limit, lambda pool: float(pool.accelerators))
        for at, each in enumerate(result):
            moves = {
                n: allowed[pools[each.key, n].name] if (each.key, n) in pools else c for n, c in each.moves.items()
            }
            if moves != each.moves:
                said = Refusal(Refused.CLASS_EXHAUSTED, f"{accelerator} has {limit} accelerators in all")
                result[at] = replace(each, moves=moves, refusals=(*each.refusals, said))
    return tuple(result)
