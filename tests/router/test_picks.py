"""KVAware: what must hold for any fleet, and sums done by hand."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from penstock.core.fleet import (
    TYPICAL_OUTPUT,
    Failure,
    PickReason,
    Rejection,
    RejectReason,
    Role,
)
from penstock.router.decisions import (
    POLICIES,
    Action,
    Answered,
    Attempt,
    Ended,
    Event,
    Failed,
    Life,
    PassOn,
    Prefill,
    Prefilled,
    Resumed,
    RetryLimits,
    SplitLimits,
    find_policy,
    live,
)
from penstock.router.decisions.kv_aware import LOCAL_TOKENS
from picks_stage import BLOCK, HASHES, REQUEST, SEEDS, Held, fleet_of, pick, serve, term, worker

# ---- sums by hand ---------------------------------------------------------------------------------


def test_every_term_is_the_sum_the_page_says() -> None:
    fleet = fleet_of(worker(0), worker(1, price_per_hour=7.2), held=[32, 0])
    running = fleet.reserve(0, 300, 40)
    fleet.prefilled(running)
    fleet.reserve(0, 500, 60, 96)  # still to be prefilled
    picked = pick(fleet)
    queue = 10 + 0.1 * (500 - 96) + 1e-5 * (500**2 - 96**2)
    own = 10 + 0.1 * (1024 - 512) + 1e-5 * (1024**2 - 512**2)
    stalls = {40: 10 + 0.1 * 300 + 1e-5 * 300**2 - 20, 60: 10 + 0.1 * 404 + 1e-5 * (500**2 - 96**2) - 20}
    stall = sum(each / output for output, each in stalls.items())
    tpot = 20 + 0.5 * 3 + 1e-3 * (300 + 20 + 500 + 30 + 1024) + stall
    added = 100 * (0.5 + 1e-3 * (1024 + 50))
    cost = (own + added + queue + own + 1 * (own + added)) * 3.6 / 3.6e6
    expected = {
        "hit_tokens": 512,
        "queue_ms": queue,
        "prefill_ms": own,
        "ttft_ms": queue + own,
        "tpot_ms": tpot,
        "stall_ms": stall,
        "spread_ms": math.sqrt(sum(each**2 / output for output, each in stalls.items()) / 100),
        "cost_usd": cost,
    }
    assert {name: term(picked, name, 0) for name in expected} == pytest.approx(expected, abs=1e-5)
    idle = 10 + 0.1 * 1024 + 1e-5 * 1024**2
    assert term(picked, "queue_ms", 1) == 0 and term(picked, "ttft_ms", 1) == pytest.approx(idle)
    assert term(picked, "cost_usd", 1) == pytest.approx((idle + added + idle) * 7.2 / 3.6e6)
    assert picked.unit == "usd" and picked.reason is PickReason.LEAST_COST
    assert picked.decode == 0 and picked.expected_hit_tokens == 512 and picked.prefill is None
    assert picked.predicted_ttft_ms == pytest.approx(queue + own) and picked.predicted_tpot_ms == pytest.approx(tpot)
    assert picked.score == pytest.approx(cost) and picked.runner_up == 1


def test_a_short_prefill_still_reads_the_weights_once() -> None:
    fleet = fleet_of(worker(0), worker(1), held=[63, 0])
    assert term(pick(fleet, replace(REQUEST, prompt_tokens=1009)), "prefill_ms", 0) == 20.0


@pytest.mark.parametrize("seed", range(8))
def test_a_short_prefix_stays_where_it_is_cached_though_no_time_is_saved(seed: int) -> None:
    short = replace(REQUEST, prompt_tokens=34, block_hashes=HASHES[:2])
    fleet = fleet_of(*(worker(i) for i in range(4)), held=(0, 0, 2, 0))
    picked = pick(fleet, short, seed=seed)
    assert term(picked, "prefill_ms", 0) == term(picked, "prefill_ms", 2)
    assert (picked.decode, picked.expected_hit_tokens) == (2, 32)


def test_experts_lengthen_a_token() -> None:
    fleet = fleet_of(worker(0, experts_ms=(8.0, 0.25)))
    fleet.reserve(0, 10, 10)
    plain = 20 + 0.5 * 2 + 1e-3 * (15 + 1024)
    assert term(pick(fleet), "tpot_ms", 0) == pytest.approx(plain + 8.0 * (1 - 0.75**2))


def test_strangers_count_in_the_batch() -> None:
    fleet = fleet_of(worker(0), worker(1))
    fleet.sample(0, 6.0, 0.5, at=0.0)
    fleet.sample(1, 0.0, 0.5, at=0.0)
    picked = pick(fleet)
    assert picked.decode == 1
    assert term(picked, "tpot_ms", 0) - term(picked, "tpot_ms", 1) == pytest.approx(6 * 0.5)
    own, added = 10 + 0.1 * 1024 + 1e-5 * 1024**2, 100 * (0.5 + 1e-3 * 1074)
    assert term(picked, "cost_usd", 0) - term(picked, "cost_usd", 1) == pytest.approx(6 * (own + added) / 1e6)
    stale = pick(fleet, now=1000.0)
    assert term(stale, "tpot_ms", 0) == term(stale, "tpot_ms", 1), "a sample of long ago says nothing"


def test_a_huge_maximum_is_not_taken_for_the_length() -> None:
    fleet = fleet_of(worker(0), worker(1))
    assert pick(fleet, replace(REQUEST, max_tokens=100_000)).score == pytest.approx(
        pick(fleet, replace(REQUEST, max_tokens=TYPICAL_OUTPUT)).score
    )


# ---- objectives -------------------------------------------------------------------------------------


def test_the_cheapest_that_meets_the_objective_wins_over_the_fastest() -> None:
    slow = worker(0, prefill_ms=(10.0, 0.3, 0.0), price_per_hour=1.0)
    fleet = fleet_of(slow, worker(1, price_per_hour=30.0))
    assert pick(fleet, replace(REQUEST, ttft_ms=400.0)).decode == 0
    late = pick(fleet, replace(REQUEST, ttft_ms=200.0))
    assert late.decode == 1 and late.reason is PickReason.LEAST_COST and late.losers == ((0, math.inf),)


def test_the_time_per_token_is_an_objective_too() -> None:
    fleet = fleet_of(worker(0, price_per_hour=1.0, decode_ms=(50.0, 0.5, 1e-3)), worker(1, price_per_hour=30.0))
    assert pick(fleet, replace(REQUEST, ttft_ms=1000.0, tpot_ms=60.0)).decode == 0
    assert pick(fleet, replace(REQUEST, ttft_ms=1000.0, tpot_ms=40.0)).decode == 1


def test_when_nobody_meets_them_cost_decides() -> None:
    fleet = fleet_of(worker(0), worker(1))
    for slot, tokens in ((0, 3000), (1, 2000)):
        fleet.reserve(slot, tokens, 1)
    picked = pick(fleet, replace(REQUEST, ttft_ms=100.0, tpot_ms=10.0))
    assert picked.decode == 1 and picked.reason is PickReason.LEAST_VIOLATION
    assert picked.score == pytest.approx(term(picked, "cost_usd", 1))
    assert picked.unit == "usd"


def test_what_cannot_be_predicted_is_not_held_against_a_worker() -> None:
    fleet = fleet_of(worker(0), worker(1, prefill_ms=None, decode_ms=None))
    request = replace(REQUEST, ttft_ms=1.0)
    picked = pick(fleet, request)
    assert picked.decode == 1 and picked.predicted_ttft_ms is None and picked.predicted_tpot_ms is None
    assert term(picked, "ttft_ms", 0) == term(picked, "ttft_ms", 1), "the unknown one counts as the mean of the known"


# ---- missing data -------------------------------------------------------------------------------------


def test_unknown_hits_are_said_and_not_taken_for_zero() -> None:
    assert pick(fleet_of(worker(0), worker(1))).expected_hit_tokens is None
    assert pick(fleet_of(worker(0), worker(1), held=[])).expected_hit_tokens == 0
    unknown = pick(fleet_of(worker(0), worker(1)))
    assert all(math.isnan(v) for v in dict(unknown.terms)["hit_tokens"])


def test_without_any_profile_or_price_the_queue_still_decides() -> None:
    bare = {"prefill_ms": None, "decode_ms": None, "price_per_hour": None, "transfer_ms": None}
    fleet = fleet_of(worker(0, **bare), worker(1, **bare))
    fleet.reserve(0, 10, 10)
    picked = pick(fleet)
    assert picked.decode == 1 and picked.unit == "ms" and picked.predicted_ttft_ms is None
    assert "cost_ms" in dict(picked.terms)


# ---- properties ----------------------------------------------------------------------------------------

BLOCKS = st.lists(st.integers(0, 64), min_size=1, max_size=12)
LOADS = st.lists(st.integers(0, 4), min_size=1, max_size=12)
OBJECTIVE = st.one_of(st.none(), st.floats(1.0, 3000.0))


@given(BLOCKS, LOADS, st.integers(0, 64), OBJECTIVE, SEEDS)
@settings(max_examples=150)
def test_more_cached_is_never_worse(
    held: list[int], loads: list[int], more: int, ttft: float | None, seed: int
) -> None:
    """Who is picked stays picked when it has cached more, and is expected to be as fast or faster."""
    fleet = fleet_of(*map(worker, range(len(held))), held=held)
    for slot, load in zip(range(len(held)), loads, strict=False):
        for _ in range(load):
            fleet.reserve(slot, 200, 20)
    request = replace(REQUEST, ttft_ms=ttft)
    before = pick(fleet, request, seed=seed)
    assume(any(held))  # the first hit of all also brings the bound on affinity into force
    better = list(held)
    better[before.decode] = min(64, better[before.decode] + more)
    fleet.index_by("m", Held(better), BLOCK)
    after = pick(fleet, request, seed=seed)
    assert after.decode == before.decode
    assert before.predicted_ttft_ms is not None and after.predicted_ttft_ms is not None
    assert after.predicted_ttft_ms <= before.predicted_ttft_ms


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), SEEDS)
def test_without_prefixes_equal_workers_share_as_by_load(loads: list[int], seed: int) -> None:
    """KVAware is LeastLoaded where requests, workers and caches are equal."""
    fleet = fleet_of(*map(worker, range(len(loads))))
    for slot, load in enumerate(loads):
        for _ in range(load):
            fleet.reserve(slot, 100, 20)
    assert loads[pick(fleet, seed=seed).decode] == min(loads)
    assert pick(fleet, seed=seed).decode == pick(fleet, policy="LeastLoaded", seed=seed).decode


@given(st.integers(2, 64), st.integers(0, 64), st.booleans(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_crowd_of_equals_spreads(workers: int, held: int, learns: bool, seed: int) -> None:
    """64 equal requests at once: nobody gets more than 2/n of them, even where one has the whole prompt cached."""
    fleet = fleet_of(*map(worker, range(workers)))
    index = Held([held])
    fleet.index_by("m", index, BLOCK)
    counts = [0] * workers
    for i in range(64):
        picked = pick(fleet, seed=seed + i)
        serve(fleet, picked)
        counts[picked.decode] += 1
        if learns:
            index.blocks[picked.decode] = 64  # as if remembered at once
    assert max(counts) <= 2 * 64 / workers


@given(st.integers(1, 6), st.integers(1, 6), st.data())
@settings(max_examples=80)
def test_pairs_stay_in_one_domain_and_are_its_best(prefills: int, decodes: int, data: st.DataObject) -> None:
    domains = st.sampled_from(["a", "b"])
    workers = [worker(i, Role.PREFILL, domain=data.draw(domains)) for i in range(prefills)]
    workers += [worker(prefills + i, Role.DECODE, domain=data.draw(domains)) for i in range(decodes)]
    fleet = fleet_of(*workers)
    for slot in range(len(workers)):
        for _ in range(data.draw(st.integers(0, 3))):
            fleet.reserve(slot, 700, 50, 0 if slot < prefills else 700)
    for policy in POLICIES:
        picked = pick(fleet, policy=policy)
        mates = [s for s in range(prefills) if workers[s].domain == workers[picked.decode].domain]
        assert workers[picked.decode].role is Role.DECODE
        assert (picked.prefill is None) == (not mates)
        if picked.prefill is None:
            continue
        assert picked.prefill in mates
        if policy in ("KVAware", "LeastLoaded"):
            assert fleet.in_flight[picked.prefill] == min(fleet.in_flight[mates])


def test_a_pair_is_the_sum_of_its_halves_and_the_way_between() -> None:
    fleet = fleet_of(worker(0, Role.PREFILL), worker(1, Role.DECODE), held=[16, 8])
    picked = pick(fleet)
    own = 10 + 0.1 * (1024 - 256) + 1e-5 * (1024**2 - 256**2)
    transfer = 0.01 * (1024 - 128)
    tpot = 20 + 0.5 + 1e-3 * 1024
    added = 100 * (0.5 + 1e-3 * 1074)
    assert (picked.prefill, picked.decode, picked.expected_hit_tokens) == (0, 1, 256)
    assert picked.predicted_ttft_ms == pytest.approx(own + transfer + tpot)
    assert term(picked, "transfer_ms", 1) == pytest.approx(transfer)
    assert term(picked, "cost_usd", 1) == pytest.approx((2 * own + added + transfer + tpot) / 1e6)
    assert picked.prefills is not None and picked.prefills.scores.tolist() == pytest.approx([2 * own / 1e6])


def test_a_short_rest_stays_with_the_decode_worker_a_long_one_does_not() -> None:
    fleet = fleet_of(worker(0, Role.PREFILL), worker(1, Role.DECODE), held=[0, 60])
    assert 1024 - 60 * BLOCK < LOCAL_TOKENS
    alone = pick(fleet)
    assert alone.prefill is None and alone.expected_hit_tokens == 960
    fleet.index_by("m", Held([0, 8]), BLOCK)
    assert pick(fleet).prefill == 0
    fleet.index_by("m", Held([0, 60]), BLOCK)
    for _ in range(20):  # many stalls cost more than the way to the other worker
        fleet.prefilled(fleet.reserve(1, 100, 100))
    fleet.index_by("m", Held([60, 60]), BLOCK)
    assert pick(fleet).prefill == 0


def test_prefill_goes_to_the_worker_with_the_prefix_until_its_queue_is_longer() -> None:
    fleet = fleet_of(*[worker(i, Role.PREFILL) for i in range(4)], worker(4, Role.DECODE), held=[0, 0, 48])
    assert pick(fleet).prefill == 2
    fleet.reserve(2, 8000, 1)
    assert pick(fleet).prefill != 2


def test_no_pair_without_a_decode_worker() -> None:
    answer = find_policy("KVAware").pick(REQUEST, fleet_of(worker(0, Role.PREFILL)).view(), 0.0, 0)
    assert isinstance(answer, Rejection) and answer.reason is RejectReason.NO_WORKERS


def test_full_workers_are_passed_over_on_both_sides() -> None:
    workers = [worker(0, Role.PREFILL), worker(1, Role.PREFILL), worker(2, Role.DECODE), worker(3, Role.DECODE)]
    fleet = fleet_of(*workers, held=[60, 0, 60, 0], max_in_flight=1)
    fleet.reserve(0, 1, 1)
    fleet.reserve(2, 1, 1)
    picked = pick(fleet)
    assert (picked.prefill, picked.decode) == (1, 3) and picked.candidates.tolist() == [3]


# ---- in the life of a request ------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
def test_what_does_not_stream_is_prefilled_when_predicted_what_streams_when_told(streams: bool) -> None:
    fleet = fleet_of(worker(0))
    request = replace(REQUEST, streams=streams)
    life = live(request, fleet, find_policy("KVAware"), RetryLimits(), 10.0, 0)
    attempt = next(life)
    assert isinstance(attempt, Attempt) and attempt.pick.predicted_ttft_ms is not None
    fleet.retry_due(10.0 + attempt.pick.predicted_ttft_ms / 1e3 - 0.001)
    assert fleet.pending[0, 0] == 1
    fleet.retry_due(10.0 + attempt.pick.predicted_ttft_ms / 1e3 + 0.001)
    assert fleet.pending[0, 0] == (1 if streams else 0)
    life.close()
    assert fleet.pending[0, 0] == 0 and fleet.reservations == 0


def test_two_thousand_lives_with_broken_connections_leave_nothing_behind() -> None:
    """1 % break before or after the first byte or lose their client; the others end well."""
    rng = np.random.default_rng(7)
    fleet = fleet_of(*[worker(i, (Role.PREFILL, Role.DECODE)[i % 2], domain="d") for i in range(8)], held=[8] * 8)
    policy, now = find_policy("KVAware"), 0.0
    open_lives: list[tuple[Life, Action]] = []
    for number in range(2000):
        life = live(replace(REQUEST, id=str(number)), fleet, policy, RetryLimits(), now, number, SplitLimits())
        open_lives.append((life, next(life)))
        while open_lives and (len(open_lives) > 40 or number == 1999):
            life, action = open_lives.pop(int(rng.integers(len(open_lives))))
            now += 0.01
            luck = rng.random()
            if luck < 0.005:
                life.close()
                continue
            event: Event
            if isinstance(action, Attempt | Prefill) and luck < 0.01:
                event = Failed(now, Failure.RESET)
            elif isinstance(action, Prefill):
                event = Prefilled(now, 200, b"{}")
            elif isinstance(action, Attempt):
                event = Answered(now, 200)
            elif isinstance(action, PassOn):
                event = Failed(now, Failure.RESET) if luck < 0.01 else Ended(now)
            else:
                event = Resumed(now)
            try:
                open_lives.append((life, life.send(event)))
            except StopIteration:
                pass
    assert fleet.reservations == 0
    assert not fleet.in_flight.any() and not fleet.pending.any() and not fleet.context_tokens.any()
    assert not fleet.outstanding_tokens.any() and not fleet.stalls.any()


# ---- KV memory --------------------------------------------------------------------------------------


def test_a_full_cache_is_waited_for_even_when_its_prompts_are_computed() -> None:
    fleet = fleet_of(worker(0, kv_capacity_tokens=4096), worker(1, kv_capacity_tokens=100_000))
    for slot in (0, 1):
        for _ in range(4):
            fleet.prefilled(fleet.reserve(slot, 1000, 100))
    picked = pick(fleet, REQUEST)
    assert picked.decode == 1 and term(picked, "queue_ms", 1) == 0.0
    assert term(picked, "queue_ms", 0) > 0.0
    assert term(picked, "tpot_ms", 0) < term(picked, "tpot_ms", 1)  # fewer run at once there


def test_an_unknown_capacity_is_not_a_full_one() -> None:
    fleet = fleet_of(worker(0), worker(1))
    fleet.prefilled(fleet.reserve(0, 1_000_000, 100))
    assert term(pick(fleet, REQUEST), "queue_ms", 0) == 0.0
