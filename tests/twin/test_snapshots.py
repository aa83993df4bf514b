"""Decisions on record, made again: the same to the byte, whoever decided; and a record that was bent shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from penstock.autoscaler.decisions.cycle import CycleTimes, conclude
from penstock.autoscaler.decisions.records import cycle_record
from penstock.core.fleet import FleetView, Pick, Rejection, Request, Role
from penstock.core.models import Parallelism
from penstock.core.records import RecordError, Ring, write_record
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.policies import POLICIES, Policy
from penstock.router.decisions.records import pick_on_record
from penstock.simulator import Autoscaling, Bounds, Crash, PoolSpec, Scenario, StartUp, Twin
from penstock.simulator.snapshots import replay_records

ONE = Parallelism(tensor=1)


class Noting:
    """A policy that keeps the record of every pick."""

    def __init__(self, policy: Policy, lines: list[bytes]) -> None:
        self._policy, self._lines, self.name = policy, lines, policy.name

    def pick(self, request: Request, view: FleetView, now: float, seed: int) -> Pick | Rejection:
        answer, record = pick_on_record(self._policy, request, view, now, seed)
        self._lines.append(write_record(record))
        return answer


def trace_of(requests: int, rate: float) -> Trace:
    """Requests of few stems, so that prefixes are found."""
    rng = np.random.default_rng(5)
    at = np.cumsum(rng.exponential(1 / rate, requests))
    made = []
    for number in range(requests):
        stem, tokens = int(rng.integers(0, 5)), int(rng.integers(200, 2000))
        blocks = tuple(stem * 1000 + i for i in range(tokens // 64))
        made.append(TraceRequest(float(at[number]), tokens, int(rng.integers(5, 80)), blocks))
    return Trace(tuple(made), 64)


@pytest.fixture
def picked(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bool], list[bytes]]:
    """Play some requests by a policy, pools apart or not, with a crash among them; the records of its picks."""

    def play(policy: str, apart: bool) -> list[bytes]:
        lines: list[bytes] = []
        noting = Noting(POLICIES[policy], lines)
        monkeypatch.setattr("penstock.simulator.twin.find_twin_policy", lambda name: noting)
        pools = (
            PoolSpec("prefill", Role.PREFILL, "a100-80g", ONE, 2),
            PoolSpec("decode", Role.DECODE, "a100-80g", ONE, 2),
        )
        chosen = replace(scenario, policy=policy, crashes=(Crash(4.0, 1),), pools=pools if apart else ())
        Twin(replace(chosen, max_in_flight=6, start_up=StartUp(0, 0, 1, 1, 1)), trace_of(80, 12.0)).run()
        return lines

    return play


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_pick_comes_out_the_same(picked: Callable[[str, bool], list[bytes]], policy: str, apart: bool) -> None:
    lines = picked(policy, apart)
    replayed = replay_records(lines, "picks.jsonl")
    assert replayed.differences == []
    assert replayed.same == {"Pick": len(lines)}
    assert len(lines) >= 80


def test_a_pick_from_another_fleet_comes_out_otherwise(picked: Callable[[str, bool], list[bytes]]) -> None:
    lines = picked("LeastLoaded", False)
    bent = []
    for line in lines:
        record = json.loads(line)
        chosen = record["answer"].get("Pick")
        if chosen is not None:
            at = record["fleet"]["slots"].index(chosen["decode"])
            record["fleet"]["columns"]["in_flight"][at] += 5
        bent.append(write_record(record))
    replayed = replay_records(bent, "picks.jsonl")
    assert replayed.different["Pick"] > len(lines) // 2
    assert replayed.differences[0].recorded != replayed.differences[0].again


@pytest.fixture
def cycles(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The records of every cycle of a load that comes and goes."""
    lines: list[bytes] = []
    times = CycleTimes(scrape_interval_s=1.0, scale_in_window_s=20.0)
    scaled = replace(
        scenario,
        pools=(PoolSpec("serve", Role.PREFILL_DECODE, "a100-80g", ONE, 1),),
        start_up=StartUp(1, 1, 1, 1, 1),
        autoscaling=Autoscaling((Bounds("serve", 1, 4),), cycle_interval_s=2.0, times=times, until_s=200.0),
    )

    def noted(looked, outcome, done, rules):  # type: ignore[no-untyped-def]
        after = conclude(looked, outcome, done, rules)
        lines.append(write_record(cycle_record(looked, rules, outcome, done, after)))
        return after

    monkeypatch.setattr("penstock.simulator.scaling.conclude", noted)
    requests = trace_of(200, 4.0).requests
    quiet = tuple(TraceRequest(r.arrival_s * 8 + 60.0, r.input_tokens, r.output_tokens) for r in requests[:20])
    result = Twin(scaled, Trace(tuple(sorted((*requests, *quiet), key=lambda r: r.arrival_s)))).run()
    assert result.scaling is not None
    assert {change.after > change.before for change in result.scaling.changes} == {True, False}
    return lines


def test_a_cycle_comes_out_the_same(cycles: list[bytes]) -> None:
    replayed = replay_records(cycles, "cycles.jsonl")
    assert replayed.differences == []
    assert replayed.same["Cycle"] == len(cycles) >= 90


def test_a_cycle_under_other_rules_comes_out_otherwise(cycles: list[bytes]) -> None:
    bent = []
    for line in cycles:
        record = json.loads(line)
        record["rules"]["plan"]["margins"]["batch"] = 0.2
        record["rules"]["guard"]["out_least"] = 1
        record["rules"]["guard"]["out_factor"] = 1.0
        bent.append(write_record(record))
    assert replay_records(bent, "cycles.jsonl").different["Cycle"] > 0


def test_what_is_no_record_is_named_by_file_and_line() -> None:
    good = write_record({"kind": "Tea", "answer": 1})
    with pytest.raises(RecordError, match=r"x\.jsonl, line 1: kind 'Tea' is not known"):
        replay_records([good], "x.jsonl")
    with pytest.raises(RecordError, match=r"x\.jsonl, line 1: the line is not JSON"):
        replay_records([b"{nonsense\n"], "x.jsonl")
    with pytest.raises(RecordError, match=r"line 1: the record holds no History|line 1: the record holds no _Hist"):
        replay_records([b'{"kind": "Cycle", "answer": 1}\n'], "x.jsonl")
    assert replay_records([b'{"kind": "Pi'], "x.jsonl").total == 0


def test_a_ring_never_outgrows_its_bound(tmp_path: Path) -> None:
    ring = Ring(str(tmp_path), "picks", most_bytes=1000)
    lines = [b"%04d" % number + b"x" * 45 + b"\n" for number in range(100)]
    for line in lines:
        ring.append(line)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1000
    ring.append(b"y" * 600)
    ring.close()
    kept = (tmp_path / "picks.before.jsonl").read_bytes() + (tmp_path / "picks.jsonl").read_bytes()
    assert kept == b"".join(lines[-len(kept) // 50 :])
    assert len(kept) > 500
    Ring(str(tmp_path), "picks").close()
    assert (tmp_path / "picks.before.jsonl").read_bytes() in kept


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="name a folder that can be written"):
        Ring(str(file), "picks")
