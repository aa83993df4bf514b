"""KVAware and the prompts to come: what they bring between two tokens, how sure that is, and whom it is for."""

import math
import random

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from penstock.core.fleet import TYPICAL_OUTPUT, PickReason
from penstock.core.fleet.stalls import stalls_each_pass
from penstock.router.decisions.stalls import keeps, margin_ms, spread_ms
from picks_stage import DECODE, HASHES, PREFILL, REQUEST, fleet_of, pick, term, worker

GRAIN = 1e-5
"""ms; what is brought is counted in whole parts of a ms, of which this is some."""
SLOW = (90.0, 0.5, 1e-3)
"""A decode that keeps 60 ms a token for nobody."""
TIMES = st.floats(0.0, 500.0)


def normal(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


def density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def stall_of(prompt: int, cached: int = 0) -> float:
    return PREFILL[0] + PREFILL[1] * (prompt - cached) + PREFILL[2] * (prompt**2 - cached**2) - DECODE[0]


# ---- what follows a request ---------------------------------------------------------------------------


def test_a_request_of_n_tokens_is_followed_by_one_nth_of_a_prompt_with_each_pass() -> None:
    stall, square = stalls_each_pass(*PREFILL, DECODE[0], 1000, 200, 50)
    assert stall == pytest.approx(stall_of(1000, 200) / 50, abs=GRAIN)
    assert square == pytest.approx(stall_of(1000, 200) ** 2 / 50, abs=GRAIN)
    assert stalls_each_pass(*PREFILL, DECODE[0], 1000, 200, 10**6) == stalls_each_pass(
        *PREFILL, DECODE[0], 1000, 200, TYPICAL_OUTPUT
    ), "a maximum is not taken for the length"
    assert stalls_each_pass(*PREFILL, DECODE[0], 1000, 0, 0)[0] == pytest.approx(stall_of(1000), abs=GRAIN)


def test_a_prompt_that_takes_no_longer_than_the_weights_stalls_nobody() -> None:
    assert stalls_each_pass(*PREFILL, DECODE[0], 99, 0, 10) == (0.0, 0.0)
    assert stalls_each_pass(math.nan, math.nan, math.nan, math.nan, 5000, 0, 10) == (0.0, 0.0)


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 9000), st.integers(0, 400)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_what_comes_with_a_request_goes_with_it_to_the_last_bit(asked: list[tuple[int, int, int]], chance) -> None:  # type: ignore[no-untyped-def]
    fleet = fleet_of(worker(0))
    held = [fleet.reserve(0, prompt, output, min(cached, prompt)) for prompt, cached, output in asked]
    chance.shuffle(held)
    for at, reservation in enumerate(held):
        rest = held[at:]
        assert fleet.stalls[0].tolist() == [sum(one.stalls[0] for one in rest), sum(one.stalls[1] for one in rest)]
        fleet.release(reservation)
    assert fleet.stalls[0].tolist() == [0.0, 0.0]


def test_prompts_that_take_minutes_leave_a_worker_that_can_be_picked() -> None:
    """Their squares are beyond sums to the last bit: a rest below 0 would have no root, and nobody would come again."""
    fleet = fleet_of(worker(0, prefill_ms=(10.0, 16.0, 1e-4)))
    chance = random.Random(1)
    for _ in range(20):
        held = [fleet.reserve(0, chance.randint(2000, 32_000), chance.choice([1, 16, 256])) for _ in range(40)]
        chance.shuffle(held)
        for reservation in held:
            fleet.release(reservation)
            assert fleet.stalls[0][1] >= 0.0
        assert term(pick(fleet), "spread_ms", 0) == pytest.approx(0.0, abs=0.01)


def test_what_is_learned_of_a_worker_meanwhile_takes_nothing_away_twice() -> None:
    fleet = fleet_of(worker(0))
    held = fleet.reserve(0, 1000, 50)
    fleet.describe(0, worker(0, prefill_ms=(10.0, 0.9, 0.0)))
    later = fleet.reserve(0, 1000, 50)
    assert later.stalls[0] > held.stalls[0]
    fleet.release(held)
    fleet.release(later)
    assert fleet.stalls[0].tolist() == [0.0, 0.0]


