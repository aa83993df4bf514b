"""Scenario files: what they say is what is simulated, they come back as they were, and errors name field and remedy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.core.fleet import Role
from penstock.core.models import Parallelism, find_accelerator
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import ENDLESS, Scenario
from penstock.simulator.faults import Crash, LostEvents, Partition, Slow, Throttle
from penstock.simulator.files import ScenarioError, ScenarioForm, parse_scenario, write_scenario
from penstock.simulator.links import Level, Link, Topology
from penstock.simulator.scaling_rules import Autoscaling, Bounds, Drain, PowerDomain, Provisioning
from penstock.simulator.scenario import FirstToken, NodeGroup
from penstock.simulator.startup import StartUp
from penstock.simulator.workloads import Agents, Columns, as_workload

DOCS = Path(__file__).resolve().parents[2] / "docs" / "concepts"
WHOLE = """
version: 1
model: llama-3.1-70b
nodes: a100-80g=2x8,h100-80g=1x8
policy: LeastLoaded
seed: 7
objectives: {ttft: 1s, tpot: 60ms}
parallelism: {tensor: 8}
pools:
- {name: prefill, role: Prefill, acceleratorClass: h100-80g, parallelism: {tensor: 4}, replicas: 2,
   maxNumBatchedTokens: 4096, maxNumSeqs: 64, scheduler: PrefillFirst, profile: {prefill: [1, 2, 0], decode: [3, 4, 0]}}
- {name: decode, role: Decode, acceleratorClass: a100-80g, parallelism: {tensor: 8}, replicas: 2}
engine: {maxContext: 9000, kvCapacity: infinite, blockSize: 32, maxNumSeqs: 100, maxNumBatchedTokens: 2048,
  scheduler: DecodeFirst, maxStalls: 4, mixedPassFactor: 1.1, schedulingPolicy: priority, prefixCaching: false,
  preemption: Swap, hostKvCapacity: 50000, hostGbytesPerS: 12}
profile: {prefill: [10, 0.1, 0], decode: [20, 0.2, 1.0e-4], experts: [1, 0.5]}
router: {scrapeInterval: 1s, readinessDelay: 3s, maxInFlight: 99, indexBytes: 1000000,
  retries: {attempts: 2, backoff: 10ms, maxBackoff: 1s, ejectAfter: 9, ejection: 3s, maxEjection: 40s,
    continuations: 0},
  split: {minTokens: 1, busyTokens: 5, attempts: 1, lease: 9s},
  timeouts: {connect: 1s, response: 2s, silence: 3s, transfer: 4s}}
transfer: {gbytesPerS: 25, latency: 2ms, shared: false, overlap: 0.9}
topology: {nodesPerRack: 2, racksPerRow: 3, rackGbytesPerS: 100, rowGbytesPerS: 200, domain: Rack}
firstToken: Prefill
cold: true
startUp: {schedule: 1s, image: 2s, weights: 3s, engine: 4s, warmUp: 5s}
faults:
- {kind: Crash, at: 1s, worker: 0}
- {kind: Slow, at: 1s, until: 2s, worker: 1, factor: 3}
- {kind: Throttle, at: 1s, until: 2s, worker: 1, clock: 0.5}
- {kind: Partition, at: 1s, until: 2s, worker: 1, router: false, peer: 3}
- {kind: LostEvents, at: 1s, until: 2s, worker: 1, replayed: false}
autoscaler:
  mode: Advise
  pools: [{pool: prefill, min: 1, max: 4}, {pool: decode, min: 2, max: 2}]
  attainment: 0.9
  cycleInterval: 2s
  scrapeInterval: 1s
  signalWindow: 30s
  scaleInWindow: 2m
  timeScale: 0.5
  budget: {maxAccelerators: 30, costPerHour: 90}
  provisioning: [{acceleratorClass: h100-80g, accelerators: 8, nodes: 2, provisionTime: 3m, lost: [1], giveUp: 10m}]
  drain: {idle: 1s, grace: 60s, stop: 10s, poll: 250ms}
  until: 10m
