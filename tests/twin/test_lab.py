"""The policy lab: a policy is scored as a router would run it, against the same baseline on the same arrivals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from penstock.autoscaler.decisions.planners import PLANNERS, UnknownPlanner
from penstock.cli.main import app
from penstock.core.policy_files import PolicyFileError
from penstock.router.decisions.policies import BUILT_IN, POLICIES, NameTaken
from penstock.simulator.files import Traces, parse_scenario
from penstock.simulator.lab import Contest, Entry, Kind, Run, enter, make_boards, play, public_scenarios
from penstock.simulator.lab.contest import Scene
from penstock.simulator.study import prepare
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples" / "policies"
HELD_BACK = Path(__file__).parent / "held-back"
SMALL = """
model: llama-3.1-8b
nodes: a100-80g=1x2
objectives: {ttft: 400ms, tpot: 25ms}
engine: {maxContext: 8192}
workload:
  arrivals: {rate: 9, for: 12s}
  lengths: {inputTokens: 1150, outputTokens: 60, maxTokens: 4000}
"""
SCALED = (
    SMALL
    + """
pools: [{name: serve, acceleratorClass: a100-80g, replicas: 1}]
autoscaler: {pools: [{pool: serve, min: 1, max: 2}], until: 60s, timeScale: 0.1}
"""
)
TWIN_OF_LEAST_LOADED = """
from penstock.router.decisions.policies_plain import LeastLoaded
class Same:
    name = "Same"
    def pick(self, request, view, now, seed):
        return LeastLoaded().pick(request, view, now, seed)
"""
FIRST_ONLY = """
from msgspec.structs import replace
from penstock.router.decisions.policies_plain import LeastLoaded
class FirstOnly:
    name = "FirstOnly"
    def pick(self, request, view, now, seed):
        answer = LeastLoaded().pick(request, view, now, seed)
        return replace(answer, decode=int(answer.candidates[0]))
"""
FICKLE = """
import os
from msgspec.structs import replace
from penstock.router.decisions.policies_plain import LeastLoaded
class Fickle:
    name = "Fickle"
    def pick(self, request, view, now, seed):
        answer = LeastLoaded().pick(request, view, now, seed)
        return replace(answer, decode=int(answer.candidates[os.urandom(1)[0] % 2]))