def test_a_decode_worker_that_gets_whole_prompts_has_no_stalls() -> None:
    fleet = fleet_of(worker(0))
    fleet.reserve(0, 1000, 50, 1000)
    assert term(pick(fleet), "stall_ms", 0) == 0.0


# ---- what is predicted of them ------------------------------------------------------------------------


def test_strangers_are_followed_by_what_one_of_ours_is() -> None:
    fleet = fleet_of(worker(0), worker(1))
    for _ in range(2):
        fleet.reserve(0, 1000, 50)
    fleet.sample(0, 0.0, 0.5, at=0.0)
    fleet.sample(1, 3.0, 0.5, at=0.0)
    picked = pick(fleet)
    assert term(picked, "stall_ms", 0) == pytest.approx(2 * stall_of(1000) / 50, abs=GRAIN)
    assert term(picked, "stall_ms", 1) == pytest.approx(3 * stall_of(1000) / 50, abs=GRAIN)


def test_a_worker_without_a_profile_has_the_stalls_of_the_others() -> None:
    fleet = fleet_of(worker(0), worker(1, prefill_ms=None, decode_ms=None))
    fleet.reserve(0, 1000, 50)
    fleet.reserve(1, 1000, 50)
    picked = pick(fleet)
    assert term(picked, "stall_ms", 1) == term(picked, "stall_ms", 0) > 0
    bare = fleet_of(*(worker(i, prefill_ms=None, decode_ms=None) for i in range(2)))
    bare.reserve(0, 1000, 50)
    assert term(pick(bare), "stall_ms", 0) == 0.0


def test_the_spread_is_a_compound_poisson_process_s() -> None:
    """Against a simulation of it: prompts of two lengths come at random over the request's passes."""
    rng = np.random.default_rng(5)
    passes, kinds = 200, ((0.02, 50.0), (0.005, 300.0))  # each with a chance in each pass, and what it takes
    drawn = sum(rng.poisson(rate * passes, 40_000) * stall for rate, stall in kinds) / passes
    squares = np.array([sum(rate * stall**2 for rate, stall in kinds)])
    assert spread_ms(squares, passes)[0] == pytest.approx(float(np.std(drawn)), rel=0.02)


# ---- whom it is for -----------------------------------------------------------------------------------


@given(TIMES, st.floats(0.01, 100.0))
def test_the_margin_is_where_one_more_keeps_as_many_promises_as_it_costs(above: float, spread: float) -> None:
    margin = float(margin_ms(np.array([above]), np.array([spread]))[0])
    z = margin / spread
    if above / spread <= normal(0) / density(0):
        assert margin == 0.0
    elif above / spread < 7000:
        assert normal(z) / density(z) == pytest.approx(above / spread, rel=0.02)
    else:
        assert 3.97 <= z <= 4.0 + 1e-9, "the table's end"


@given(st.lists(st.tuples(TIMES, st.floats(0.0, 50.0)), min_size=1, max_size=8), st.floats(0.0, 300.0))
@example([(10.0, 0.0), (400.0, 3.0)], 100.0)
def test_who_is_judged_beside_whom_changes_nothing(workers: list[tuple[float, float]], objective: float) -> None:
    """The short cut where nobody comes near the objective says what the whole sum says."""
    tpot, spread = (np.array(column) for column in zip(*workers, strict=True))
    floor = tpot * 0.5
    together = keeps(tpot, spread, floor, objective)
    margins = margin_ms(tpot - floor, spread)
    assert together.tolist() == (objective - tpot >= margins).tolist()


