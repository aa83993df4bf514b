"""What a plan is held against, as series: with their labels, and without those that nobody set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from autoscaler_views import pool, view
from penstock.autoscaler.decisions.guard import Guarded, Refusal, Refused
from penstock.autoscaler.decisions.plan import DeploymentPlan, Why
from penstock.autoscaler.decisions.snapshot import DeploymentView, Pods
from penstock.autoscaler.shell.limits_metrics import LimitsCollector
from penstock.autoscaler.shell.scaling import Decided


def series(view: DeploymentView, *refusals: Refusal) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and value of every sample, by name without the prefix."""
    decided = Decided(view, DeploymentPlan(view.key, {}, Why.LOAD, "for the load"), Guarded(view.key, {}, refusals))
    scaling: Any = SimpleNamespace(decided=(decided,))
    families = list(LimitsCollector(scaling).collect())
    return {
        family.name.removeprefix("penstock_autoscaler_"): [(s.labels, s.value) for s in family.samples]
        for family in families
    }


def test_objectives_carry_the_name_that_requests_are_counted_by() -> None:
    found = series(view(model="meta/chat"))
    labels = {"namespace": "team", "deployment": "chat", "model": "meta/chat"}
    assert found["objective_ttft_seconds"] == [(labels, 1.0)]
    assert found["objective_tpot_seconds"] == [(labels, 0.05)]
    assert found["objective_attainment_ratio"] == [(labels, 0.95)]


def test_what_nobody_set_has_no_series() -> None:
    found = series(view(pool(cost_per_hour=None)))
    assert found["budget_accelerators"] == found["budget_cost_per_hour"] == found["held_cost_per_hour"] == []
    limited = series(view(max_accelerators=8, max_cost=40.0))
    assert [value for _, value in limited["budget_accelerators"] + limited["budget_cost_per_hour"]] == [8, 40.0]


def test_a_pod_on_its_way_out_still_holds_its_accelerators() -> None:
    pods = Pods(ready=1, starting=1, pending=1, terminating=2)
    found = series(view(pool(pods=pods, accelerators=4, cost_per_hour=3.0, least=1, most=6)))
    ((labels, held),) = found["held_accelerators"]
    assert labels["worker_pool"] == "chat-serve-h100"
    assert (held, found["held_cost_per_hour"][0][1]) == (20, 15.0)
    assert (found["min_replicas"][0][1], found["max_replicas"][0][1]) == (1, 6)


def test_the_plan_and_what_holds_it_back_are_named_once_each() -> None:
    refusals = [Refusal(reason, "") for reason in (Refused.SERVING, Refused.STABILISING, Refused.SERVING)]
    found = series(view(), *refusals)
    assert [labels["reason"] for labels, _ in found["plan"]] == ["Load"]
    assert [labels["reason"] for labels, _ in found["held_back"]] == ["Serving", "Stabilising"]
