"""Planners from files: chosen by name, checked at every plan, asked only where something is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from autoscaler_views import load, pool, snapshot, view
from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.autoscaler.decisions.plan import DeploymentPlan, PlanRules, Why, plan
from penstock.autoscaler.decisions.planners import PLANNERS, UnknownPlanner, find_planner, withdraw_planner
from penstock.autoscaler.decisions.snapshot import DeploymentView
from penstock.autoscaler.shell.policy_files import PlannerCollector, load_planners
from penstock.autoscaler.shell.settings import parse_settings
from penstock.core.policy_files import PolicyFileError

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies" / "one_spare_worker.py"
RULES = PlanRules(planner="Mine")
SOURCE = """
from penstock.autoscaler.decisions.plan import DeploymentPlan, Target, Why
class Mine:
    name = "Mine"
    def plan(self, view, rules):
        targets = {pool.name: Target(7, 1e9) for pool in view.pools}
        return ANSWER
"""
SEVEN = "DeploymentPlan(view.key, targets, Why.OFF, 'because', certain=True)"


Write = Callable[[str], Mapping[str, int]]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Load a planner with this answer; what comes back counts its mistakes."""

    def writing(answer: str) -> Mapping[str, int]:
        file = tmp_path / "planner.py"
        file.write_text(SOURCE.replace("ANSWER", answer))
        return load_planners([str(file)])

    yield writing
    for name in list(PLANNERS):
        withdraw_planner(name)


def busy() -> DeploymentView:
    return view(pool(), loads={"PrefillDecode": load(5.0)})


def planned(deployment: DeploymentView, rules: PlanRules = RULES) -> DeploymentPlan:
    (only,) = plan(snapshot(deployment), rules).deployments
    return only


def test_a_planner_is_asked_by_name_and_the_guard_keeps_its_own_figures(write: Write) -> None:
    write(SEVEN)
    own, tracked = planned(busy()), planned(busy(), PlanRules())
    assert set(own.moves.values()) == {7} != set(tracked.moves.values())
    assert own.reason == "because"
    assert own.needs == tracked.needs
    assert own.why is not Why.OFF
    (name,) = own.targets
    assert own.targets[name].requests_per_s == tracked.targets[name].requests_per_s
    unsure = view(pool(), loads={"PrefillDecode": replace(load(5.0), coverage=0.1)})
    assert not planned(unsure).certain


def test_without_data_everything_holds_whatever_the_planner_says(write: Write) -> None:
    write(SEVEN)
    assert planned(view(pool(), loads={})).why is Why.UNMEASURED
    assert planned(view(pool(), loads={"PrefillDecode": load(5.0)}, mode="Off")).why is Why.OFF


@pytest.mark.parametrize(
    ("answer", "mistakes"),
    [
        ("None", 0),
        ("7", 1),
        ("1 / 0", 1),
        ("DeploymentPlan(view.key, {}, Why.LOAD, '')", 1),
        ("DeploymentPlan(view.key, {pool.name: Target(-1) for pool in view.pools}, Why.LOAD, '')", 1),
        ("DeploymentPlan(view.key, {pool.name: Target(2.5) for pool in view.pools}, Why.LOAD, '')", 1),
    ],
)
def test_target_tracking_answers_for_a_planner_that_cannot(answer: str, mistakes: int, write: Write) -> None:
    errors = write(answer)
    assert planned(busy()) == planned(busy(), PlanRules())
    assert errors == {"Mine": mistakes}
    (family,) = PlannerCollector(errors).collect()
    assert [(sample.labels, sample.value) for sample in family.samples if sample.name.endswith("_total")] == [
        ({"planner": "Mine"}, float(mistakes))
    ]


def test_the_example_plans_without_a_mistake(write: Write) -> None:
    errors = load_planners([str(EXAMPLE)])
    made = planned(busy(), PlanRules(planner="OneSpareWorker"))
    assert made.reason == "workers for the load by Little's law, and one spare"
    assert errors == {"OneSpareWorker": 0}
    more = planned(view(pool(), loads={"PrefillDecode": load(50.0)}), PlanRules(planner="OneSpareWorker"))
    assert sum(more.moves.values()) > sum(made.moves.values())


def test_names_and_files_are_checked_at_the_door(write: Write, tmp_path: Path) -> None:
    write(SEVEN)
    with pytest.raises(UnknownPlanner, match="there is a planner 'Mine' already"):
        write(SEVEN)
    with pytest.raises(UnknownPlanner, match="unknown planner 'Yours'; known planners are TargetTracking, Mine"):
        find_planner("Yours")
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(PolicyFileError, match=r"empty\.py: brings no planner; give it a class"):
        load_planners([str(tmp_path / "empty.py")])
    with pytest.raises(PolicyFileError, match=r"nowhere\.py: cannot be read"):
        load_planners([str(tmp_path / "nowhere.py")])


def test_flags_name_planner_and_files() -> None:
    settings = parse_settings(["--planner=Mine", "--policy-file=a.py,b.py"], {})
    assert (settings.planner, settings.policy_files) == ("Mine", ("a.py", "b.py"))
    assert CycleTimes(planner="Mine").rules.plan.planner == "Mine"