def test_where_stalls_are_unsure_more_is_left_below_the_objective() -> None:
    request = replace(REQUEST, ttft_ms=5000.0)
    calm, stormy = fleet_of(worker(0)), fleet_of(worker(0))
    for _ in range(20):
        calm.prefilled(calm.reserve(0, 300, 20))  # as much stall together as 4 long ones, evenly
    for _ in range(4):
        stormy.prefilled(stormy.reserve(0, 860, 20))
    sure, unsure = pick(calm, request), pick(stormy, request)
    assert term(unsure, "stall_ms", 0) == pytest.approx(term(sure, "stall_ms", 0), rel=0.25)
    assert term(unsure, "spread_ms", 0) > 1.5 * term(sure, "spread_ms", 0)


def test_a_cheap_worker_is_not_filled_until_its_stalls_break_the_objective() -> None:
    """By its passes alone the cheap one would be in time; with the prompts that its requests bring it is not."""
    cheap, dear = worker(0, price_per_hour=0.1), worker(1, price_per_hour=100.0)
    fleet = fleet_of(cheap, dear)
    request = replace(REQUEST, ttft_ms=5000.0, tpot_ms=30.0)
    assert pick(fleet, request).decode == 0
    for _ in range(5):
        fleet.prefilled(fleet.reserve(0, 600, 60))
    picked = pick(fleet, request)
    tpot, stall = term(picked, "tpot_ms", 0), term(picked, "stall_ms", 0)
    assert tpot - stall < 30.0 < tpot, "the case is what it says"
    assert (picked.decode, picked.reason) == (1, PickReason.LEAST_COST)
    assert picked.losers == ((0, math.inf),)


# ---- who is late anyway -------------------------------------------------------------------------------


def busy(loads: list[int], slow: list[bool], caches: bool = False) -> tuple:  # type: ignore[type-arg]
    fleet = fleet_of(
        *(worker(i, decode_ms=SLOW if slow[i] else DECODE) for i in range(len(loads))),
        held=[4 * i for i in range(len(loads))] if caches else None,
    )
    for slot, load in enumerate(loads):
        for _ in range(load):
            fleet.reserve(slot, 3000, 100)
    return fleet, replace(REQUEST, ttft_ms=150.0, tpot_ms=60.0)


def test_who_is_late_anyway_goes_where_nobody_has_anything_to_lose() -> None:
    fleet, request = busy([2, 3, 3], [False, True, False])
    picked = pick(fleet, request)
    assert (picked.decode, picked.reason) == (1, PickReason.LEAST_HARM)
    assert pick(fleet, replace(request, tpot_ms=None)).reason is PickReason.LEAST_VIOLATION
    assert pick(fleet, replace(request, tpot_ms=20.0)).reason is PickReason.LEAST_VIOLATION, "all of them are such"
    assert pick(fleet, replace(request, ttft_ms=5000.0)).reason is PickReason.LEAST_COST


def test_nobody_is_sent_past_his_deadline_to_spare_others() -> None:
    fleet, request = busy([2, 3, 3], [False, True, False])
    wait = term(pick(fleet, request), "ttft_ms", 1) / 1e3
    assert pick(fleet, replace(request, deadline=100.0 + 1.01 * wait), now=100.0).reason is PickReason.LEAST_HARM
    assert pick(fleet, replace(request, deadline=100.0 + 0.99 * wait), now=100.0).reason is PickReason.LEAST_VIOLATION


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=10), st.booleans(), st.floats(20, 4000)
)
def test_to_spare_others_nobody_waits_more_than_twice_the_mean(
    workers: list[tuple[int, bool]], caches: bool, ttft: float
) -> None:
    fleet, request = busy([load for load, _ in workers], [slow for _, slow in workers], caches)
    request = replace(request, ttft_ms=ttft, block_hashes=HASHES if caches else ())
    picked = pick(fleet, request)
    assume(picked.reason is PickReason.LEAST_HARM)
    waits = dict(picked.terms)["ttft_ms"]
    assert picked.predicted_ttft_ms is not None
    assert picked.predicted_ttft_ms <= 2 * waits.mean()
    assert workers[picked.decode][1], "a worker that could keep the objective was given somebody it cannot"
    tpot = dict(picked.terms)["tpot_ms"]
    assert ((waits > ttft) | (tpot + dict(picked.terms)["spread_ms"] * 4 > 60.0)).all(), "somebody was in time"
