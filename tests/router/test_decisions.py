"""Policies, retries and the life of a request, without a socket or a clock."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from penstock.core.fleet import Failure, Fleet, Pick, PickReason, Rejection, RejectReason, Request, Worker
from penstock.router.decisions import (
    POLICIES,
    Answered,
    Attempt,
    Cut,
    Ended,
    Failed,
    PassOn,
    Pause,
    Refuse,
    Resumed,
    RetryLimits,
    UnknownPolicy,
    find_policy,
    live,
)
from penstock.router.decisions.loads import MAX_SAMPLE_AGE, foreign_requests, outstanding_tokens
from penstock.router.decisions.retries import ejection_after, retry_after, unit_interval

REQUEST = Request(id="r", model="m", prompt_tokens=10, max_tokens=5)
LIMITS = RetryLimits()
SEEDS = st.integers(0, 2**63)


def fleet_of(count: int, **more: object) -> Fleet:
    """Ready workers w0, w1, ..."""
    fleet = Fleet(**more)  # type: ignore[arg-type]
    for i in range(count):
        fleet.set_ready(fleet.add(Worker(f"w{i}", "h", i, "m")), True)
    return fleet


def picked(policy: str, fleet: Fleet, seed: int = 0, now: float = 0.0) -> Pick:
    """A pick that must succeed."""
    answer = find_policy(policy).pick(REQUEST, fleet.view(), now, seed)
    assert isinstance(answer, Pick)
    return answer


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(
        UnknownPolicy, match="unknown routing policy 'Psychic'; known policies are RoundRobin, LeastLoaded"
    ):
        find_policy("Psychic")


@given(st.integers(1, 40), st.integers(1, 90), st.lists(SEEDS, min_size=1, max_size=5))
def test_round_robin_is_fair(workers: int, requests: int, seeds: list[int]) -> None:
    fleet = fleet_of(workers)
    counts = [0] * workers
    for i in range(requests):
        slot = picked("RoundRobin", fleet, seeds[i % len(seeds)]).decode
        fleet.reserve(slot, 1, 1)
        counts[slot] += 1
    assert max(counts) - min(counts) <= 1


@given(st.data())
@settings(max_examples=60)
def test_round_robin_stays_fair_among_those_always_there(data: st.DataObject) -> None:
    """Others come and go; two that stay never differ by more than one turn."""
    fleet = fleet_of(4)
    counts = [0] * 4
    for _ in range(40):
        comer = data.draw(st.integers(2, 3))
        fleet.set_ready(comer, data.draw(st.booleans()))
        slot = picked("RoundRobin", fleet, data.draw(SEEDS)).decode
        fleet.reserve(slot, 1, 1)
        counts[slot] += 1
    assert abs(counts[0] - counts[1]) <= 1


LOADS = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@given(LOADS, SEEDS)
def test_least_loaded_never_picks_a_strictly_more_loaded_one(loads: list[int], seed: int) -> None:
    fleet = fleet_of(len(loads))
    for slot, load in enumerate(loads):
        for _ in range(load):
            fleet.reserve(slot, 7, 3)
    pick = picked("LeastLoaded", fleet, seed)
    assert loads[pick.decode] == min(loads)
    assert pick.score == 10 * min(loads)


@given(st.lists(st.one_of(st.none(), st.floats(0, 50)), min_size=2, max_size=8), SEEDS)
def test_unsampled_workers_neither_attract_nor_repel(foreign: list[float | None], seed: int) -> None:
    """A worker nobody could scrape is worth the mean of those that were: missing data is not zero."""
    fleet = fleet_of(len(foreign))
    known = [f for f in foreign if f is not None]
    for slot, value in enumerate(foreign):
        if value is not None:
            fleet.sample(slot, value, 0.5, at=0.0)
    view = fleet.view()
    loads = outstanding_tokens(view, view.candidates("m"), 1.0)
    for slot, value in enumerate(foreign):
        expected = value if value is not None else (sum(known) / len(known) if known else 0.0)
        assert loads[slot] == pytest.approx(expected * fleet.mean_request_tokens)
    if len(known) < len(foreign) and known:
        best = picked("LeastLoaded", fleet, seed, now=1.0).decode
        assert foreign[best] is not None or min(known) == pytest.approx(sum(known) / len(known))


def test_an_old_sample_counts_as_none() -> None:
    fleet = fleet_of(2)
    fleet.sample(0, 100.0, 0.5, at=0.0)
    view = fleet.view()
    young = outstanding_tokens(view, view.candidates("m"), MAX_SAMPLE_AGE)
    old = outstanding_tokens(view, view.candidates("m"), MAX_SAMPLE_AGE + 1)
    assert young[0] == 100.0 and old.tolist() == [0.0, 0.0]
    fleet.sample(1, 2.0, 0.5, at=MAX_SAMPLE_AGE)
    mixed = outstanding_tokens(view, view.candidates("m"), MAX_SAMPLE_AGE + 1)
    assert mixed.tolist() == [2.0, 2.0]


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0, 7.0]), st.floats(0.0, 20.0), st.booleans()), max_size=12
    ),
    st.integers(0, 5),
)
def test_reports_are_kept_no_longer_than_they_hold(history: list[tuple[int, float, float, bool]], known: int) -> None:
    fleet = fleet_of(5)
    for slot in range(known):
        fleet.sample(slot, 0.0, 0.5, at=0.0)
    view, now = fleet.view(), 0.0
    some, everybody = slice(1, 4), view.candidates("m")
    for slot, foreign, passed, reports in history:
        now += passed
        if reports:
            fleet.sample(slot, foreign, 0.5, at=now)
        for slots in (everybody, some, everybody):
            fresh = now - fleet.sampled_at[slots] <= MAX_SAMPLE_AGE
            told = fleet.foreign_requests[slots]
            meant = np.where(fresh, told, told[fresh].mean()) if fresh.any() else np.zeros(fresh.size)
            assert (np.zeros(fresh.size) + foreign_requests(view, slots, now)).tolist() == meant.tolist()


@pytest.mark.parametrize("policy", POLICIES)
@given(state=st.lists(st.sampled_from(["ready", "unready", "withdrawn", "ejected", "excluded", "full"]), max_size=8))
@settings(max_examples=80)
def test_no_policy_picks_whom_it_may_not(policy: str, state: list[str]) -> None:
    fleet = fleet_of(len(state), max_in_flight=1)
    for slot, word in enumerate(state):
        if word == "unready":
            fleet.set_ready(slot, False)
        elif word == "withdrawn":
            fleet.withdraw(slot)
        elif word == "ejected":
            fleet.eject(slot, until=100.0)
        elif word == "full":
            fleet.reserve(slot, 1, 1)
    excluded = frozenset(i for i, word in enumerate(state) if word == "excluded")
    answer = find_policy(policy).pick(REQUEST, fleet.view().without(excluded), 0.0, 1)
    if "ready" in state:
        assert isinstance(answer, Pick) and state[answer.decode] == "ready"
        assert {state[s] for s in answer.candidates} == {"ready"}
    elif "full" in state:
        assert isinstance(answer, Rejection) and answer.reason is RejectReason.WORKERS_BUSY
    elif "ejected" in state:
        assert isinstance(answer, Pick) and state[answer.decode] == "ejected"
    else:
        assert isinstance(answer, Rejection) and answer.reason is RejectReason.NO_WORKERS


@pytest.mark.parametrize("policy", POLICIES)
@given(loads=LOADS, seed=SEEDS)
@settings(max_examples=40)
def test_a_pick_explains_itself(policy: str, loads: list[int], seed: int) -> None:
    fleet = fleet_of(len(loads))
    for slot, load in enumerate(loads):
        if load:
            fleet.reserve(slot, load, 0)
    pick = picked(policy, fleet, seed)
    assert sorted([pick.decode, *(slot for slot, _ in pick.losers)]) == list(range(len(loads)))
    assert all(score >= pick.score for _, score in pick.losers)
    assert pick.policy == policy and pick.unit in ("turn", "tokens", "lot", "ms")
    if len(loads) == 1:
        assert pick.runner_up is None and pick.reason is PickReason.ONLY_CANDIDATE
        return
    assert pick.reason is not PickReason.ONLY_CANDIDATE
    runner_up = pick.runner_up
    assert runner_up is not None
    if policy == "PowerOfTwo":
        return  # without the one picked, two others are drawn
    again = find_policy(policy).pick(REQUEST, fleet.view().without(frozenset({pick.decode})), 0.0, seed)
    assert isinstance(again, Pick)
    assert again.score == pytest.approx(dict(pick.losers)[runner_up]), (
        "the runner-up is not as good as what would be picked"
    )


@pytest.mark.parametrize("policy", POLICIES)
@given(loads=LOADS, seed=SEEDS)
@settings(max_examples=30)
def test_picking_changes_nothing_and_repeats(policy: str, loads: list[int], seed: int) -> None:
    fleet = fleet_of(len(loads))
    for slot, load in enumerate(loads):
        fleet.reserve(slot, load, 1)
    before = (fleet.epoch, fleet.in_flight.copy(), fleet.last_pick.copy(), fleet.reservations)
    first, second = picked(policy, fleet, seed), picked(policy, fleet, seed)
    assert first.decode == second.decode and first.reason == second.reason
    assert before[0] == fleet.epoch and before[3] == fleet.reservations
    assert (before[1] == fleet.in_flight).all() and (before[2] == fleet.last_pick).all()


def test_a_profile_predicts_the_first_token() -> None:
    fleet = Fleet()
    fleet.set_ready(fleet.add(Worker("p", "h", 1, "m", prefill_ms=(5.0, 0.1, 0.001))), True)
    fleet.set_ready(fleet.add(Worker("q", "h", 2, "n")), True)
    assert picked("LeastLoaded", fleet).predicted_ttft_ms == pytest.approx(5.0 + 0.1 * 10 + 0.001 * 100)
    other = find_policy("LeastLoaded").pick(Request("r", "n", 10, 5), fleet.view(), 0.0, 0)
    assert isinstance(other, Pick) and other.predicted_ttft_ms is None


# ---- retries ------------------------------------------------------------------------------------


@given(st.integers(1, 10), SEEDS)
def test_retries_are_bounded_and_waits_too(attempt: int, seed: int) -> None:
    retry = retry_after(attempt, 0.0, None, LIMITS, seed)
    assert retry.again == (attempt < LIMITS.attempts)
    assert 0.0 <= retry.delay <= LIMITS.max_backoff
    if attempt == 1:
        assert retry.delay == 0.0


@given(st.integers(2, 10), st.floats(0, 10), st.floats(0, 10), SEEDS)
def test_no_retry_begins_at_or_after_the_deadline(attempt: int, now: float, deadline: float, seed: int) -> None:
    retry = retry_after(attempt, now, deadline, RetryLimits(attempts=100), seed)
    assert not retry.again or now + retry.delay < deadline


@given(st.integers(1, 200), SEEDS)
def test_ejection_grows_and_is_bounded(failures: int, seed: int) -> None:
    seconds = ejection_after(Failure.RESET, failures, LIMITS, seed)
    assert (seconds is None) == (failures < LIMITS.eject_after)
    if seconds is not None:
        assert 0.75 * LIMITS.ejection <= seconds <= LIMITS.max_ejection


@pytest.mark.parametrize("failure", [Failure.STALE_CONNECTION, Failure.UNAVAILABLE, Failure.WORKER_GONE])
def test_innocent_failures_never_eject(failure: Failure) -> None:
    assert ejection_after(failure, 1000, LIMITS, 1) is None


@given(SEEDS, st.integers(0, 1000))
def test_jitter_is_a_function_in_the_unit_interval(seed: int, salt: int) -> None:
    assert 0.0 <= unit_interval(seed, salt) < 1.0
    assert unit_interval(seed, salt) == unit_interval(seed, salt)


def test_jitter_spreads() -> None:
    tenths = [int(unit_interval(seed, 1) * 10) for seed in range(2000)]
    assert all(100 < tenths.count(t) < 300 for t in range(10))


# ---- the life of a request ------------------------------------------------------------------------


def test_a_plain_life() -> None:
    fleet = fleet_of(1)
    life = live(REQUEST, fleet, find_policy("RoundRobin"), LIMITS, 0.0, 1)
    attempt = next(life)
    assert isinstance(attempt, Attempt) and attempt.number == 1 and fleet.reservations == 1
    assert isinstance(life.send(Answered(1.0, 200)), PassOn)
    with pytest.raises(StopIteration):
        life.send(Ended(2.0))
    assert fleet.reservations == 0


def test_a_stale_connection_is_tried_again_at_the_same_worker_for_free() -> None:
    fleet = fleet_of(2)
    life = live(REQUEST, fleet, find_policy("RoundRobin"), RetryLimits(attempts=1), 0.0, 1)
    first = next(life)
    second = life.send(Failed(0.0, Failure.STALE_CONNECTION))
    assert isinstance(first, Attempt) and isinstance(second, Attempt)
    assert second.worker == first.worker and second.fresh and second.number == 1
    assert fleet.reservations == 1 and not fleet.failures.any()


def test_a_failed_worker_is_not_asked_again_while_there_are_others() -> None:
    fleet = fleet_of(3)
    life = live(REQUEST, fleet, find_policy("RoundRobin"), LIMITS, 0.0, 1)
    action, asked = next(life), []
    while not isinstance(action, Refuse):
        if isinstance(action, Attempt):
            asked.append(action.worker.name)
            action = life.send(Failed(0.0, Failure.CONNECT_REFUSED))
        else:
            assert isinstance(action, Pause)
            action = life.send(Resumed(0.0))
    assert sorted(asked[:3]) == ["w0", "w1", "w2"]
    assert len(asked) == LIMITS.attempts
    assert action.rejection.reason is RejectReason.RETRIES_EXHAUSTED
    assert fleet.reservations == 0


def test_no_attempt_after_the_first_byte() -> None:
    fleet = fleet_of(3)
    life = live(REQUEST, fleet, find_policy("RoundRobin"), LIMITS, 0.0, 1)
    next(life)
    life.send(Answered(0.0, 200))
    action = life.send(Failed(1.0, Failure.RESET))
    assert isinstance(action, Cut) and action.failure is Failure.RESET
    with pytest.raises(StopIteration):
        life.send(Ended(1.0))
    assert fleet.reservations == 0


def test_a_503_goes_elsewhere_only_while_somebody_else_has_room() -> None:
    fleet = fleet_of(2)
    life = live(REQUEST, fleet, find_policy("RoundRobin"), LIMITS, 0.0, 1)
    first = next(life)
    second = life.send(Answered(0.0, 503))
    assert isinstance(first, Attempt) and isinstance(second, Attempt) and second.worker != first.worker
    assert isinstance(life.send(Answered(0.0, 503)), PassOn)
    assert not fleet.failures.any()


def test_a_503_is_passed_on_where_all_others_may_not_serve_the_request() -> None:
    fleet = fleet_of(3)
    life = live(REQUEST, fleet, find_policy("RoundRobin"), LIMITS, 0.0, 1, barred=frozenset({1, 2}))
    first = next(life)
    assert isinstance(first, Attempt) and first.reservation.slot == 0
    assert isinstance(life.send(Answered(0.0, 503)), PassOn), "no pause, and no second try at the same worker"


def test_a_deadline_that_passed_is_not_served() -> None:
    late = Request(id="r", model="m", prompt_tokens=1, max_tokens=1, deadline=5.0)
    action = next(live(late, fleet_of(1), find_policy("RoundRobin"), LIMITS, 5.0, 1))
    assert isinstance(action, Refuse) and action.rejection.reason is RejectReason.DEADLINE_PASSED


def test_one_crash_counts_as_a_few_failures_not_as_one_for_each_stream() -> None:
    fleet = fleet_of(1)
    lives = []
    for i in range(50):
        life = live(REQUEST, fleet, find_policy("RoundRobin"), LIMITS, 0.0, i)
        next(life)
        life.send(Answered(0.0, 200))
        lives.append(life)
    for life in lives:
        life.send(Failed(1.0, Failure.RESET))
    assert fleet.failures[0] == LIMITS.eject_after
    assert fleet.retrial_at[0] <= 1.0 + LIMITS.ejection


EVENTS = st.sampled_from(
    ["ok", "503", "500", "stale", "reset", "refused", "gone", "end", "leave", "remove", "withdraw"]
)


@given(st.integers(0, 4), st.lists(EVENTS, max_size=12), st.sampled_from(sorted(POLICIES)), SEEDS)
@settings(max_examples=300)
def test_whatever_happens_a_life_ends_and_gives_back(workers: int, script: list[str], policy: str, seed: int) -> None:
    """Any order of events: bounded attempts, never two reservations, none left, none after the first byte."""
    fleet = fleet_of(workers)
    life = live(REQUEST, fleet, find_policy(policy), LIMITS, 0.0, seed)
    events = iter(script)
    attempts, passing, now = 0, False, 0.0
    try:
        action = next(life)
        while True:
            now += 0.01
            assert fleet.reservations <= 1
            if isinstance(action, Refuse | Cut):
                assert isinstance(action, Cut) == passing
                life.close()
                break
            if isinstance(action, Pause):
                assert action.seconds <= LIMITS.max_backoff
                action = life.send(Resumed(now + action.seconds))
                continue
            word = next(events, "end" if passing else "ok")
            if isinstance(action, Attempt):
                assert not passing, "an attempt after the first byte"
                attempts += not action.fresh
                if word == "remove":
                    fleet.remove(action.reservation.slot)
                    word = "gone"
                elif word == "withdraw":
                    fleet.withdraw(action.reservation.slot)
            if word == "leave":
                life.close()
                break
            if isinstance(action, PassOn):
                passing = True
                action = life.send(Ended(now) if word in ("ok", "end") else Failed(now, Failure.RESET))
            elif word in ("ok", "500", "503", "end", "withdraw"):
                action = life.send(Answered(now, int(word) if word.isdigit() else 200))
            else:
                failure = {"stale": Failure.STALE_CONNECTION, "reset": Failure.RESET, "gone": Failure.WORKER_GONE}
                action = life.send(Failed(now, failure.get(word, Failure.CONNECT_REFUSED)))
    except StopIteration:
        assert passing
    assert attempts <= LIMITS.attempts
    assert fleet.reservations == 0
    assert not fleet.in_flight.any() and not fleet.outstanding_tokens.any()


@given(st.floats(0, 1e9), SEEDS)
def test_infinite_values_never_reach_a_pick(now: float, seed: int) -> None:
    fleet = fleet_of(3)
    fleet.sample(0, math.inf, math.nan, at=now)
    assume(now >= 0)
    assert picked("LeastLoaded", fleet, seed, now).decode in (0, 1, 2)