power: {domains: [{name: row, watts: 9000}, {name: rack, nodes: "0-1", parent: row}], interval: 2s}
workload:
  arrivals: {process: Gamma, rate: 2, cv: 3, for: 5m, shape: {kind: Diurnal, swing: 0.5, period: 1h, peak: 5m}}
  sessions: {turns: 3, think: 5s}
  tenants: [{name: a, share: 3, priority: -1}, {name: b}]
  models: {names: [x, y], exponent: 0.5}
"""
SMALL = "model: llama-3.1-8b\nnodes: a100-80g=1x1\nworkload: {arrivals: {rate: 5, for: 30s}%s}\n"


def nothing(file: str, skip_bad: bool) -> Trace:
    raise AssertionError(f"{file} is not to be read")


def recording(file: str, skip_bad: bool) -> Trace:
    return Trace(tuple(TraceRequest(0.5 * n, 100 + n, 10 + n % 7) for n in range(100)))


def test_every_field_of_a_scenario_can_be_written_in_a_file() -> None:
    scenario = parse_scenario(WHOLE, "whole.yaml").scenario()
    default = Scenario(scenario.model, scenario.groups)
    same = [
        one.name
        for one in dataclasses.fields(Scenario)
        if getattr(scenario, one.name) == getattr(default, one.name) and one.name not in ("model", "groups")
    ]
    # A crash is a fault among others, and walking is for tests.
    assert same == ["crashes", "walk"]


def test_a_file_says_how_it_is_scaled_and_metered() -> None:
    scenario = parse_scenario(WHOLE, "whole.yaml").scenario()
    assert scenario.autoscaling == Autoscaling(
        (Bounds("prefill", 1, 4), Bounds("decode", 2, 2)), "Advise", 0.9, 2.0, CycleTimes(1.0, 30.0, 120.0, 0.5), 30,
        90.0, (Provisioning("h100-80g", 8, 2, 180.0, (1,), 600.0),), Drain(1.0, 60.0, 10.0, 0.25), 600.0,
    )  # fmt: skip
    assert scenario.power == (PowerDomain("row", (), 9000.0), PowerDomain("rack", (0, 1), None, "row"))
    assert scenario.power_interval_s == 2.0


def test_a_file_says_what_is_simulated() -> None:
    scenario = parse_scenario(WHOLE, "whole.yaml").scenario()
    a100, h100 = find_accelerator("a100-80g"), find_accelerator("h100-80g")
    assert scenario.groups == (NodeGroup(a100, 2, 8), NodeGroup(h100, 1, 8))
    prefill, decode = scenario.pools
    assert (prefill.role, prefill.replicas, prefill.max_num_seqs) == (Role.PREFILL, 2, 64)
    assert prefill.profile.decode == (3, 4, 0)
    assert (decode.role, decode.parallelism, decode.profile) == (Role.DECODE, Parallelism(tensor=8), None)
    assert (scenario.kv_capacity, scenario.block_size, scenario.max_context) == (ENDLESS, 32, 9000)
    assert (scenario.ttft_s, scenario.tpot_s, scenario.seed) == (1.0, 0.06, 7)
    assert scenario.transfer == Link(25.0, 0.002, False, 0.9)
    assert scenario.topology == Topology(2, 3, 100.0, 200.0, Level.RACK)
    assert scenario.start_up == StartUp(1, 2, 3, 4, 5)
    assert scenario.first_token is FirstToken.PREFILL
    assert (scenario.retries.backoff, scenario.retries.max_ejection) == (0.01, 40.0)
    assert (scenario.split.lease, scenario.timeouts.transfer_s) == (9.0, 4.0)
    assert scenario.faults == (
        Crash(1.0, 0),
        Slow(1.0, 2.0, 1, 3.0),
        Throttle(1.0, 2.0, 1, 0.5),
        Partition(1.0, 2.0, 1, False, True, 3),
        LostEvents(1.0, 2.0, 1, False),
    )
    assert parse_scenario(WHOLE, "whole.yaml").scenario(9).seed == 9


@pytest.mark.parametrize("text", [WHOLE, SMALL % "", SMALL % ", agents: {fanOut: 2, tool: 250ms}"])
def test_what_was_written_reads_back_the_same(text: str) -> None:
    form = parse_scenario(text, "a.yaml")
    written = write_scenario(form)
    assert parse_scenario(written, "b.yaml") == form
    assert write_scenario(parse_scenario(written, "b.yaml")) == written


def test_a_form_says_only_what_is_not_so_anyway() -> None:
    written = write_scenario(parse_scenario(SMALL % "", "a.yaml"))
    assert set(written.split()) >= {"model:", "nodes:", "workload:"}
    assert "policy" not in written
    assert "engine" not in written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no scenario"),
        ("[1, 2", "is not YAML"),
        ("model: [", "is not YAML"),
        ("model: llama-3.1-8b\nnodes: a100-80g=1x1", "workload: is missing"),
        (SMALL.replace("8b", "9b") % "", "model: model 'llama-3.1-9b' is not in the catalogue; did you mean"),
        (
            SMALL.replace("llama-3.1-8b", "mine") % "",
            "model: model 'mine' is not in the catalogue; there is Llama-3.1-8B",
        ),
        (
            SMALL.replace("a100-80g", "a100") % "",
            "nodes: accelerator class 'a100' is not in the catalogue; there is a100",
        ),
        (SMALL.replace("1x1", "1") % "", "nodes: 'a100-80g=1' is no node group"),
        (SMALL % "" + "polcy: X", "polcy: is no field here; did you mean policy or"),
        (SMALL % "" + "zzzzzz: X", "zzzzzz: is no field here; drop it"),
        (SMALL % "" + "engine: {maxNumSeq: 5}", "engine.maxNumSeq: is no field here; did you mean maxNumSeqs"),
        (SMALL % "" + "objectives: {ttft: 2 days}", "objectives.ttft: '2 days' is no duration; write it as 300s"),
        (SMALL % "" + "engine: {kvCapacity: lots}", "engine.kvCapacity"),
        (SMALL % "" + "parallelism: {tensor: 2, expert: 3}", "parallelism expert: 3 must be 1 or tensor x data = 2"),
        (SMALL % "" + "transfer: {overlap: 2}", "transfer.overlap: input should be less than or equal to 1"),
        (SMALL % "" + "faults: [{kind: Fire}]", "faults.0: input tag 'Fire' found using 'kind' does not match"),
        (SMALL % "" + "faults: [{kind: Slow, at: 5s, until: 1s, worker: 0, factor: 2}]", "5.0 to 1.0 s is no time"),
        (SMALL % "" + "pools: [{name: p, acceleratorClass: a100-80g}]", "pools.0.replicas: is missing"),
        (SMALL % "" + "version: 2", "version: input should be 1"),
        (SMALL % ", trace: {file: x}", "workload: give either trace or arrivals"),
        (SMALL % ", sessions: {}, agents: {}", "workload: sessions and agents exclude each other"),
        (SMALL % ", agents: {}, tenants: [{name: a}]", "agents have neither tenants nor models"),
        (SMALL % ", sessions: {closed: true}, models: {names: [a]}", "closed sessions have neither tenants nor models"),
        (SMALL % ", agents: {maxContext: 100}", "max_context is 100"),
        (SMALL.replace("rate: 5, ", "") % "", "workload.arrivals: give rate, or the file of a trace"),
        (SMALL.replace("rate: 5", "rate: 5, shape: {kind: Fitted}") % "", "shape Fitted needs fit"),
        (
            SMALL.replace("rate: 5", "rate: 5, shape: {kind: Spikes, times: 2, every: 1s, length: 2s}") % "",
            "spikes of 2.0 s do not fit into 1.0 s",
        ),
    ],
)
def test_an_error_names_file_and_field_and_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_scenario(text, "bad.yaml")
    assert str(error.value).startswith("bad.yaml: ")
    assert said in str(error.value)


def workload_of(extra: str, **changes: str) -> tuple[ScenarioForm, object]:
    text = SMALL % extra
    for old, new in changes.items():
        text = text.replace(old, new)
    form = parse_scenario(text, "a.yaml")
    return form, form.workload.make_workload(recording, 8192, form.seed)[0]


def test_each_kind_of_workload_is_made() -> None:
    _, drawn = workload_of(", lengths: {inputTokens: 50, inputSigma: 0}")
    assert {request.input_tokens for _, request in drawn.opening()} == {50}
    _, liked = workload_of(", lengths: {like: conv.csv}")
    assert {request.input_tokens for _, request in liked.opening()} <= set(range(100, 200))
    _, talks = workload_of(", sessions: {turns: 3}")
    assert talks.shares_prefixes
    _, tasks = workload_of(", agents: {fanOut: 2}")
    assert isinstance(tasks, Agents)
    _, waiting = workload_of(", sessions: {closed: true}")
    assert isinstance(waiting, Agents)
    _, owned = workload_of(", tenants: [{name: a}, {name: b}], models: {names: [x, y]}")
    assert {request.tenant for _, request in owned.opening()} == {"a", "b"}
    assert {request.model for _, request in owned.opening()} == {"x", "y"}


def test_a_trace_is_scaled_cut_and_freed_of_what_is_too_long() -> None:
    text = "model: llama-3.1-8b\nnodes: a100-80g=1x1\nworkload: {trace: {file: t.csv, rateScale: 2, limit: 10s}}\n"
    form = parse_scenario(text, "a.yaml")
    workload, dropped = form.workload.make_workload(recording, 130, 0)
    played = [request for _, request in workload.opening()]
    assert all(request.arrival_s < 10.0 and request.input_tokens + request.output_tokens <= 130 for request in played)
    assert len(played) + dropped == 40
    assert dropped > 0


def test_arrivals_fitted_to_a_trace_have_its_rate_and_its_time() -> None:
    text = SMALL.replace("rate: 5, for: 30s", "process: Uniform, fit: t.csv") % ""
    workload, _ = parse_scenario(text, "a.yaml").workload.make_workload(recording, 8192, 0)
    times = [request.arrival_s for _, request in workload.opening()]
    assert times[1] - times[0] == pytest.approx(0.5)
    assert 45 < times[-1] <= 50


def test_spikes_keep_the_rate_that_was_asked_for() -> None:
    spiky = "rate: 5, shape: {kind: Spikes, times: 10, every: 10s, length: 1s}"
    _, workload = workload_of("", **{"rate: 5": spiky, "30s": "1000s"})
    assert workload.total == pytest.approx(5000, rel=0.05)


def test_many_requests_with_nothing_but_lengths_are_columns() -> None:
    _, few = workload_of(", lengths: {like: t.csv}")
    _, many = workload_of(", lengths: {like: t.csv}", **{"rate: 5": "rate: 10000"})
    assert not isinstance(few, Columns)
    assert isinstance(many, Columns)
    assert many.total == pytest.approx(300_000, rel=0.01)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("rate: 5", "rate: 1000000") % "", "are more than 10000000"),
        (SMALL.replace(", for: 30s", "") % "", "say for how long"),
        (SMALL.replace("rate: 5, for: 30s", "rate: 0.001, for: 1s") % "", "no request is left"),
    ],
)
def test_a_workload_of_too_much_or_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_scenario(text, "a.yaml").workload.make_workload(nothing, 8192, 0)


def test_the_scenarios_of_the_docs_are_scenarios() -> None:
    page = (DOCS / "twin.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    form = parse_scenario(example, "twin.md")
    assert [pool.name for pool in form.scenario().pools] == ["prefill", "decode"]
    spikes = parse_scenario((DOCS / "twin-spikes.yaml").read_text(), "twin-spikes.yaml")
    workload, dropped = spikes.workload.make_workload(nothing, 8192, 0)
    assert workload.total == pytest.approx(14 * 300, rel=0.1)
    assert dropped == 0


def test_another_seed_is_another_workload_and_the_same_the_same() -> None:
    form = parse_scenario(SMALL % "", "a.yaml")
    one, again, other = (
        list(as_workload(form.workload.make_workload(nothing, 8192, seed)[0]).opening()) for seed in (1, 1, 2)
    )
    assert one == again != other
