"""How many workers each WorkerPool should have: the plan, before the guard makes it safe.

The methods stand in an ordered list and the first that has an answer acts. The last but one asks a planner that was
chosen by name, where one was (`planners`). The last one is target tracking: every role of a deployment gets workers for
the same forecast load, prefill and decode together, on the accelerator classes that serve most requests per money. At
fixed class the number never falls when the load grows; over classes the planned
throughput never does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from penstock.autoscaler.decisions.backlog import backlog
from penstock.autoscaler.decisions.capacity import MARGINS, Margins, Throughput, throughput
from penstock.autoscaler.decisions.planners import DEFAULT_PLANNER, find_planner
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, DeploymentView, Key, PoolView, RoleLoad

_MANY = 100_000


class Why(StrEnum):
    """Why a plan is what it is."""

    OFF = "Off"
    """The deployment's mode is Off."""
    UNMEASURED = "Unmeasured"
    """No load was ever measured, or not lately: what there is is held."""
    UNUSED = "Unused"
    """No request was seen yet, so nothing is known of their tokens: what there is is held."""
    NO_PROFILE = "NoProfile"
    """Nothing says how fast a worker is: what there is is held."""
    LOAD = "Load"
    """Workers for the forecast load."""
    AT_LEAST = "AtLeast"
    """The load needs fewer than the least allowed."""
    AT_MOST = "AtMost"
    """The load needs more than the most allowed, or than there is capacity for."""


