"""How long a worker takes to start, told from the pods, from the engine class, or from neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autoscaler_views import OBJECTIVES
from penstock.autoscaler.decisions import TimedSample, WorkerHistory
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.observe import Memory, Times, ViewRules, observe
from penstock.autoscaler.decisions.seen import SeenDeployment, SeenPool, SeenWorker
from penstock.autoscaler.decisions.snapshot import DeploymentView
from penstock.core.wire import EngineSample

RULES = ViewRules()
NOW = 1000.0


def scraped(rate: float, since: float, until: float) -> WorkerHistory:
    """A worker that ends `rate` requests a second and is scraped every 5 s."""
    at = [since + 5.0 * n for n in range(int((until - since) / 5.0) + 1)]
    return WorkerHistory(
        "w", tuple(TimedSample(t, EngineSample(running=1, waiting=0, finished={"stop": rate * t})) for t in at)
    )


def worker(created: float | None, ready_since: float | None, history: WorkerHistory) -> SeenWorker:
    return SeenWorker(history, True, True, ready_since is not None, False, created, ready_since)


def seen(declared: float | None, *workers: SeenWorker) -> SeenDeployment:
    pool = SeenPool("p", "serve", "PrefillDecode", "a100", 1, None, None, 1, 1, 8, workers, declared)
    return SeenDeployment(("team", "chat"), "Auto", OBJECTIVES, (pool,))


def observed(of: SeenDeployment, now: float = NOW, memory: Memory | None = None) -> tuple[DeploymentView, Memory]:
    snapshot, kept = observe([of], {}, memory or {}, History(since=0.0), Times(now, now), RULES)
    return snapshot.deployments[0], kept


@pytest.mark.parametrize(
    ("declared", "pods", "expected"),
    [
        (None, (), 60.0),
        (300.0, (), 300.0),
        (300.0, ((900.0, None),), 300.0),
        (300.0, ((900.0, 920.0), (800.0, 840.0), (0.0, 30.0)), 30.0),
        (None, ((None, 920.0),), 60.0),
    ],
)
def test_what_was_measured_wins_over_what_is_declared(
    declared: float | None, pods: tuple[tuple[float | None, float | None], ...], expected: float
) -> None:
    silent = WorkerHistory("w")
    view, _ = observed(seen(declared, *(worker(made, ready, silent) for made, ready in pods)))
    assert view.pools[0].startup_s == expected


def test_how_long_workers_have_been_starting_is_known_from_their_pods() -> None:
    silent = WorkerHistory("w")
    ready, new, old = (worker(made, since, silent) for made, since in ((900.0, 930.0), (990.0, None), (970.0, None)))
    going, unknown = replace(old, terminating=True), worker(None, None, silent)
    pods = observed(seen(None, ready, new, old, going, unknown))[0].pools[0].pods
    assert (pods.starting, pods.starting_s) == (3, 20.0)
    assert observed(seen(None, ready))[0].pools[0].pods.starting_s is None


def test_the_forecast_reaches_as_far_as_the_declared_start_up() -> None:
    """A ramp, seen for two minutes: what takes longer to start is asked for further ahead, declared or measured."""

    def rate(declared: float | None, created: float | None) -> float:
        memory: Memory = {}
        view = None
        for cycle in range(24):
            now = NOW + 5.0 * cycle
            each = worker(created, None if created is None else NOW - 100.0, growing(now))
            view, memory = observed(seen(declared, each), now, memory)
        assert view is not None
        return view.loads["PrefillDecode"].rate

    short, minute, long = rate(10.0, None), rate(None, None), rate(240.0, None)
    assert short < minute < long
    assert rate(10.0, NOW - 340.0) == long


def growing(now: float) -> WorkerHistory:
    """Ten requests a second at first, and a twentieth more every second."""
    history = scraped(0.0, now - 60.0, now)
    grown = tuple(
        replace(timed, sample=replace(timed.sample, finished={"stop": ended(timed.at - NOW + 100.0)}))
        for timed in history.samples
    )
    return replace(history, samples=grown)


def ended(seconds: float) -> float:
    return 10.0 * seconds + 0.025 * seconds**2
