"""Nothing happens: three minutes of the Azure conversation trace through the gateway, and every request is answered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, limit_duration
from verbs import Cluster, describe, load

MINUTES = 3
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.box
@pytest.mark.timeout(600)
def test_every_request_of_a_calm_run_completes(cluster: Cluster, azure: Callable[[], Trace]) -> None:
    trace = limit_duration(azure(), MINUTES * 60.0)
    assert len(trace.requests) > 300, "the trace is too thin to prove anything"
    with load(cluster, trace, MODEL) as running:
        pass
    outcomes = running.outcomes()
    assert len(outcomes) == len(trace.requests)
    assert all(o.verdict is Verdict.COMPLETED for o in outcomes), describe(outcomes)
    # The client never retries, so a completion is a first answer; each has the length that was asked for.
    assert all(o.output_tokens == o.asked_tokens for o in outcomes)
    assert all(o.ttft_s is not None for o in outcomes)


@pytest.mark.box
def test_both_workers_shared_the_calm_run(cluster: Cluster) -> None:
    used = [worker_requests(cluster, pod["metadata"]["name"]) for pod in cluster.ready_workers("llama-8b")]
    assert len(used) >= 2
    assert min(used) > 0.3 * max(used), f"requests per worker: {used}"


def worker_requests(cluster: Cluster, pod: str) -> float:
    """Requests an engine says it finished."""
    scrape = cluster.kubectl("exec", pod, "-c", "engine", "--", "python", "-c", _SCRAPE)
    return sum(float(line.rsplit(" ", 1)[1]) for line in scrape.splitlines() if "request_success_total{" in line)


_SCRAPE = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics', timeout=5).read().decode())"