@dataclass(frozen=True, slots=True)
class PlanRules:
    """How the plan is made."""

    margins: Margins = MARGINS
    drain_s: float = 15.0
    """Seconds in which what waits when new workers serve is worked off beside what arrives..."""
    drain_share: float = 0.5
    """...or this share of a start-up, if that is longer."""
    max_age_s: float = 20.0
    """Load measured longer ago is not acted on."""
    least_coverage: float = 0.9
    """Load measured on a smaller share of the workers never takes workers away."""
    planner: str = DEFAULT_PLANNER
    """Who sizes pools whose load and speed are known."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one WorkerPool should have."""

    replicas: int
    requests_per_s: float | None = None
    """Of one worker, within the objectives; None where no profile says."""
    sure: int | None = None
    """Workers that what surely comes asks for; None where nobody says how much that is."""


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """The plan of one deployment."""

    key: Key
    targets: Mapping[str, Target]
    """By WorkerPool name."""
    why: Why
    reason: str
    """One sentence."""
    runner_up: str = ""
    """The next best choice, and why it was not taken."""
    needs: Mapping[str, float] = field(default_factory=dict)
    """Requests per second to be served, by role."""
    certain: bool = False
    """Whether the load was measured lately and on enough of the workers to take some away."""
    doubtful: tuple[str, ...] = ()
    """Roles whose load was not."""

    @property
    def moves(self) -> dict[str, int]:
        """Replicas by WorkerPool."""
        return {name: target.replicas for name, target in self.targets.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """The plans of all deployments."""

    deployments: tuple[DeploymentPlan, ...]


_Method = Callable[[DeploymentView, PlanRules], DeploymentPlan | None]


def plan(snapshot: ClusterSnapshot, rules: PlanRules) -> Plan:
    """The plan for everything in the snapshot."""
    return Plan(tuple(_first_answer(view, rules) for view in snapshot.deployments))


def _first_answer(view: DeploymentView, rules: PlanRules) -> DeploymentPlan:
    answers = (method(view, rules) for method in METHODS)
    chosen = next(answer for answer in answers if answer is not None)
    return replace(chosen, doubtful=_doubtful(view, rules))


def _switched_off(view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
    return _hold(view, Why.OFF, "autoscaling.mode is Off") if view.mode == "Off" else None


def _without_data(view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
    if not view.loads:
        return _hold(view, Why.UNMEASURED, "no load was measured yet, so the workers stay as they are")
    old = [f"{role} {load.age_s:.0f} s" for role, load in view.loads.items() if load.age_s > rules.max_age_s]
    if len(old) == len(view.loads):
        return _hold(view, Why.UNMEASURED, f"the last known load is old ({', '.join(old)}); the workers stay")
    if view.mix is None:
        unused = _hold(view, Why.UNUSED, "no request was seen yet, so the workers stay as they are")
        return replace(unused, certain=_certain(view, rules))
    return None


def _without_profile(view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
    roles = {pool.role for pool in view.pools}
    blind = sorted(role for role in roles if not any(p.worker for p in view.pools if p.role == role))
    if blind or not view.pools:
        what = f"no profile says how fast workers of role {', '.join(blind)} are" if blind else "there are no pools"
        return _hold(view, Why.NO_PROFILE, f"{what}, so they stay as they are")
    return None


def _chosen_planner(view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
    """What a planner of that name says.

    Its numbers are its own; what the guard goes by (the load, how sure that is, what a worker serves) is measured here.
    """
    planner = find_planner(rules.planner)
    answer = None if planner is None else planner.plan(view, rules)
    if answer is None:
        return None
    speeds = _speeds(view, rules)
    needs = _needs(view, rules, speeds)
    targets = {name: Target(target.replicas, _rate(speeds.get(name))) for name, target in answer.targets.items()}
    return replace(answer, targets=targets, needs=needs, why=_why(view, targets, needs), certain=_certain(view, rules))


def _target_tracking(view: DeploymentView, rules: PlanRules) -> DeploymentPlan | None:
    speeds = _speeds(view, rules)
    needs = _needs(view, rules, speeds)
    counts, sure = _counts(view, speeds, needs), _sure(view, rules, speeds)
    runners = [_runner_up(_of(view, role), speeds, counts) for role in sorted(needs)]
    targets = {
        p.name: Target(counts[p.name], _rate(speeds.get(p.name)), None if sure is None else sure[p.name])
        for p in view.pools
    }
    why = _why(view, targets, needs)
    return DeploymentPlan(
        view.key,
        targets,
        why,
        _sentence(view, targets, speeds, needs, why),
        "; ".join(filter(None, runners)),
        needs,
        _certain(view, rules),
    )


METHODS: tuple[_Method, ...] = (_switched_off, _without_data, _without_profile, _chosen_planner, _target_tracking)
"""In order; the first one that has an answer acts."""


def _speeds(view: DeploymentView, rules: PlanRules) -> dict[str, Throughput]:
    """What one worker of each pool serves; pools without a profile are left out."""
    assert view.mix is not None
    return {
        pool.name: throughput(pool.role, pool.worker, view.mix, view.objectives, rules.margins)
        for pool in view.pools
        if pool.worker is not None
    }


def _hold(view: DeploymentView, why: Why, reason: str) -> DeploymentPlan:
    return DeploymentPlan(view.key, {pool.name: Target(pool.replicas) for pool in view.pools}, why, reason)


def _needs(view: DeploymentView, rules: PlanRules, speeds: Mapping[str, Throughput]) -> dict[str, float]:
    """Requests per second for each role. Every request is decoded, so a starved decode pool is sized by prefill."""
    drain_s = max(rules.drain_s, *(pool.startup_s * rules.drain_share for pool in view.pools))
    measured = {
        role: load.rate + backlog(load, _of(view, role), speeds, rules.margins.busy) / drain_s
        for role, load in _of_all_requests(view).items()
    }
    most = max(measured.values())
    # Prompts that overrun prefill workers are computed elsewhere: those count by their usual share.
    prefill = max(measured.get("Prefill", most), most * (view.prefill_share or 0.0))
    return {role: most if role != "Prefill" else prefill for role in sorted({p.role for p in view.pools})}


def _of_all_requests(view: DeploymentView) -> dict[str, RoleLoad]:
    """The loads with none lower than what comes to the deployment: every request is decoded, and a share of them, told
    by the last minutes, is prefilled apart. A role behind an overrun one sees only what that lets through."""
    level = max(load.level for load in view.loads.values())
    rate = max(load.rate for load in view.loads.values())
    shares = {role: (view.prefill_share or 0.0) if role == "Prefill" else 1.0 for role in view.loads}
    return {
        role: replace(load, level=max(load.level, level * shares[role]), rate=max(load.rate, rate * shares[role]))
        for role, load in view.loads.items()
    }


def _counts(view: DeploymentView, speeds: Mapping[str, Throughput], needs: Mapping[str, float]) -> dict[str, int]:
    """Workers by WorkerPool for these requests per second."""
    counts: dict[str, int] = {}
    for role, need in needs.items():
        counts |= _fill(_of(view, role), speeds, need, view.ranges)
    return counts


def _sure(view: DeploymentView, rules: PlanRules, speeds: Mapping[str, Throughput]) -> dict[str, int] | None:
    """Workers that what surely comes asks for; None where nobody says how much that is."""
    loads: dict[str, RoleLoad] = {}
    for role, load in view.loads.items():
        if load.sure is None:
            return None
        loads[role] = replace(load, rate=load.sure, level=load.sure)
    low = replace(view, loads=loads)
    return _counts(low, speeds, _needs(low, rules, speeds))


def _of(view: DeploymentView, role: str) -> list[PoolView]:
    return [pool for pool in view.pools if pool.role == role]


def _fill(
    pools: Sequence[PoolView],
    speeds: Mapping[str, Throughput],
    need: float,
    ranges: Mapping[str, tuple[int, int]],
) -> dict[str, int]:
    """Workers of one role: the least everywhere, then the most requests per money, the last one as small as serves."""
    # A WorkerPool's own least says what its siblings leave to it now; where the sum is bounded, the sum counts.
    counts = {pool.name: 0 if pool.pool in ranges else min(pool.least, pool.ceiling) for pool in pools}
    known = sorted((p for p in pools if p.name in speeds), key=lambda p: (-_value(p, speeds), p.name))
    _fill_least(pools, known, counts, ranges)
    served = math.fsum(counts[p.name] * speeds[p.name].requests_per_s for p in known)
    while served < need:
        open_to = [pool for pool in known if _room(pool, pools, counts, ranges) > 0]
        if not open_to:
            break
        chosen = _next(open_to, speeds, need - served)
        speed = speeds[chosen.name].requests_per_s
        whole = max(1, int((need - served) / speed)) if chosen is open_to[0] else 1
        added = min(whole, _room(chosen, pools, counts, ranges))
        counts[chosen.name] += added
        served += added * speed
    return counts


def _fill_least(
    pools: Sequence[PoolView], known: Sequence[PoolView], counts: dict[str, int], ranges: Mapping[str, tuple[int, int]]
) -> None:
    """Reach the least of each pool's sum; at least one worker of a role, since nothing wakes a pool from zero."""
    for name in sorted({pool.pool for pool in pools}):
        members = [pool for pool in (known or pools) if pool.pool == name]
        least = max(1, ranges.get(name, (0, _MANY))[0])
        for pool in members:
            missing = least - sum(counts[p.name] for p in pools if p.pool == name)
            counts[pool.name] += max(0, min(missing, _room(pool, pools, counts, ranges)))


def _room(
    pool: PoolView, pools: Sequence[PoolView], counts: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]
) -> int:
    """Workers that may still be added. A sibling's share is given back before the guard raises this one."""
    most = ranges.get(pool.pool, (0, pool.most))[1]
    planned = sum(counts[other.name] for other in pools if other.pool == pool.pool)
    own = (pool.ceiling if pool.exhausted else max(pool.most, most)) - counts[pool.name]
    return max(0, min(own, most - planned))


def _value(pool: PoolView, speeds: Mapping[str, Throughput]) -> float:
    """Requests per money; classes that can keep the objectives come before all that cannot."""
    speed = speeds[pool.name]
    bonus = 1e9 if speed.meets_objectives else 0.0
    return bonus + speed.requests_per_s / max(1e-9, pool.weight)


def _next(open_to: Sequence[PoolView], speeds: Mapping[str, Throughput], missing: float) -> PoolView:
    """The best value while whole workers of it are missing; for the rest the cheapest that covers it."""
    best = open_to[0]
    if speeds[best.name].requests_per_s <= missing:
        return best
    meets = speeds[best.name].meets_objectives
    covering = [
        p for p in open_to if speeds[p.name].requests_per_s >= missing and speeds[p.name].meets_objectives == meets
    ]
    return min(covering, key=lambda pool: (pool.weight, pool is not best, pool.name))


def _runner_up(pools: Sequence[PoolView], speeds: Mapping[str, Throughput], counts: Mapping[str, int]) -> str:
    """The class that would have been next, and by how much it is worse."""
    ranked = sorted((p for p in pools if p.name in speeds), key=lambda p: (-_value(p, speeds), p.name))
    if len(ranked) < 2:
        return ""
    first, second = ranked[0], ranked[1]
    if not speeds[second.name].meets_objectives and speeds[first.name].meets_objectives:
        return f"{second.accelerator} cannot keep the objectives"
    one, two = (speeds[p.name].requests_per_s / max(1e-9, p.weight) for p in (first, second))
    unit = "money" if first.cost_per_hour is not None else "accelerators"
    return (
        f"{second.accelerator} serves {two / max(one, 1e-9):.0%} of what {first.accelerator} does for the same {unit}"
    )


def _why(view: DeploymentView, targets: Mapping[str, Target], needs: Mapping[str, float]) -> Why:
    short = any(_served(view, targets, role) < need for role, need in needs.items())
    if short:
        return Why.AT_MOST
    at_least = all(targets[pool.name].replicas <= max(pool.least, 0) for pool in view.pools)
    return Why.AT_LEAST if at_least else Why.LOAD


def _served(view: DeploymentView, targets: Mapping[str, Target], role: str) -> float:
    chosen = (targets[pool.name] for pool in view.pools if pool.role == role)
    return math.fsum(target.replicas * (target.requests_per_s or 0.0) for target in chosen)


def _certain(view: DeploymentView, rules: PlanRules) -> bool:
    return not _doubtful(view, rules)


def _doubtful(view: DeploymentView, rules: PlanRules) -> tuple[str, ...]:
    roles = sorted({pool.role for pool in view.pools if pool.replicas > 0})
    return tuple(role for role in roles if not _known_well(view.loads.get(role), rules))


def _known_well(load: RoleLoad | None, rules: PlanRules) -> bool:
    return load is not None and load.age_s <= rules.max_age_s and load.coverage >= rules.least_coverage


def _rate(speed: Throughput | None) -> float | None:
    return None if speed is None else speed.requests_per_s


def _sentence(
    view: DeploymentView,
    targets: Mapping[str, Target],
    speeds: Mapping[str, Throughput],
    needs: Mapping[str, float],
    why: Why,
) -> str:
    parts = []
    for role in sorted(needs):
        chosen = [
            f"{targets[p.name].replicas} x {p.accelerator}" + _each(speeds.get(p.name))
            for p in view.pools
            if p.role == role and targets[p.name].replicas > 0
        ]
        level = max(load.level for load in view.loads.values())
        parts.append(f"{role}: {needs[role]:.1f} requests/s (now {level:.1f}) need {' + '.join(chosen) or 'none'}")
    tail = {Why.AT_LEAST: "; the least allowed", Why.AT_MOST: "; no more is allowed or to be had"}
    return "; ".join(parts) + tail.get(why, "")


def _each(speed: Throughput | None) -> str:
    if speed is None:
        return ""
    doubt = "" if speed.meets_objectives else ", objectives cannot be met"
    return f" at {speed.requests_per_s:.2f}/s each{doubt}"
