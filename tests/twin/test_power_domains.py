"""Watts by domain: what a meter shows follows from what the workers' own meters say, and a tree sums up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from penstock.core.fleet import Role
from penstock.core.models import Parallelism
from penstock.core.models.power import Phase, watts
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Impossible, PoolSpec, PowerDomain, Scenario, Throttle, make_report, simulate

BUSY = Trace(tuple(TraceRequest(0.05 * number, 2000, 10) for number in range(60)))


@pytest.fixture
def metered(scenario: Scenario) -> Scenario:
    """Two workers on the first of two nodes of two; racks under a row."""
    return replace(
        scenario,
        pools=(PoolSpec("serve", Role.PREFILL_DECODE, "a100-80g", Parallelism(tensor=1), 2),),
        power=(PowerDomain("row", (), 600.0), PowerDomain("a", (0,), None, "row"), PowerDomain("b", (1,), 1.0, "row")),
        power_interval_s=0.5,
    )


def test_domains_draw_what_their_workers_and_idle_accelerators_do(metered: Scenario) -> None:
    result = simulate(metered, BUSY)
    row, first, second = result.power
    idle = watts(metered.groups[0].accelerator, Phase.IDLE)
    assert (row.name, first.name, second.name) == ("row", "a", "b")
    assert second.mean_w == second.peak_w == pytest.approx(2 * idle)
    assert first.mean_w * result.end_s == pytest.approx(result.resources.total.joules)
    assert row.mean_w == pytest.approx(first.mean_w + second.mean_w)
    assert row.peak_w == pytest.approx(first.peak_w + second.peak_w)
    assert first.peak_w > first.mean_w > 2 * idle
    assert second.over_s == second.longest_over_s == pytest.approx(result.end_s)
    assert first.over_s == 0.0
    told = make_report(result, ttft_s=1.0, tpot_s=0.1).run["power"]
    assert [use["name"] for use in told] == ["row", "a", "b"]


def test_time_above_the_budget_falls_as_it_rises(metered: Scenario) -> None:
    times = []
    for budget in (100.0, 500.0, 700.0, 5000.0):
        row = simulate(replace(metered, power=(PowerDomain("row", (0, 1), budget),)), BUSY).power[0]
        assert row.longest_over_s <= row.over_s
        assert (row.over_s > 0) == (row.peak_w > budget)
        times.append(row.over_s)
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1] == 0.0


def test_a_lower_clock_lowers_the_peak(metered: Scenario) -> None:
    slow = replace(metered, faults=tuple(Throttle(0.0, 500.0, number, 0.5) for number in range(2)))
    assert simulate(slow, BUSY).power[1].peak_w < 0.9 * simulate(metered, BUSY).power[1].peak_w


def test_metering_changes_nothing(metered: Scenario) -> None:
    with_meters, without = simulate(metered, BUSY), simulate(replace(metered, power=()), BUSY)
    assert with_meters.outcomes == without.outcomes
    assert with_meters.resources == without.resources
    assert without.power == ()


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        ((PowerDomain("a"), PowerDomain("a")), "two power domains have one name"),
        ((PowerDomain("a", parent="b"),), "there is no domain b to be its parent"),
        ((PowerDomain("a", (4,)),), "there is no node 4; there are 2"),
        ((PowerDomain("a", parent="b"), PowerDomain("b", parent="a")), "lies within itself"),
        ((PowerDomain("a", (0,)), PowerDomain("b", (0,))), "node 0 stands in two power domains"),
    ],
)
def test_a_tree_that_is_none_is_refused(metered: Scenario, domains: tuple[PowerDomain, ...], said: str) -> None:
    with pytest.raises(Impossible, match=said):
        simulate(replace(metered, power=domains), BUSY)
