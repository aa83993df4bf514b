"""Who plays what: every policy in every scenario over the same seeds, each run with the policy file loaded anew.

A file's policies run as a router would run them: an answer that cannot be used is replaced by the least loaded
worker's, and counted. The first run of each is played twice; a policy that is a pure function does the same again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from penstock.autoscaler.decisions.planners import (
    DEFAULT_PLANNER,
    UnknownPlanner,
    register_planner,
    withdraw_planner,
    written_planners,
)
from penstock.core.policy_files import PolicyFileError, run_policy_file
from penstock.core.reports import Report
from penstock.router.decisions.policies import BUILT_IN, NameTaken, register, withdraw
from penstock.router.decisions.policies_written import written_policies
from penstock.simulator.files import ScenarioForm, Traces
from penstock.simulator.policies import TWIN_POLICIES
from penstock.simulator.study import prepare

__all__ = ["Contest", "Entry", "Kind", "Run", "Scene", "enter", "play"]

Told = Callable[[int, int], None]
"""(done, all), of runs."""
Tell = Callable[[str, str], None]


class Kind(StrEnum):
    """What a file's object decides."""

    POLICY = "policy"
    """Which worker serves a request."""
    PLANNER = "planner"
    """How many workers there are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One that is scored."""

    name: str
    kind: Kind
    own: bool = False
    """Whether it comes from the policy file, rather than shipping."""

    def into(self, form: ScenarioForm) -> ScenarioForm:
        """The scenario with this one deciding."""
        if self.kind is Kind.POLICY:
            return form.model_copy(update={"policy": self.name})
        assert form.autoscaler is not None
        return form.model_copy(update={"autoscaler": form.autoscaler.model_copy(update={"planner": self.name})})


@dataclass(frozen=True, slots=True)
class Scene:
    """A scenario with the traces it may name."""

    name: str
    form: ScenarioForm
    traces: Traces

    def suits(self, kind: Kind) -> bool:
        """Planners need an autoscaler in the loop."""
        return kind is Kind.POLICY or self.form.autoscaler is not None


@dataclass(frozen=True, slots=True)
class Contest:
    """Everything that is to be played."""

    source: str
    file: str
    entries: tuple[Entry, ...]
    scenes: tuple[Scene, ...]
    seeds: tuple[int, ...]
    """Added to each scenario's own seed."""

    @property
    def runs(self) -> int:
        """How many there will be, those that are played twice among them."""
        pairs = sum(scene.suits(entry.kind) for scene in self.scenes for entry in self.entries)
        return pairs * len(self.seeds) + sum(entry.own for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Run:
    """What one entry came to in one scenario with one seed."""

    entry: Entry
    scene: str
    seed: int
    good: float
    """Requests within both objectives."""
    requests: int
    cost: float
    """USD of all accelerators that were held."""
    digest: str
    """Of the whole report; alike for runs that went alike."""
    mistakes: int = 0
    """Answers that could not be used."""
    first_mistake: str = ""


@dataclass(frozen=True, slots=True)
class _Job:
    entry: Entry
    scene: int
    seed: int


def enter(source: str, file: str) -> tuple[Entry, ...]:
    """Those that ship, of every kind the file brings, and the file's own.

    Raises `PolicyFileError` for a file that brings nothing, `NameTaken` or `UnknownPlanner` for a taken name.
    """
    with _loaded(source, file, lambda name, problem: None) as own:
        if not own:
            raise PolicyFileError(f"{file}: brings nothing to score; give it a class with a name and a method pick")
        kinds = {entry.kind for entry in own}
    policies = tuple(Entry(name, Kind.POLICY) for name in BUILT_IN) if Kind.POLICY in kinds else ()
    planners = (Entry(DEFAULT_PLANNER, Kind.PLANNER),) if Kind.PLANNER in kinds else ()
    return (*policies, *planners, *own)


def play(contest: Contest, told: Told | None = None, processes: int | None = None) -> tuple[tuple[Run, ...], set[str]]:
    """Every run, and the names of those that did not do the same again when asked the same again.

    Runs go to as many processes as there are cores; what comes out does not depend on how many. Raises what
    `study.prepare` raises, and ValueError where a policy ends its process.
    """
    jobs = [
        _Job(entry, at, scene.form.seed + seed)
        for at, scene in enumerate(contest.scenes)
        for entry in contest.entries
        if scene.suits(entry.kind)
        for seed in contest.seeds
    ]
    again = [next(job for job in jobs if job.entry == entry) for entry in contest.entries if entry.own]
    made: list[Run] = []
    for run in _played(contest, [*jobs, *again], processes or len(os.sched_getaffinity(0))):
        made.append(run)
        if told is not None:
            told(len(made), contest.runs)
    first = {(run.entry, run.scene, run.seed): run.digest for run in made[: len(jobs)]}
    fickle = {run.entry.name for run in made[len(jobs) :] if first[run.entry, run.scene, run.seed] != run.digest}
    return tuple(made[: len(jobs)]), fickle


def _played(contest: Contest, jobs: Sequence[_Job], processes: int) -> Iterator[Run]:
    # Forked, so that traces that were read already are there without being sent. Never in this process: what a policy
    # file does to its process must not reach the one that keeps the scores.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(contest,)) as pool:
        try:
            yield from pool.map(_play_job, jobs)
        except BrokenProcessPool:
            raise ValueError(f"{contest.file}: ended its process in the middle of a run") from None


_contest: Contest | None = None  # Of a process of the pool.


def _begin(contest: Contest) -> None:
    global _contest
    _contest = contest


def _play_job(job: _Job) -> Run:
    if _contest is None:
        raise RuntimeError("this process was not begun with the contest")
    problems: list[str] = []
    scene = _contest.scenes[job.scene]
    with _loaded(_contest.source, _contest.file, lambda name, problem: problems.append(problem)):
        report = prepare(job.entry.into(scene.form), scene.traces, job.seed).run()
    run = _told_by(report, job.entry, scene.name, job.seed)
    return replace(run, mistakes=len(problems), first_mistake=problems[0]) if problems else run


def _told_by(report: Report, entry: Entry, scene: str, seed: int) -> Run:
    total = report.requests.total
    good = 0.0 if report.attainment is None else report.attainment * total
    cost = float(report.run["resources"]["total"]["cost_usd"])
    digest = hashlib.sha256(json.dumps(report.to_dict(), sort_keys=True).encode()).hexdigest()
    return Run(entry, scene, seed, good, total, cost, digest)


@contextmanager
def _loaded(source: str, file: str, tell: Tell) -> Iterator[tuple[Entry, ...]]:
    """What the file brings, found by name as long as this lasts."""
    module = run_policy_file(source, file)
    policies, planners = written_policies(module, tell), written_planners(module, tell)
    taken = [policy.name for policy in policies if policy.name in TWIN_POLICIES]
    if taken:
        raise NameTaken(f"{file}: there is a policy {taken[0]!r} already; give yours another name")
    try:
        for policy in policies:
            register(policy, reads=policy.reads_prompts)
        for planner in planners:
            register_planner(planner)
    except (NameTaken, UnknownPlanner) as error:
        raise type(error)(f"{file}: {error}") from None
    try:
        yield (
            *(Entry(policy.name, Kind.POLICY, own=True) for policy in policies),
            *(Entry(planner.name, Kind.PLANNER, own=True) for planner in planners),
        )
    finally:
        for policy in policies:
            withdraw(policy.name)
        for planner in planners:
            withdraw_planner(planner.name)
