"""KVAware in the lab's scenarios: what it predicts is what comes, and it keeps the promises that others keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock.core.fleet import FleetView, Pick, Rejection, Request
from penstock.router.decisions.policies import find_policy, register, withdraw
from penstock.simulator.files import ScenarioForm, Traces, parse_scenario
from penstock.simulator.lab import public_scenarios
from penstock.simulator.study import prepare
from penstock.simulator.twin import Result, Twin

HELD_BACK = Path(__file__).parent / "held-back"


class Recorded:
    """KVAware, and what it answered by request."""

    name = "Recorded"

    def __init__(self) -> None:
        self.picks: dict[int, Pick] = {}

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        answer = find_policy("KVAware").pick(request, view, now, seed)
        if isinstance(answer, Pick):
            self.picks[int(request.id)] = answer
        return answer


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    policy = Recorded()
    register(policy, reads=True)
    yield policy
    withdraw(policy.name)


def no_trace(file: str, skip_bad: bool) -> Any:
    raise AssertionError(file)


def played(form: ScenarioForm, policy: str) -> tuple[Twin, Result]:
    scene = prepare(form.model_copy(update={"policy": policy}), Traces(no_trace), form.seed)
    twin = Twin(scene.scenario, scene.workload)
    return twin, twin.run()


def good(form: ScenarioForm, policy: str) -> int:
    """Requests within both objectives."""
    twin, result = played(form, policy)
    ttft, tpot = twin.scenario.ttft_s, twin.scenario.tpot_s
    return sum(
        o.ttft_s is not None
        and o.e2e_s is not None
        and o.ttft_s <= ttft
        and o.e2e_s - o.ttft_s <= tpot * max(1, o.output_tokens - 1)
        for o in result.outcomes
    )


def test_the_time_per_token_that_is_predicted_is_the_one_that_comes_on_every_class(recorded: Recorded) -> None:
    """Without the stalls of prompts to come it is a tenth too low on the fast classes and a seventh on the slow one."""
    twin, result = played(public_scenarios()["mixed"], recorded.name)
    ratios: dict[str, list[float]] = {}
    for o in result.outcomes:
        picked = recorded.picks[o.index]
        assert o.ttft_s is not None and o.e2e_s is not None and picked.predicted_tpot_ms is not None
        each = (o.e2e_s - o.ttft_s) * 1e3 / max(1, o.output_tokens - 1)
        name = twin.specs[picked.decode].accelerator.name
        ratios.setdefault(name, []).append(each / picked.predicted_tpot_ms)
    assert len(ratios) == 3
    for name, found in ratios.items():
        assert 0.93 <= float(np.median(found)) <= 1.05, name


def test_slow_workers_are_not_filled_until_they_miss() -> None:
    form = public_scenarios()["mixed"]
    assert good(form, "KVAware") >= 0.98 * good(form, "LeastLoaded")


def test_nor_in_a_scenario_that_nobody_looked_at_while_it_was_built() -> None:
    form = parse_scenario((HELD_BACK / "busy-classes.yaml").read_text(), "busy-classes.yaml")
    assert good(form, "KVAware") >= 1.2 * good(form, "LeastLoaded")


def test_where_there_is_too_much_load_the_fast_ones_stay_in_time() -> None:
    form = public_scenarios()["over"]
    assert good(form, "KVAware") >= 1.5 * good(form, "RoundRobin") >= 1.5 * good(form, "LeastLoaded")
