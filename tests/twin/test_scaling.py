"""The autoscaler in the twin's loop: what must hold at every event, whatever the load and whatever breaks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.core.fleet import Role
from penstock.core.models import LatencyProfile, Parallelism, ProfileSource, find_model
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import (
    Autoscaling,
    Bounds,
    Crash,
    Drain,
    Impossible,
    Partition,
    PoolSpec,
    Provisioning,
    Result,
    Scenario,
    StartUp,
    Twin,
    make_report,
    parse_nodes,
)
from penstock.simulator.events import EventQueue
from penstock.simulator.files import parse_scenario
from penstock.simulator.scaling_pods import Pod

DOCS = Path(__file__).resolve().parents[2] / "docs" / "concepts"
ONE = Parallelism(tensor=1)
QUICK = StartUp(0.5, 1, 2, 2, 0.5)
TIMES = CycleTimes(scrape_interval_s=1.0, signal_window_s=20.0, scale_in_window_s=15.0, time_scale=0.2)
SERVE = (PoolSpec("serve", Role.PREFILL_DECODE, "a100-80g", ONE, 1),)
MODEL = find_model("llama-3.1-8b")
assert MODEL is not None
PROFILE = LatencyProfile((10, 0.1, 1e-6), (20, 0.2, 1e-4), ProfileSource.BENCHMARK, "made up")
FULL = 200  # Examples where there is time.


def load(steps: tuple[tuple[float, float], ...], seed: int = 3, tokens: int = 1500, output: int = 20) -> Trace:
    """Independent arrivals: (seconds, rate) after each other."""
    rng, made, start = np.random.default_rng(seed), [], 0.0
    for seconds, rate in steps:
        at = start + rng.exponential(1 / rate)
        while at < start + seconds:
            made.append(TraceRequest(float(at), int(rng.integers(tokens // 2, tokens * 3 // 2)), output))
            at += rng.exponential(1 / rate)
        start += seconds
    return Trace(tuple(made))


def scaled(scenario: Scenario, *bounds: Bounds, **more: object) -> Scenario:
    rules = Autoscaling(bounds or (Bounds("serve", 1, 4),), cycle_interval_s=2.0, times=TIMES, drain=Drain(idle_s=2.0))
    return replace(
        scenario, pools=SERVE, start_up=QUICK, ttft_s=2.0, tpot_s=0.1, autoscaling=replace(rules, **more)  # type: ignore[arg-type]
    )  # fmt: skip


class Looked(EventQueue):
    """Calls somebody after every event."""

    __slots__ = ("_look",)

    def __init__(self, look: Callable[[], bool], numbers: Iterator[int] | None = None) -> None:
        super().__init__(numbers)
        self._look = look

    def run(self, more: Callable[[], object], every: int = 0, tick: Callable[[], object] | None = None) -> None:
        super().run(lambda: self._look() and more(), every, tick)


class Watched(Twin):
    """A twin that looks at every invariant after every event, and at each worker that ends."""

    def __init__(self, scenario: Scenario, trace: Trace) -> None:
        with patch("penstock.simulator.twin.EventQueue", partial(Looked, self.look_round)):
            super().__init__(scenario, trace)
        self.held_s: dict[str, float] = {}
        self.stopped: list[Pod] = []
        self._looked_s = 0.0
        self._before: list[Pod] = []
        self._holding: list[Pod] = []

    def remove_worker(self, worker, now):  # type: ignore[no-untyped-def]
        assert self.scaling is not None
        drain = self.scenario.autoscaling.drain  # type: ignore[union-attr]
        pod = next(p for p in self._before if p.worker is worker)
        stats = worker.engine.stats()
        working = worker.alive and (stats.running or stats.waiting or stats.held)
        assert pod.deleted_s is not None, f"{pod.name} was stopped though nobody deleted it"
        assert not working or now >= pod.deleted_s + drain.grace_s, f"{pod.name} was stopped at work at {now} s"
        self.stopped.append(pod)
        return super().remove_worker(worker, now)

    def look_round(self) -> bool:
        scaling, now = self.scaling, self.events.now
        assert scaling is not None
        rules = self.scenario.autoscaling
        assert rules is not None
        pods = scaling.pods.pods
        self._before = list(pods)
        if rules.max_accelerators is not None:
            assert sum(pod.pool.parallelism.accelerators for pod in pods) <= rules.max_accelerators
        for bounds in rules.bounds:
            assert bounds.least <= scaling.replicas[bounds.pool] <= bounds.most
            living = sum(pod.deleted_s is None for pod in pods if pod.pool.name == bounds.pool)
            assert living == scaling.replicas[bounds.pool]
        taken = {id(node): 0 for node in scaling.inventory.nodes}
        for pod in pods:
            for node, count in pod.taken or ():
                taken[id(node)] += count
        assert all(node.free == node.size - taken[id(node)] >= 0 for node in scaling.inventory.nodes)
        for pod in self._holding:
            self.held_s[pod.name] = self.held_s.get(pod.name, 0.0) + now - self._looked_s
        self._looked_s, self._holding = now, [pod for pod in pods if pod.taken is not None]
        return True


def nothing_taken_unseen(twin: Twin) -> None:
    """Every scale-in rested on a load that was measured lately, on nearly all workers."""
    assert twin.scaling is not None
    cycle = twin.scaling._cycle

    def checked(now: float, argument: int) -> None:
        assert twin.scaling is not None
        before = dict(twin.scaling.replicas)
        expected = [pod for pod in twin.scaling.pods.pods if pod.started and pod.deleted_s is None]
        expected = [pod for pod in expected if pod.samples or now - (pod.ready_since or 0.0) >= TIMES.fresh_s]
        fresh = [pod for pod in expected if pod.samples and now - pod.samples[-1].at <= TIMES.fresh_s]
        cycle(now, argument)
        if any(count < before[name] for name, count in twin.scaling.replicas.items()):
            assert len(fresh) >= 0.9 * len(expected) > 0, f"taken away unseen at {now} s"

    twin.scaling._cycle = checked  # type: ignore[method-assign]


def play(scenario: Scenario, trace: Trace) -> tuple[Watched, Result]:
    twin = Watched(scenario, trace)
    nothing_taken_unseen(twin)
    result = twin.run()
    assert len(result.outcomes) == len(trace.requests)
    assert twin.fleet.reservations == 0
    assert result.scaling is not None
    twin.look_round()
    assert result.resources.total.gpu_hours * 3600 == pytest.approx(sum(twin.held_s.values()), abs=1e-6)
    return twin, result


STEP = ((30.0, 1.0), (40.0, 10.0), (60.0, 1.0))


def test_workers_follow_the_load(scenario: Scenario) -> None:
    twin, result = play(scaled(scenario), load(STEP))
    assert result.scaling is not None
    peak = max(change.after for change in result.scaling.changes)
    assert peak >= 3
    assert result.scaling.looks[-1].replicas[0] < peak
    assert all(outcome.verdict is Verdict.COMPLETED for outcome in result.outcomes)
    assert twin.stopped
    assert result.scaling.overdue == result.scaling.lost == 0
    always = peak * result.end_s / 3600
    assert 0.2 * always < result.resources.total.gpu_hours < 0.9 * always


def test_the_same_seed_gives_the_same_bytes_in_any_order(scenario: Scenario) -> None:
    chosen, trace = replace(scaled(scenario), crashes=(Crash(50.0, 0),)), load(STEP)
    numbers = list(range(200_000))
    random.Random(4).shuffle(numbers)
    one, other = Twin(chosen, trace).run(), Twin(chosen, trace, iter(numbers)).run()
    assert one == other
    assert replace(one, events=0) != replace(Twin(replace(chosen, seed=9), trace).run(), events=0)


def test_advice_changes_nothing(scenario: Scenario) -> None:
    _, result = play(scaled(scenario, mode="Advise"), load(STEP))
    assert result.scaling is not None
    assert result.scaling.changes == ()
    assert {look.replicas for look in result.scaling.looks} == {(1,)}


def test_a_node_is_ordered_where_there_is_none(scenario: Scenario) -> None:
    small = replace(scenario, groups=parse_nodes("a100-80g=1x1"))
    nodes = Provisioning("a100-80g", 2, 3, provision_s=20.0)
    twin, result = play(scaled(small, provisioning=(nodes,)), load(((10.0, 1.0), (90.0, 6.0))))
    assert result.scaling is not None
    assert result.scaling.nodes_ordered == result.scaling.nodes_added
    assert result.scaling.nodes_added["a100-80g"] in (1, 2)
    out = next(change for change in result.scaling.changes if change.after > 1)
    ready = next(look.at_s for look in result.scaling.looks if look.ready[0] > 1)
    soonest = out.at_s + QUICK.seconds + nodes.provision_s
    assert soonest <= ready <= soonest + 2 * 2.0
    assert twin.scaling is not None
    assert twin.scaling.inventory.limits() == {"a100-80g": 7}


def test_a_class_never_gets_more_than_it_may(scenario: Scenario) -> None:
    small = replace(scenario, groups=parse_nodes("a100-80g=1x1"))
    chosen = scaled(small, Bounds("serve", 1, 9), provisioning=(Provisioning("a100-80g", 1, 2, 5.0),))
    _, result = play(chosen, load(((10.0, 1.0), (60.0, 12.0))))
    assert result.scaling is not None
    assert result.scaling.most_accelerators == 3
    assert max(look.replicas[0] for look in result.scaling.looks) == 3
    assert result.scaling.refusals["ClassExhausted"] > 0


def test_capacity_that_never_comes_is_given_up_and_tried_elsewhere(scenario: Scenario) -> None:
    """The best class has no node to give: its pods go, and the other class carries the load."""
    pools = (*SERVE, PoolSpec("other", Role.PREFILL_DECODE, "h100-80g", ONE, 1))
    two = replace(scenario, groups=parse_nodes("a100-80g=1x1,h100-80g=1x4"))
    lost = Provisioning("a100-80g", 1, 4, provision_s=10.0, lost=(0, 1, 2, 3))
    chosen = replace(scaled(two, Bounds("serve", 1, 4), Bounds("other", 1, 4), provisioning=(lost,)), pools=pools)
    _, result = play(chosen, load(((10.0, 1.0), (80.0, 14.0))))
    assert result.scaling is not None
    assert result.scaling.nodes_ordered["a100-80g"] >= 1
    assert result.scaling.nodes_added == {"a100-80g": 0}
    assert result.scaling.refusals["GaveUp"] >= 1
    wished = next(change for change in result.scaling.changes if change.pool == "serve" and change.after > 1)
    given_up = next(change for change in result.scaling.changes if change.pool == "serve" and change.after == 1)
    # The class's time and the grace beyond it, at this time scale, and at most two cycles.
    assert 10.0 + 120.0 * 0.2 <= given_up.at_s - wished.at_s <= 10.0 + 120.0 * 0.2 + 2 * 2.0
    assert result.scaling.looks[-1].ready[1] >= 2


def test_money_bounds_what_is_held(scenario: Scenario) -> None:
    price = scenario.groups[0].accelerator.price_per_hour
    _, result = play(scaled(scenario, max_cost=2.5 * price), load(((10.0, 1.0), (50.0, 10.0))))
    assert result.scaling is not None
    assert max(sum(look.pods) for look in result.scaling.looks) == 2
    assert result.scaling.refusals["OverBudget"] > 0


def test_a_worker_on_its_way_out_counts(scenario: Scenario) -> None:
    """The load is back while a worker still drains: under the budget no successor comes before it is gone."""
    slow = scaled(scenario, max_accelerators=2, drain=Drain(idle_s=30.0))
    twin, result = play(
        replace(slow, pools=(replace(SERVE[0], replicas=2),)), load(((20.0, 6.0), (20.0, 0.5), (60.0, 6.0)))
    )
    assert result.scaling is not None
    assert result.scaling.refusals["OverBudget"] > 0
    gone = next(pod.worker.gone_s for pod in twin.stopped if pod.worker is not None)
    deleted = next(pod.deleted_s for pod in twin.stopped)
    assert deleted is not None
    again = [change.at_s for change in result.scaling.changes if change.after == 2]
    assert deleted + 30.0 <= gone <= again[0]


def test_who_is_not_heard_takes_nothing_away(scenario: Scenario) -> None:
    """The load falls while a worker cannot be reached: nobody goes before it can."""
    deaf = replace(scaled(scenario), pools=(replace(SERVE[0], replicas=3),))
    chosen = replace(deaf, faults=(Partition(20.0, 90.0, 0),))
    _, result = play(chosen, load(((20.0, 9.0), (110.0, 0.5))))
    assert result.scaling is not None
    assert result.scaling.refusals["SignalsMissing"] > 0
    ins = [change.at_s for change in result.scaling.changes if change.after < change.before and change.at_s > 20.0]
    assert ins
    assert min(ins) > 90.0


def test_a_grace_that_ends_ends_the_worker_with_its_work(scenario: Scenario) -> None:
    """Answers longer than the grace: they are cut, counted, and continued elsewhere."""
    few = [TraceRequest(0.5 * number, 1000, 10) for number in range(100)]
    long = [TraceRequest(10.0 + number, 200, 3000) for number in range(6)]
    trace = Trace(tuple(sorted((*few, *long), key=lambda request: request.arrival_s)))
    short = replace(scaled(scenario), pools=(replace(SERVE[0], replicas=3),))
    rules = replace(short.autoscaling, drain=Drain(1.0, 3.0, 1.0), bounds=(Bounds("serve", 1, 3),))  # type: ignore[type-var]
    _, result = play(replace(short, autoscaling=rules, ttft_s=30.0, tpot_s=1.0), trace)
    assert result.scaling is not None
    assert result.scaling.overdue >= 1
    assert result.scaling.lost >= 1
    assert result.continued == result.scaling.lost
    assert all(outcome.verdict is Verdict.COMPLETED for outcome in result.outcomes)
    assert all(outcome.output_tokens == outcome.asked_tokens for outcome in result.outcomes)


def test_what_cannot_be_scaled_is_refused(scenario: Scenario) -> None:
    with pytest.raises(Impossible, match="an autoscaler needs pools"):
        Twin(replace(scaled(scenario), pools=()), load(STEP))
    with pytest.raises(Impossible, match="there is no pool decode; there is serve"):
        Twin(scaled(scenario, Bounds("decode", 1, 2)), load(STEP))
    with pytest.raises(ValueError, match="give 0 <= least <= most"):
        Bounds("serve", 3, 2)
    with pytest.raises(ValueError, match="bounds of pool serve stand there twice"):
        scaled(scenario, Bounds("serve", 1, 2), Bounds("serve", 1, 3))
    with pytest.raises(ValueError, match="give a longer grace"):
        Drain(idle_s=5.0, grace_s=10.0, stop_s=8.0)


def test_the_report_tells_what_was_done(scenario: Scenario) -> None:
    _, result = play(scaled(scenario), load(STEP))
    assert result.scaling is not None
    told = make_report(result, ttft_s=2.0, tpot_s=0.1).run["scaling"]
    assert [change["after"] for change in told["changes"]] == [change.after for change in result.scaling.changes]
    assert all(change["why"].startswith("scaled serve from ") for change in told["changes"])
    assert [look["at_s"] for look in told["looks"]] == [look.at_s for look in result.scaling.looks]
    many = replace(result, scaling=replace(result.scaling, looks=result.scaling.looks * 50))
    thinned = make_report(many, ttft_s=2.0, tpot_s=0.1).run["scaling"]["looks"]
    assert 200 <= len(thinned) <= 400
    assert thinned[-1] == told["looks"][-1]
    assert told["most_accelerators"] == max(sum(look.pods) for look in result.scaling.looks)


def test_the_scenario_of_the_docs_orders_a_node() -> None:
    form = parse_scenario((DOCS / "twin-scaling.yaml").read_text(), "twin-scaling.yaml")
    workload, dropped = form.workload.make_workload(nothing, MODEL.max_context, 0)
    result = Twin(form.scenario(), workload).run()
    assert dropped == 0
    assert result.scaling is not None
    assert result.scaling.nodes_added == {"a100-80g": 1}
    assert [use.name for use in result.power] == ["row", "rack"]


def nothing(file: str, skip_bad: bool) -> Trace:
    raise AssertionError(f"{file} is not to be read")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scenario, Trace]:
    """Pools together or apart, budgets, starts and graces, a load of steps, and things that break."""
    apart = draw(st.booleans())
    names = [("prefill", Role.PREFILL), ("decode", Role.DECODE)] if apart else [("serve", Role.PREFILL_DECODE)]
    pools = tuple(PoolSpec(name, role, "a100-80g", ONE, draw(st.integers(1, 2))) for name, role in names)
    bounds = tuple(Bounds(pool.name, 1, draw(st.integers(2, 6))) for pool in pools)
    steps = tuple((draw(st.floats(5, 40)), draw(st.sampled_from([0.3, 1.0, 4.0, 10.0]))) for _ in range(3))
    grace = draw(st.sampled_from([4.0, 20.0, 120.0]))
    rules = Autoscaling(
        bounds,
        cycle_interval_s=draw(st.sampled_from([1.0, 2.0, 5.0])),
        times=TIMES,
        max_accelerators=draw(st.none() | st.integers(sum(pool.replicas for pool in pools), 9)),
        provisioning=draw(st.sampled_from([(), (Provisioning("a100-80g", 2, 2, 6.0, lost=(1,), give_up_s=20.0),)])),
        drain=Drain(idle_s=1.0, grace_s=grace, stop_s=1.0),
    )
    faults = []
    for number in range(sum(pool.replicas for pool in pools)):
        at = draw(st.floats(1, 60))
        kind = draw(st.sampled_from(["well", "well", "crash", "partition"]))
        if kind == "crash":
            faults.append(Crash(at, number))
        elif kind == "partition":
            faults.append(Partition(at, at + draw(st.floats(1, 40)), number))
    start = StartUp(0.5, draw(st.floats(0, 5)), draw(st.floats(0, 5)), 1.0, 0.5)
    trace = load(steps, draw(st.integers(0, 99)), output=draw(st.sampled_from([5, 60])))
    return (
        Scenario(
            MODEL, parse_nodes("a100-80g=2x3"), pools=pools, profile=PROFILE, kv_capacity=20_000, max_context=8192,
            ttft_s=2.0, tpot_s=0.1, start_up=start, cold=draw(st.booleans()), faults=tuple(faults), autoscaling=rules,
        ),
        trace,
    )  # fmt: skip


@settings(
    max_examples=FULL if os.environ.get("PENSTOCK_FULL") else 8,
    deadline=None,
    derandomize=not os.environ.get("PENSTOCK_FULL"),
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_budgets_bounds_and_drains_hold_whatever_happens(case: tuple[Scenario, Trace]) -> None:
    scenario, trace = case
    if trace.requests:
        play(scenario, trace)
