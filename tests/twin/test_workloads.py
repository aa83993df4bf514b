"""Workloads have the rate, the burstiness and the sharing that was asked for, and depend on nothing but their seed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Scenario, simulate
from penstock.simulator.workloads import (
    Agents,
    AgentShape,
    ArrivalProcess,
    Columns,
    LengthShape,
    SessionShape,
    Tenant,
    agents,
    arrivals,
    closed_sessions,
    diurnal,
    expert_loads,
    fit_burstiness,
    fit_lengths,
    fit_rate,
    fit_sessions,
    fit_tenants,
    fit_zipf,
    like,
    sessions,
    spikes,
    stream_like,
    with_models,
    with_tenants,
    zipf_shares,
)
from penstock.simulator.workloads.agents import Call


@pytest.mark.parametrize(
    ("process", "cv", "expected"),
    [(ArrivalProcess.POISSON, 9.0, 1.0), (ArrivalProcess.GAMMA, 4.0, 4.0), (ArrivalProcess.UNIFORM, 9.0, 0.0)],
)
def test_gaps_have_the_rate_and_the_burstiness(process: ArrivalProcess, cv: float, expected: float) -> None:
    times = arrivals(20.0, 5000.0, process, cv, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(100_000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(expected, rel=0.05, abs=1e-9)


@given(
    rate=st.floats(0.01, 50), seconds=st.floats(0.1, 200), process=st.sampled_from(ArrivalProcess),
    cv=st.floats(0.2, 6), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_arrivals_are_sorted_within_the_time_and_of_one_seed(
    rate: float, seconds: float, process: ArrivalProcess, cv: float, seed: int
) -> None:
    times = arrivals(rate, seconds, process, cv, seed)
    assert np.array_equal(times, arrivals(rate, seconds, process, cv, seed))
    assert (np.diff(times) >= 0).all()
    assert not len(times) or (times[0] >= 0 and times[-1] < seconds)


def test_a_day_has_its_peak_and_a_spike_its_height() -> None:
    day = arrivals(diurnal(2.0, 0.8, peak_s=50_400.0), 86_400.0, seed=4)
    hours = np.histogram(day, bins=24, range=(0, 86_400))[0]
    assert len(day) == pytest.approx(2.0 * 86_400, rel=0.02)
    assert int(hours.argmax()) in (13, 14)
    assert hours.max() / hours.min() == pytest.approx(1.8 / 0.2, rel=0.2)
    spiked = arrivals(spikes(1.0, 10.0, every_s=100.0, length_s=10.0), 10_000.0, seed=4)
    inside = (spiked % 100.0 >= 90.0).mean()
    assert inside == pytest.approx(100 / 190, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrivals(0.0, 10.0), "rate is 0.0"),
        (lambda: arrivals(1.0, float("inf")), "seconds is inf"),
        (lambda: arrivals(1.0, 10.0, cv=-1.0), "cv is -1.0"),
        (lambda: arrivals(lambda at: at - 5.0, 10.0), "never below 0"),
        (lambda: diurnal(1.0, 1.5), "swing of 1.5"),
        (lambda: spikes(1.0, 2.0, 5.0, 5.0), "do not fit"),
        (lambda: like(Trace(()), np.array([1.0])), "no lengths"),
        (lambda: SessionShape(turns=0.5), "turns is 0.5"),
        (lambda: LengthShape(input_tokens=0.0), "input_tokens is 0.0"),
        (lambda: LengthShape(output_sigma=-1.0), "output_sigma is -1.0"),
        (lambda: AgentShape(fan_out=0.0), "fan_out is 0.0"),
        (lambda: AgentShape(max_context=2000), "max_context is 2000"),
        (lambda: Tenant("a", 0.0), "tenant a: share is 0.0"),
        (lambda: with_tenants(Trace(()), ()), "at least one tenant"),
        (lambda: with_models(Trace(()), ()), "at least one model"),
        (lambda: zipf_shares(5, -1.0), "exponent -1.0"),
        (lambda: expert_loads(1, 4, 10, chosen=5), "5 of 4 experts"),
        (lambda: fit_rate(Trace(())), "no rate"),
    ],
)
def test_nonsense_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_lengths_are_those_of_the_trace_and_stay_in_pairs() -> None:
    trace = Trace(tuple(TraceRequest(0.0, 100 * n, n, (n,)) for n in range(1, 50)))
    made = like(trace, arrivals(10.0, 100.0, seed=2), seed=2)
    assert all(one.input_tokens == 100 * one.output_tokens and not one.prefix_blocks for one in made.requests)
    assert len({one.output_tokens for one in made.requests}) == 49
    assert made == like(trace, arrivals(10.0, 100.0, seed=2), seed=2)
    assert made != like(trace, arrivals(10.0, 100.0, seed=2), seed=3)


def test_a_turn_begins_with_all_of_the_turn_before() -> None:
    shape = SessionShape(turns=5.0, system_prompts=3, system_tokens=128, block_tokens=32)
    trace = sessions(arrivals(1.0, 200.0, seed=6), shape, seed=6)
    assert trace == sessions(arrivals(1.0, 200.0, seed=6), shape, seed=6)
    assert len({one.prefix_blocks[:4] for one in trace.requests}) == 3, "system prompts are shared"
    by_own_block = {}
    later = 0
    for one in trace.requests:
        assert len(one.prefix_blocks) == one.input_tokens // 32
        own = one.prefix_blocks[4:5]
        before = by_own_block.get(own) if own else None
        if before is not None:
            later += 1
            assert one.arrival_s >= before.arrival_s
            assert one.prefix_blocks[: len(before.prefix_blocks)] == before.prefix_blocks
            assert one.input_tokens > before.input_tokens + before.output_tokens
        if own:
            by_own_block[own] = one
    assert later > len(trace.requests) / 2


def test_streamed_columns_are_the_same_requests() -> None:
    trace = Trace(tuple(TraceRequest(0.0, 100 * n, n) for n in range(1, 50)))
    times = arrivals(10.0, 20.0, seed=2)
    columns = stream_like(trace, times, seed=2)
    made = like(trace, times, seed=2)
    assert [request for _, request in columns.opening()] == list(made.requests)
    assert (columns.total, columns.longest_tokens) == (len(made.requests), made.longest_tokens)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([1.0, 0.5], [1, 1], [1, 1]), "sorted"),
        (([-1.0, 0.5], [1, 1], [1, 1]), "sorted"),
        (([0.0], [1, 1], [1, 1]), "equally many"),
        (([0.0], [0], [1]), "at least 1 input"),
    ],
)
def test_columns_that_are_no_workload_are_refused(arrays: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(np.array(arrays[0]), np.array(arrays[1], dtype=np.int32), np.array(arrays[2], dtype=np.int32))


def test_tenants_get_their_shares_and_their_priorities() -> None:
    trace = LengthShape().draw(arrivals(100.0, 100.0, seed=1), 1)
    owned = with_tenants(trace, (Tenant("paying", 3.0, -1), Tenant("free", 1.0, 5)), seed=4)
    paying = [request for request in owned.requests if request.tenant == "paying"]
    assert len(paying) / len(owned.requests) == pytest.approx(0.75, abs=0.02)
    assert {(request.tenant, request.priority) for request in owned.requests} == {("paying", -1), ("free", 5)}
    assert owned == with_tenants(trace, (Tenant("paying", 3.0, -1), Tenant("free", 1.0, 5)), seed=4)
    shares = {tenant.name: tenant.share for tenant in fit_tenants(owned)}
    assert shares == {"paying": len(paying), "free": len(owned.requests) - len(paying)}
    assert {tenant.name: tenant.priority for tenant in fit_tenants(owned)} == {"paying": -1, "free": 5}


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.2])
def test_popularity_falls_by_zipf_and_is_found_again(exponent: float) -> None:
    trace = LengthShape().draw(arrivals(200.0, 100.0, seed=1), 1)
    names = [f"adapter-{n}" for n in range(20)]
    asked = [request.model for request in with_models(trace, names, exponent, seed=3).requests]
    assert fit_zipf(asked) == pytest.approx(exponent, abs=0.06)
    share = asked.count("adapter-0") / len(asked)
    assert share == pytest.approx(float(zipf_shares(20, exponent)[0]), abs=0.02)


def test_models_do_not_share_prefixes() -> None:
    trace = Trace(tuple(TraceRequest(float(n), 64, 1, (7,)) for n in range(200)), 64)
    made = with_models(trace, ["a", "b"], 0.5, seed=1)
    by_model = {request.model: request.prefix_blocks for request in made.requests}
    assert len(set(by_model.values())) == 2


@given(
    layers=st.integers(1, 4), experts=st.integers(2, 64), tokens=st.integers(0, 5000), exponent=st.floats(0, 3),
    seed=st.integers(0, 1000), data=st.data(),
)  # fmt: skip
def test_expert_loads_have_about_the_tokens_there_are(
    layers: int, experts: int, tokens: int, exponent: float, seed: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(1, experts))
    loads = expert_loads(layers, experts, tokens, exponent, chosen, seed)
    assert loads.shape == (layers, experts)
    assert (loads >= 0).all()
    assert (loads <= tokens).all()
    expected = tokens * chosen
    assert np.abs(loads.sum(axis=1) - expected).max() <= 6 * np.sqrt(expected + 1) + 1


def test_hot_experts_differ_from_layer_to_layer() -> None:
    loads = expert_loads(30, 64, 100_000, 1.0, 2, seed=5)
    assert len(set(loads.argmax(axis=1).tolist())) > 10
    assert loads.max() / loads.mean() > 4


def test_burstiness_is_found_again() -> None:
    trace = LengthShape().draw(arrivals(20.0, 5000.0, ArrivalProcess.GAMMA, 3.0, seed=1))
    found = fit_burstiness(trace)
    assert found.rate == pytest.approx(20.0, rel=0.05)
    assert found.cv == pytest.approx(3.0, rel=0.05)
    with pytest.raises(ValueError, match="three requests"):
        fit_burstiness(Trace(trace.requests[:2]))


def test_the_course_of_a_rate_is_found_again() -> None:
    wave = LengthShape().draw(arrivals(diurnal(20.0, 0.9, period_s=600.0, peak_s=0.0), 600.0, seed=1))
    again = arrivals(fit_rate(wave, 30.0), 600.0, seed=2)
    halves = [
        np.histogram(times, bins=12, range=(0, 600))[0] for times in ([r.arrival_s for r in wave.requests], again)
    ]
    assert np.corrcoef(*halves)[0, 1] > 0.97
    assert len(again) == pytest.approx(len(wave.requests), rel=0.05)


def test_lengths_are_found_again() -> None:
    shape = LengthShape(900.0, 200.0, 0.9, 0.5, 20_000)
    found = fit_lengths(shape.draw(arrivals(100.0, 300.0, seed=2), 3))
    assert found.input_tokens == pytest.approx(900, rel=0.05)
    assert found.output_tokens == pytest.approx(200, rel=0.05)
    assert (found.input_sigma, found.output_sigma) == (pytest.approx(0.9, abs=0.05), pytest.approx(0.5, abs=0.05))


def test_conversations_are_found_again() -> None:
    shape = SessionShape(turns=5.0, system_tokens=64, input_tokens=200, output_tokens=150, think_s=20.0)
    found = fit_sessions(sessions(arrivals(0.5, 2000.0, seed=1), shape, seed=2))
    assert found.turns == pytest.approx(5.0, rel=0.15)
    assert found.input_tokens == pytest.approx(200, rel=0.1)
    assert found.output_tokens == pytest.approx(150, rel=0.1)
    assert found.think_s == pytest.approx(20.0, rel=0.1)
    with pytest.raises(ValueError, match="no conversations"):
        fit_sessions(LengthShape().draw(arrivals(1.0, 10.0, seed=1)))


def test_a_call_comes_when_the_last_of_its_parents_is_answered_and_its_tool_has_run() -> None:
    made = agents(arrivals(0.5, 100.0, seed=1), AgentShape(tool_s=2.0), seed=1)
    opening = list(made.opening())
    assert [at for at, _ in opening] == [n for n, call in enumerate(made.calls) if not call.parents]
    came = dict(opening)
    ended: dict[int, float] = {}
    rng = np.random.default_rng(0)
    while len(ended) < len(came):
        number = min((n for n in came if n not in ended), key=lambda n: (came[n].arrival_s, n))
        # Answers overtake each other.
        ended[number] = max([came[number].arrival_s, *ended.values()]) + float(rng.exponential(3.0))
        for child, request in made.after(number, ended[number], True):
            parents = made.calls[child].parents
            assert child not in came
            assert set(parents) <= set(ended)
            expected = max(ended[parent] for parent in parents) + made.calls[child].request.arrival_s
            assert request.arrival_s == pytest.approx(expected)
            came[child] = request
    assert len(came) == made.total
    assert max(len(call.parents) for call in made.calls) > 2


def shared_blocks(one: TraceRequest, other: TraceRequest) -> int:
    pairs = zip(one.prefix_blocks, other.prefix_blocks, strict=False)
    return next(
        (at for at, (a, b) in enumerate(pairs) if a != b), min(len(one.prefix_blocks), len(other.prefix_blocks))
    )


def test_siblings_and_joins_begin_with_what_their_task_has_said() -> None:
    shape = AgentShape(block_tokens=16)
    made = agents(arrivals(0.5, 200.0, seed=3), shape, seed=3)
    assert made.longest_tokens <= shape.max_context
    brothers: dict[tuple[int, ...], list[TraceRequest]] = {}
    for call in made.calls:
        assert len(call.request.prefix_blocks) == call.request.input_tokens // 16
        brothers.setdefault(call.parents, []).append(call.request)
    for parents, calls in brothers.items():
        for one, other in itertools.pairwise(calls):
            if not parents:
                assert shared_blocks(one, other) == 1024 // 16, "tasks share their instructions and nothing else"
                continue
            said = made.calls[parents[0]].request
            assert shared_blocks(one, other) == (said.input_tokens + said.output_tokens) // 16
    joins = [call for call in made.calls if len(call.parents) > 1]
    assert len(joins) > 20
    for join in joins:
        (root,) = made.calls[join.parents[0]].parents
        root_call = made.calls[root].request
        assert shared_blocks(join.request, root_call) == len(root_call.prefix_blocks)
        found = sum(made.calls[parent].request.output_tokens for parent in join.parents)
        assert join.request.input_tokens > root_call.input_tokens + root_call.output_tokens + found


def test_the_twin_waits_for_answers(scenario: Scenario) -> None:
    made = agents(arrivals(0.5, 40.0, seed=2), seed=2)
    slow = replace(scenario, profile=replace(scenario.profile, decode=(200.0, 0.2, 1e-4)))
    ends = {}
    for name, one in (("quick", scenario), ("slow", slow)):
        outcomes = simulate(one, made).outcomes
        assert len(outcomes) == made.total
        for call, outcome in zip(made.calls, outcomes, strict=True):
            for parent in call.parents:
                before = outcomes[parent]
                assert outcome.sent_s >= before.sent_s + before.e2e_s + call.request.arrival_s - 1e-9
        ends[name] = max(outcome.sent_s for outcome in outcomes)
    assert ends["slow"] > ends["quick"]
    assert simulate(scenario, made).outcomes == simulate(scenario, made).outcomes


def test_closed_conversations_are_the_open_ones_with_turns_that_wait(scenario: Scenario) -> None:
    starts = arrivals(0.5, 60.0, seed=4)
    open_ones, closed = sessions(starts, seed=4), closed_sessions(starts, seed=4)
    turns = sorted((call.request.input_tokens, call.request.output_tokens) for call in closed.calls)
    assert turns == sorted((turn.input_tokens, turn.output_tokens) for turn in open_ones.requests)
    assert [request.arrival_s for _, request in closed.opening()] == starts.tolist()
    outcomes = simulate(replace(scenario, kv_capacity=None, max_context=None), closed).outcomes
    for number, call in enumerate(closed.calls):
        for parent in call.parents:
            ended = outcomes[parent].sent_s + outcomes[parent].e2e_s
            assert outcomes[number].sent_s == pytest.approx(ended + call.request.arrival_s)
    assert any(call.parents for call in closed.calls)


def test_what_waits_for_a_lost_call_never_comes(scenario: Scenario) -> None:
    calls = (
        Call(TraceRequest(0.0, 9000, 5), ()),  # More than the context of 8192: refused.
        Call(TraceRequest(0.0, 100, 5), ()),
        Call(TraceRequest(1.0, 100, 5), (0, 1)),
        Call(TraceRequest(1.0, 100, 5), (1,)),
    )
    outcomes = simulate(scenario, Agents(calls)).outcomes
    assert [outcome.index for outcome in outcomes] == [0, 1, 3]
    assert outcomes[2] is None
    with pytest.raises(ValueError, match="only earlier ones"):
        Agents((Call(TraceRequest(0.0, 1, 1), (0,)),))
