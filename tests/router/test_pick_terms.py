"""The sums behind a pick, one by one and by hand: memory, lateness, what is typical, splits, ties, lots."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.fleet import Fleet, Pick, PickReason, Rejection, Request, Role, Worker
from penstock.router.decisions import SplitLimits, find_policy
from penstock.router.decisions.loads import MAX_SAMPLE_AGE, outstanding_tokens, predicted_ttft_ms
from penstock.router.decisions.policies_common import in_turn, lowest, no_candidate, smallest
from penstock.router.decisions.policies_hash import _mix, drawn, mixed
from penstock.router.decisions.predict import lateness, side_of
from penstock.router.decisions.split import SplitReason, least_loaded_prefill, pick_pair, split_or_not
from picks_stage import DECODE, HASHES, PREFILL, REQUEST, fleet_of, pick, term, worker

GAMMA = 0x9E3779B97F4A7C15


def exactly(value: float) -> object:
    """The value but for rounding: a constant that is off by one in a million is seen."""
    return pytest.approx(value, rel=1e-12)


# ---- lots -------------------------------------------------------------------------------------------


def test_lots_come_from_splitmix64() -> None:
    # The first outputs of the published generator from the seed 1234567.
    assert _mix(1234567) == 6457827717110365317
    states = np.array([1234567 + GAMMA, (1234567 + 2 * GAMMA) % 2**64], dtype=np.uint64)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973]


def test_lots_lie_in_the_unit_interval_and_fill_it() -> None:
    fleet = fleet_of(*(worker(number) for number in range(64)))
    lots = np.concatenate([drawn(fleet.view(), np.arange(64), key) for key in range(64)])
    assert (lots >= 0).all() and (lots <= 1).all()
    assert abs(lots.mean() - 0.5) < 0.02 and lots.min() < 0.01 and lots.max() > 0.99
    same = drawn(fleet.view(), np.arange(64), -1)
    assert (same == drawn(fleet.view(), np.arange(64), 2**64 - 1)).all(), "keys are 64 bits"


def test_an_overloaded_owner_stands_one_whole_place_behind() -> None:
    fleet = fleet_of(*(worker(number) for number in range(4)))
    request = Request("r", "m", 100, 1, block_hashes=HASHES[:3])
    first = pick(fleet, request, "PrefixAffinity")
    lots = first.scores.copy()
    for _ in range(3):
        fleet.reserve(first.decode, 100, 1)
    again = pick(fleet, request, "PrefixAffinity")
    behind = np.where(np.arange(4) == first.decode, 1.0, 0.0)
    assert (again.scores == lots + behind).all() and again.decode != first.decode


# ---- KV memory --------------------------------------------------------------------------------------


def waits(capacity: float, prompt: int, longest: int, requests: int) -> tuple[float, float]:
    """(queue, tpot) of REQUEST at a worker whose `requests` have run their prompts, as the page's formulas say."""
    output = min(longest, 256)
    held = (prompt + output / 2) * requests
    wanted = held + REQUEST.prompt_tokens
    share = min(capacity / wanted, 1.0)
    running = (requests + 1) * share
    context = ((prompt + longest // 2) * requests + REQUEST.prompt_tokens) * share
    decode = DECODE[0] + DECODE[1] * running + DECODE[2] * context
    prefill = PREFILL[0] + (PREFILL[1] + PREFILL[2] * prompt) * prompt
    stall = requests * (prefill - DECODE[0]) / output * share  # who is not admitted is followed by nobody
    return max(wanted / capacity - 1.0, 0.0) * (output * decode + running * prefill), decode + stall


@pytest.mark.parametrize("longest", [100, 1000])
def test_the_wait_for_memory_is_what_the_page_says(longest: int) -> None:
    fleet = fleet_of(worker(0, kv_capacity_tokens=4096), worker(1, kv_capacity_tokens=8192), worker(2))
    for slot in range(3):
        for _ in range(4):
            fleet.prefilled(fleet.reserve(slot, 1000, longest))
    picked = pick(fleet)
    # Of whom the capacity is not known, the mean of the others' is taken.
    for slot, capacity in enumerate((4096, 8192, 6144)):
        queue, tpot = waits(capacity, 1000, longest, 4)
        assert term(picked, "queue_ms", slot) == exactly(queue)
        assert term(picked, "tpot_ms", slot) == exactly(tpot)
    assert term(picked, "queue_ms", 0) > term(picked, "queue_ms", 2) >= 0


def test_strangers_take_memory_too() -> None:
    fleet = fleet_of(worker(0, kv_capacity_tokens=2500), worker(1, kv_capacity_tokens=2500))
    fleet.release(fleet.reserve(0, 900, 100))  # an average request is 1,000 tokens
    fleet.sample(0, 2.0, 0.9, at=0.0)
    fleet.sample(1, 0.0, 0.1, at=0.0)
    picked = pick(fleet)
    assert term(picked, "queue_ms", 1) == 0.0
    wanted = 2 * 1000 + 1024
    share = 2500 / wanted
    tpot = DECODE[0] + DECODE[1] * 3 * share + DECODE[2] * 1024 * share
    assert term(picked, "tpot_ms", 0) == exactly(tpot)
    # Nothing is known of a stranger's prompt but its size; none of ours is there to take the length from.
    assert term(picked, "queue_ms", 0) == exactly((wanted / 2500 - 1) * 3 * share * PREFILL[0])


# ---- what is typical, what is late ------------------------------------------------------------------


def test_without_profiles_a_typical_one_compares() -> None:
    bare: dict[str, object] = {"prefill_ms": None, "decode_ms": None, "price_per_hour": None, "transfer_ms": None}
    fleet = fleet_of(worker(0, **bare), worker(1, **bare))
    picked = pick(fleet)
    assert picked.unit == "ms" and picked.predicted_ttft_ms is None and picked.predicted_tpot_ms is None
    assert term(picked, "ttft_ms", 0) == exactly(10 + 0.1 * 1024)
    assert term(picked, "tpot_ms", 0) == exactly(15 + 0.1 + 1e-4 * 1024)
    own, added = 10 + 0.1 * 1024, 100 * (0.1 + 1e-4 * (1024 + 50))
    assert term(picked, "cost_ms", 0) == exactly(own + added + own)


def test_a_transfer_without_a_known_link_is_typical() -> None:
    fleet = fleet_of(worker(0, Role.PREFILL), worker(1, Role.DECODE, transfer_ms=None))
    assert term(pick(fleet), "transfer_ms", 1) == exactly(0.01 * 1024)


def test_money_is_per_hour() -> None:
    fleet = fleet_of(worker(0, price_per_hour=3_600_000.0), worker(1, price_per_hour=3_600_000.0))
    picked = pick(fleet)
    own = term(picked, "prefill_ms", 0)
    assert term(picked, "cost_usd", 0) == exactly(2 * own + 100 * (0.5 + 1e-3 * (1024 + 50)))


@pytest.mark.parametrize(
    ("ttft", "tpot", "late"),
    [
        (None, None, None),
        (100.0, None, [0.0, 50.0]),
        (None, 20.0, [0.0, 10.0 * 100]),
        (100.0, 20.0, [0.0, 50.0 + 10.0 * 100]),
    ],
)
def test_lateness_is_of_the_whole_answer(ttft: float | None, tpot: float | None, late: list[float] | None) -> None:
    request = Request("r", "m", 10, 100, ttft_ms=ttft, tpot_ms=tpot)
    found = lateness(np.array([90.0, 150.0]), np.array([15.0, 30.0]), request)
    assert found is None if late is None else found is not None and found.tolist() == late
    if tpot is not None:
        long = lateness(np.array([0.0]), np.array([30.0]), Request("r", "m", 10, 10_000, tpot_ms=tpot))
        assert long is not None and long.tolist() == [10.0 * 256], "a maximum is not taken for the length"


def test_sides_are_remembered_while_nobody_is_full() -> None:
    fleet = fleet_of(worker(0), worker(1), max_in_flight=2)
    view = fleet.view()
    assert side_of(view, "m", Role.PREFILL_DECODE) is side_of(view, "m", Role.PREFILL_DECODE)
    for _ in range(2):
        fleet.reserve(0, 1, 1)
    some = side_of(view, "m", Role.PREFILL_DECODE)
    assert some is not None and some.slots.tolist() == [1]
    assert side_of(view, "m", Role.DECODE) is None


# ---- pairs ------------------------------------------------------------------------------------------


def test_a_pair_waits_for_the_later_of_transfer_and_memory() -> None:
    fleet = fleet_of(worker(0, Role.PREFILL), worker(1, Role.DECODE, kv_capacity_tokens=4096))
    for _ in range(4):
        fleet.prefilled(fleet.reserve(1, 1000, 100))
    picked = pick(fleet)
    assert picked.prefill == 0
    wait, tpot = waits(4096, 1000, 100, 4)
    arrived = 10 + 0.1 * 1024 + 1e-5 * 1024**2 + 0.01 * 1024
    assert wait > arrived
    assert term(picked, "ttft_ms", 1) == exactly(wait + tpot)
    idle = fleet_of(worker(0, Role.PREFILL), worker(1, Role.DECODE, kv_capacity_tokens=1025))
    free = pick(idle)
    assert term(free, "ttft_ms", 1) == exactly(arrived + 20 + 0.5 + 1e-3 * 1024)


def test_who_runs_a_prompt_alone_waits_for_no_transfer() -> None:
    fleet = fleet_of(worker(0, Role.PREFILL), worker(1, Role.DECODE), worker(2, Role.PREFILL_DECODE))
    picked = pick(fleet)
    assert term(picked, "transfer_ms", 1) == exactly(0.01 * 1024)
    assert term(picked, "transfer_ms", 2) == 0.0


def test_where_all_prefill_workers_are_crowded_the_soonest_is_taken() -> None:
    fleet = fleet_of(worker(0, Role.PREFILL), worker(1, Role.PREFILL), worker(2, Role.DECODE), held=[64, 64])
    for _ in range(3):
        fleet.reserve(0, 500, 1)
        fleet.reserve(1, 100, 1)
    assert pick(fleet).prefill == 1


@pytest.mark.parametrize(
    ("tokens", "prefill", "decode", "reason"),
    [
        (255, 0.0, 0.0, SplitReason.SHORT_PROMPT),
        (256, 0.0, 0.0, SplitReason.SPLIT),
        (256, 65_636.0, 100.0, SplitReason.SPLIT),
        (256, 65_637.0, 100.0, SplitReason.PREFILL_BUSY),
    ],
)
def test_bounds_of_a_split(tokens: int, prefill: float, decode: float, reason: SplitReason) -> None:
    assert split_or_not(tokens, prefill, decode, SplitLimits()) is reason


def test_half_the_lease_is_left_for_the_decode_workers_queue() -> None:
    assert SplitLimits(lease=30.0).usable_lease == 15.0


def test_pairs_for_policies_without_roles() -> None:
    fleet = fleet_of(
        worker(0, Role.PREFILL, domain="a"), worker(1, Role.DECODE, domain="a"), worker(2, Role.DECODE, domain="b")
    )
    answer = pick_pair(REQUEST, fleet.view(), 0.0)
    assert isinstance(answer, Pick)
    assert (answer.decode, answer.prefill, answer.reason) == (1, 0, PickReason.LEAST_OUTSTANDING)
    fleet.withdraw(2)
    alone = pick_pair(REQUEST, fleet.view(), 0.0)
    assert isinstance(alone, Pick) and alone.reason is PickReason.ONLY_CANDIDATE
    fleet.withdraw(0)
    assert least_loaded_prefill(REQUEST, fleet.view(), 1, 0.0) is None
    unpaired = pick_pair(REQUEST, fleet.view(), 0.0)
    assert isinstance(unpaired, Pick) and unpaired.prefill is None
    assert unpaired.predicted_ttft_ms == exactly(10 + 0.1 * 1024 + 1e-5 * 1024**2)


def test_refusals_say_when_to_ask_again() -> None:
    fleet = fleet_of(worker(0, Role.DECODE), max_in_flight=1)
    fleet.reserve(0, 1, 1)
    for busy in (pick_pair(REQUEST, fleet.view(), 0.0), no_candidate(REQUEST, fleet.view())):
        assert isinstance(busy, Rejection) and busy.retry_after == 1.0 and "all 1 ready" in busy.message
    fleet.set_ready(0, False)
    for nobody in (pick_pair(REQUEST, fleet.view(), 0.0), no_candidate(REQUEST, fleet.view())):
        assert isinstance(nobody, Rejection) and nobody.retry_after == 5.0
    assert "0 ready of 1" in no_candidate(REQUEST, fleet.view()).message


# ---- ties and loads ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 2**40))
def test_the_smallest_are_all_of_them_however_many(values: list[int], seed: int) -> None:
    array = np.array(values)
    best = [place for place, value in enumerate(values) if value == min(values)]
    assert [int(place) for place in smallest(array)] == best
    assert lowest(array, seed) == best[seed % len(best)]


def test_equals_take_turns_and_are_said_to_be_equal() -> None:
    fleet = fleet_of(worker(0), worker(1), worker(2))
    slots = np.arange(3)
    fleet.release(fleet.reserve(0, 1, 1))
    assert in_turn(np.array([1.0, 1.0, 2.0]), slots, fleet.view(), 0) == (1, False)
    assert in_turn(np.array([1.0, 0.5, 2.0]), slots, fleet.view(), 0) == (1, True)
    fleet.reserve(1, 5, 5)
    for name in ("LeastLoaded", "PowerOfTwo"):
        few = fleet_of(worker(0), worker(1))
        assert pick(few, policy=name).reason is PickReason.LEAST_RECENTLY_PICKED
        few.reserve(0, 10, 10)
        chosen = pick(few, policy=name)
        assert (chosen.decode, chosen.reason) == (1, PickReason.LEAST_OUTSTANDING)


def test_two_of_two_are_both_looked_at() -> None:
    fleet = fleet_of(worker(0), worker(1))
    assert np.isfinite(pick(fleet, policy="PowerOfTwo").scores).all()
    three = fleet_of(worker(0), worker(1), worker(2))
    assert np.isfinite(pick(three, policy="PowerOfTwo").scores).sum() == 2


@pytest.mark.parametrize(("age", "counts"), [(30.0, True), (30.5, False)])
def test_a_sample_counts_for_half_a_minute(age: float, counts: bool) -> None:
    assert MAX_SAMPLE_AGE == 30.0
    fleet = fleet_of(worker(0), worker(1))
    fleet.release(fleet.reserve(0, 60, 40))
    fleet.sample(0, 3.0, 0.5, at=100.0)
    loads = outstanding_tokens(fleet.view(), np.arange(2), 100.0 + age)
    assert loads.tolist() == ([300.0, 300.0] if counts else [0, 0]), "who said nothing is given the mean"


def test_the_first_token_of_a_prompt_alone() -> None:
    fleet = fleet_of(worker(0), worker(1, prefill_ms=None))
    assert predicted_ttft_ms(fleet.view(), 0, 1000) == exactly(10 + 100 + 10)
    assert predicted_ttft_ms(fleet.view(), 1, 1000) is None
    assert predicted_ttft_ms(Fleet().view(), 0, 1000) is None


def test_a_rejection_of_an_unknown_model_knows_no_workers() -> None:
    fleet = fleet_of(Worker("w", "h", 1, "other"))
    answer = find_policy("KVAware").pick(REQUEST, fleet.view(), 0.0, 0)
    assert isinstance(answer, Rejection) and "(0 ready of 0)" in answer.message and math.isclose(answer.retry_after, 5)