"""


def scene(text: str = SMALL, name: str = "small") -> Scene:
    def no_trace(file: str, skip_bad: bool) -> Any:
        raise AssertionError(file)

    return Scene(name, parse_scenario(text, name), Traces(no_trace))


def contest(source: str, *scenes: Scene, seeds: int = 2, rivals: tuple[str, ...] = ("LeastLoaded",)) -> Contest:
    entries = tuple(e for e in enter(source, "policy.py") if e.own or e.name in (*rivals, "TargetTracking"))
    return Contest(source, "policy.py", entries, scenes or (scene(),), tuple(range(seeds)))


def test_whoever_decides_alike_scores_exactly_one() -> None:
    runs, fickle = play(contest(TWIN_OF_LEAST_LOADED))
    (board,) = make_boards(runs, fickle)
    assert {row.entry.name: row.score.values for row in board.rows} == {"Same": (1.0, 1.0), "LeastLoaded": (1.0, 1.0)}
    assert not any(row.mistakes or row.fickle for row in board.rows)
    assert tuple(POLICIES) == BUILT_IN, "the file's policy was left behind"


def test_a_policy_that_uses_one_worker_of_two_comes_last() -> None:
    (board,) = make_boards(*play(contest(FIRST_ONLY)))
    assert [row.entry.name for row in board.rows] == ["LeastLoaded", "FirstOnly"]
    assert board.rows[-1].score.mean < 0.9


def test_a_policy_that_fails_plays_as_the_least_loaded_and_is_counted() -> None:
    (board,) = make_boards(*play(contest(TWIN_OF_LEAST_LOADED.replace("return", "1 / 0; return"), seeds=1)))
    own = next(row for row in board.rows if row.entry.own)
    assert own.score.values == (1.0,)
    assert own.mistakes > 50
    assert own.first_mistake == "ZeroDivisionError: division by zero (policy.py, line 6)"


def test_runs_do_not_depend_on_how_many_processes_play_them_and_chance_is_found_out() -> None:
    pair = contest(TWIN_OF_LEAST_LOADED, seeds=1, rivals=("LeastLoaded", "Random"))
    assert play(pair, processes=1) == play(pair, processes=2)
    assert play(contest(FICKLE, seeds=1))[1] == {"Fickle"}


def test_a_policy_that_ends_its_process_is_told_from_one_that_plays() -> None:
    source = TWIN_OF_LEAST_LOADED.replace("return", "import os; os._exit(3); return")
    with pytest.raises(ValueError, match=r"policy\.py: ended its process in the middle of a run"):
        play(contest(source, seeds=1))


def test_planners_are_scored_for_their_money_where_there_is_an_autoscaler() -> None:
    source = (EXAMPLES / "one_spare_worker.py").read_text()
    asked = contest(source, scene(), scene(SCALED, "scaled"), seeds=1)
    assert [(entry.name, entry.kind) for entry in asked.entries] == [
        ("TargetTracking", Kind.PLANNER),
        ("OneSpareWorker", Kind.PLANNER),
    ]
    runs, _ = play(asked)
    assert {run.scene for run in runs} == {"scaled"}
    (board,) = make_boards(runs)
    assert (board.kind, board.baseline) == (Kind.PLANNER, "TargetTracking")
    tracking, spare = sorted(runs, key=lambda run: not run.entry.name.startswith("Target"))
    assert spare.cost > tracking.cost, "a spare worker costs something"
    assert not PLANNERS


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        ("x = 1", PolicyFileError, r"policy\.py: brings nothing to score"),
        (TWIN_OF_LEAST_LOADED.replace('"Same"', '"KVAware"'), NameTaken, r"policy\.py: there is a policy 'KVAware'"),
        (
            TWIN_OF_LEAST_LOADED.replace('"Same"', '"Splitwise"'),
            NameTaken,
            r"policy\.py: there is a policy 'Splitwise'",
        ),
        ("class P:\n name = 'TargetTracking'\n def plan(self): ...", UnknownPlanner, r"there is a planner 'TargetTra"),
    ],
)
def test_what_cannot_be_scored_is_refused_first(source: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        enter(source, "policy.py")
    assert tuple(POLICIES) == BUILT_IN


def test_scores_are_geometric_means_over_scenarios_seed_by_seed_without_those_that_nobody_can_be_measured_in() -> None:
    base, mine = Entry("LeastLoaded", Kind.POLICY), Entry("Mine", Kind.POLICY, own=True)
    goods = {"a": ((10, 12), (20, 20)), "b": ((50, 40), (100, 100)), "hopeless": ((3, 3), (0, 5))}
    runs = [
        Run(entry, name, seed, float(good[seed]), 100, 1.0, "")
        for name, (own, theirs) in goods.items()
        for entry, good in ((mine, own), (base, theirs))
        for seed in (0, 1)
    ]
    (board,) = make_boards(runs)
    assert (board.scenes, board.left_out) == (("a", "b"), ("hopeless",))
    assert [row.entry.name for row in board.rows] == ["LeastLoaded", "Mine"]
    assert board.rows[1].score.values == pytest.approx((0.5, (0.6 * 0.4) ** 0.5))
    assert board.rows[1].scenes["a"].values == pytest.approx((0.5, 0.6))
    with pytest.raises(ValueError, match="LeastLoaded meets the objectives in no scenario"):
        make_boards([replace(run, good=0.0) for run in runs])


@pytest.mark.parametrize("name", [name for name in public_scenarios() if name != "mooncake"])
def test_every_public_scenario_can_be_played(name: str) -> None:
    form = public_scenarios()[name]
    assert prepare(form, scene().traces, form.seed).workload.total > 100


@pytest.mark.parametrize("file", sorted(HELD_BACK.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_scenario_that_was_held_back_can_be_played(file: Path) -> None:
    form = parse_scenario(file.read_text(), file.name)
    assert form.seed, "other seeds than the public ones"
    assert prepare(form, scene().traces, form.seed).workload.total > 100


def lab(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["lab", "eval", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    folder = tmp_path / "held-out"
    folder.mkdir()
    (folder / "mine.yaml").write_text(SMALL)
    (folder / "traced.yaml").write_text(SMALL[: SMALL.index("workload")] + "workload: {trace: {file: away.csv}}\n")
    return folder


def test_the_command_scores_on_somebody_elses_scenarios(held_out: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.json"
    example = str(EXAMPLES / "room_for_answers.py")
    done = lab(example, "--scenarios", str(held_out), "--seeds", "1", "--json", str(file))
    assert done.exit_code == 0, done.output
    assert "traced is left out: away.csv is not in" in done.output
    (board,) = json.loads(file.read_text())["boards"]
    assert board["scenarios"] == ["mine"]
    assert {row["entry"] for row in board["rows"]} == {*BUILT_IN, "RoomForAnswers"}
    for row in board["rows"]:
        assert row["entry"] in done.output
        assert row["mistakes"] == 0


def test_mistakes_show_in_output_and_exit_code(held_out: Path, tmp_path: Path) -> None:
    file = tmp_path / "policy.py"
    file.write_text(TWIN_OF_LEAST_LOADED.replace("return", "1 / 0; return"))
    done = lab(str(file), "--scenarios", str(held_out), "--seeds", "1")
    assert done.exit_code == 1
    assert f"mistakes; the first: ZeroDivisionError: division by zero ({file}, line 6)" in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.py"], "penstock lab eval: nowhere.py: cannot be read"),
        (
            [str(EXAMPLES / "room_for_answers.py"), "--only", "tihgt"],
            "--only tihgt: there is no such scenario; there is",
        ),
        ([str(EXAMPLES / "room_for_answers.py"), "--scenarios", "nowhere"], "--scenarios nowhere: is no folder"),
        (
            [str(EXAMPLES / "one_spare_worker.py"), "--only", "tight"],
            "no scenario can score it: one needs an autoscaler",
        ),
        ([str(EXAMPLES / "room_for_answers.py"), "--only", "mooncake"], "no scenario is left to play"),
    ],
)
def test_what_cannot_be_played_is_said_in_a_sentence(arguments: list[str], sentence: str) -> None:
    done = lab(*arguments)
    assert done.exit_code == 2
    assert sentence in done.output
