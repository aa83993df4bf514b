"""PrefixAffinity, PowerOfTwo, Random: what must hold for any fleet."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from penstock.core.fleet import (
    PickReason,
    Request,
)
from penstock.router.decisions.policies_hash import drawn
from picks_stage import HASHES, REQUEST, SEEDS, fleet_of, pick, worker


def prompts(count: int) -> list[Request]:
    return [replace(REQUEST, id=str(i), block_hashes=((i * 7919).to_bytes(32, "big"), b"x")) for i in range(count)]


def first_block_only(request: Request) -> Request:
    return replace(request, block_hashes=request.block_hashes[:1])


def test_prefix_affinity_keeps_a_prefix_at_one_worker_and_spreads_prefixes() -> None:
    fleet = fleet_of(*map(worker, range(8)))
    owners = [pick(fleet, first_block_only(r), "PrefixAffinity", seed=i).decode for i, r in enumerate(prompts(400))]
    again = [pick(fleet, first_block_only(r), "PrefixAffinity", seed=7).decode for r in prompts(400)]
    assert owners == again
    assert all(20 < owners.count(slot) < 90 for slot in range(8))


def test_prefix_affinity_looks_at_the_first_sixteen_blocks() -> None:
    fleet = fleet_of(*map(worker, range(8)))
    same = [replace(REQUEST, block_hashes=(*HASHES[:16], bytes([i]) * 32)) for i in range(50)]
    assert len({pick(fleet, r, "PrefixAffinity").decode for r in same}) == 1
    other = [replace(REQUEST, block_hashes=(*HASHES[:15], bytes([i]) * 32)) for i in range(50)]
    assert len({pick(fleet, r, "PrefixAffinity").decode for r in other}) > 3


def test_only_the_keys_of_a_lost_worker_move() -> None:
    fleet = fleet_of(*map(worker, range(6)))
    requests = [first_block_only(r) for r in prompts(200)]
    before = [pick(fleet, r, "PrefixAffinity").decode for r in requests]
    fleet.withdraw(3)
    after = [pick(fleet, r, "PrefixAffinity").decode for r in requests]
    assert all(a == b for a, b in zip(after, before, strict=True) if b != 3) and 3 not in after


@given(st.integers(2, 12), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_an_owner_never_has_more_than_its_bound(workers: int, requests: int) -> None:
    fleet = fleet_of(*map(worker, range(workers)))
    for _ in range(requests):
        fleet.reserve(pick(fleet, policy="PrefixAffinity").decode, 10, 10)
    assert fleet.in_flight.max() <= math.ceil(1.25 * requests / workers)
    if requests > 2 * workers and workers > 1:
        assert (fleet.in_flight[:workers] > 0).sum() > 1


def test_an_overloaded_owner_is_said() -> None:
    fleet = fleet_of(*map(worker, range(4)))
    first = pick(fleet, policy="PrefixAffinity")
    assert first.reason is PickReason.PREFIX_OWNER
    for _ in range(3):
        fleet.reserve(first.decode, 10, 10)
    second = pick(fleet, policy="PrefixAffinity")
    assert second.decode != first.decode and second.reason is PickReason.OWNER_BUSY


def test_prefix_affinity_without_hashes_goes_by_load() -> None:
    fleet = fleet_of(*map(worker, range(3)))
    fleet.reserve(0, 10, 10)
    fleet.reserve(1, 10, 10)
    picked = pick(fleet, replace(REQUEST, block_hashes=()), "PrefixAffinity")
    assert picked.decode == 2 and picked.policy == "PrefixAffinity"


def test_random_spreads_and_repeats() -> None:
    fleet = fleet_of(*map(worker, range(8)))
    drawn_slots = [pick(fleet, policy="Random", seed=seed).decode for seed in range(800)]
    assert all(60 < drawn_slots.count(slot) < 140 for slot in range(8))
    assert drawn_slots == [pick(fleet, policy="Random", seed=seed).decode for seed in range(800)]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=10), SEEDS)
def test_power_of_two_takes_the_less_loaded_of_the_two_it_draws(loads: list[int], seed: int) -> None:
    fleet = fleet_of(*map(worker, range(len(loads))))
    for slot, load in enumerate(loads):
        if load:
            fleet.reserve(slot, load, 0)
    picked = pick(fleet, policy="PowerOfTwo", seed=seed)
    lots = drawn(fleet.view(), picked.candidates, seed)
    two = sorted(range(len(loads)), key=lambda s: lots[s])[:2]
    assert picked.decode in two and loads[picked.decode] == min(loads[s] for s in two)
    assert [s for s, score in enumerate(picked.scores) if math.isfinite(score)] == sorted(two)
