"""The twin's own policies: what papers describe, on fleets small enough to reckon by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from penstock.core.fleet import Fleet, Pick, Request, Role, Worker
from penstock.core.reports import Verdict
from penstock.core.traces import Trace, TraceRequest
from penstock.router.decisions.policies import POLICIES, UnknownPolicy
from penstock.simulator import Link, Scenario, Twin, parse_nodes
from penstock.simulator.policies import TWIN_POLICIES, find_twin_policy
from penstock.simulator.policies.mooncake import FetchingPick

ASKED = Request("r", "m", 1000, 100)


def fleet_of(*roles: Role, capacity: int = 20_000) -> Fleet:
    """Ready workers named by their place."""
    fleet = Fleet(len(roles))
    for number, role in enumerate(roles):
        fleet.set_ready(fleet.add(Worker(str(number), "h", 1, "m", role, kv_capacity_tokens=capacity)), True)
    return fleet


def pick(policy: str, fleet: Fleet, asked: Request = ASKED) -> Pick:
    made = TWIN_POLICIES[policy].pick(asked, fleet.view(), 0.0, 0)
    assert isinstance(made, Pick)
    return made


P, D, B = Role.PREFILL, Role.DECODE, Role.PREFILL_DECODE


def test_a_router_does_not_know_them() -> None:
    assert not set(TWIN_POLICIES) & set(POLICIES)
    assert find_twin_policy("KVAware") is POLICIES["KVAware"]
    with pytest.raises(UnknownPolicy, match=r"known policies are .*KVAware.*Splitwise"):
        find_twin_policy("Nonsense")


def test_the_shortest_queue_counts_a_prompt_by_tokens_and_an_answer_as_one() -> None:
    fleet = fleet_of(B, B)
    fleet.reserve(0, 30, 5)  # 30 tokens to prefill.
    for _ in range(29):
        fleet.prefilled(fleet.reserve(1, 5000, 5))  # 29 that decode.
    assert pick("JoinShortestQueue", fleet).decode == 1
    for _ in range(2):
        fleet.prefilled(fleet.reserve(1, 10, 5))
    assert pick("JoinShortestQueue", fleet).decode == 0


def test_splitwise_takes_the_prompt_machine_with_fewest_tokens_and_the_token_machine_with_most_memory() -> None:
    fleet = fleet_of(P, P, D, D)
    fleet.reserve(0, 500, 1)
    fleet.reserve(2, 400, 100, cached_tokens=400)
    made = pick("Splitwise", fleet)
    assert (made.prefill, made.decode) == (1, 3)


def test_splitwise_borrows_a_token_machine_when_prompt_queues_are_full_and_gives_it_back() -> None:
    fleet = fleet_of(P, D, D)
    full = [fleet.reserve(0, 4000, 1) for _ in range(2)]
    # The one it borrows is the one it would have used for tokens: then it does both.
    borrowed = pick("Splitwise", fleet)
    assert (borrowed.prefill, borrowed.decode) == (None, 1)
    foreign = fleet.reserve(1, 1000, 1)
    # It is mixed now: it takes the next prompt too, and tokens go to the one that is not.
    again = pick("Splitwise", fleet)
    assert (again.prefill, again.decode) == (1, 2)
    for reservation in (*full, foreign):
        fleet.release(reservation)
    assert pick("Splitwise", fleet).prefill == 0


def test_splitwise_borrows_a_prompt_machine_when_memory_is_promised_away() -> None:
    fleet = fleet_of(P, P, D, capacity=3000)
    fleet.reserve(2, 2000, 100, cached_tokens=2000)
    made = pick("Splitwise", fleet)
    assert made.decode in (0, 1)
    fleet.reserve(made.decode, 1000, 100, cached_tokens=1000)
    # A mixed machine is nobody's first choice for prompts while one at home has room.
    assert pick("Splitwise", fleet).prefill == 1 - made.decode


def test_splitwise_uses_one_machine_for_both_where_a_pool_is_empty() -> None:
    made = pick("Splitwise", fleet_of(D))
    assert (made.prefill, made.decode) == (None, 0)


@pytest.fixture
def caching(scenario: Scenario) -> Scenario:
    """Two workers, one prompt of 40 blocks."""
    two = parse_nodes("a100-80g=2x1")
    return replace(scenario, groups=two, scrape_interval_s=0.0, transfer=Link(gbytes_per_s=100.0, latency_s=0.0))


LONG = tuple(range(40))


def test_the_global_policy_brings_a_prefix_to_an_idle_worker(caching: Scenario) -> None:
    # The second prompt begins as the first and goes where that is cached; there the third would have to wait for it.
    asked = (
        TraceRequest(0.0, 2600, 2, LONG),
        TraceRequest(5.0, 8000, 2, (*LONG, *range(1000, 1085))),
        TraceRequest(5.1, 2700, 2, LONG),
    )
    twins, picks = {}, {}
    for policy in ("GlobalHit", "LocalHitOnly"):
        twin = twins[policy] = Twin(replace(caching, policy=policy), Trace(asked, 64))
        seen, act = picks.setdefault(policy, {}), twin.requests._attempt

        def watch(lived, attempt, now, act=act, seen=seen):
            seen[lived.index] = attempt.pick
            act(lived, attempt, now)

        twin.requests._attempt = watch
        assert all(outcome.verdict is Verdict.COMPLETED for outcome in twin.run().outcomes)
        assert seen[0].decode == seen[1].decode
    brought, moved = picks["GlobalHit"][2], twins["GlobalHit"].pulls.moved()
    assert isinstance(brought, FetchingPick)
    assert (brought.fetch_from, brought.fetch_tokens) == (picks["GlobalHit"][0].decode, 2560)
    assert brought.decode != brought.fetch_from
    assert (moved.tokens, moved.stale, moved.failed) == (2560, 0, 0)
    assert twins["GlobalHit"].outcomes[2].cached_tokens == 2560
    assert twins["LocalHitOnly"].pulls.moved().transfers == 0
    assert twins["GlobalHit"].outcomes[2].ttft_s < twins["LocalHitOnly"].outcomes[2].ttft_s


def adaptive_fleet() -> Fleet:
    """Two workers of the pool for prompts and two of that for tokens, all equally fast."""
    fleet = Fleet(4)
    for number, role in enumerate((P, P, D, D)):
        worker = Worker(
            str(number), "h", 1, "m", role,
            prefill_ms=(20.0, 0.6, 0.0), decode_ms=(16.0, 1.0, 0.0), kv_capacity_tokens=20_000,
        )  # fmt: skip
        fleet.set_ready(fleet.add(worker), True)
    return fleet


def decoding(fleet: Fleet, slot: int, requests: int, tokens: int = 100) -> None:
    """Requests that decode in a slot, their prompts computed."""
    for _ in range(requests):
        fleet.prefilled(fleet.reserve(slot, tokens, tokens, cached_tokens=tokens))


WITHIN = Request("r", "m", 1000, 100, tpot_ms=40.0)


def test_a_quiet_cluster_decodes_on_the_reserved_worker_alone() -> None:
    made = pick("AdaptiveRoles", adaptive_fleet(), WITHIN)
    assert made.decode == 2
    assert made.prefill in (0, 1, 3)


def test_decodes_are_packed_where_there_are_most_within_the_objective() -> None:
    fleet = adaptive_fleet()
    decoding(fleet, 2, 3)
    decoding(fleet, 3, 9)
    made = pick("AdaptiveRoles", fleet, WITHIN)
    assert made.decode == 3
    assert made.prefill in (0, 1)  # Whoever decodes takes no prompts.
    decoding(fleet, 3, 9)  # 16 + 19 ms a token are above 0.85 of the objective.
    assert pick("AdaptiveRoles", fleet, WITHIN).decode == 2


def test_where_no_decode_fits_the_prefill_worker_free_soonest_turns() -> None:
    fleet = adaptive_fleet()
    decoding(fleet, 2, 30)
    fleet.reserve(1, 5000, 100)
    made = pick("AdaptiveRoles", fleet, WITHIN)
    assert made.decode == 3
    assert made.prefill == 0
    decoding(fleet, 3, 30)
    # The reserved prefill worker is idle, and stays what it is.
    assert pick("AdaptiveRoles", fleet, WITHIN).decode == 1


def test_a_full_cache_takes_no_more_decodes() -> None:
    fleet = adaptive_fleet()
    decoding(fleet, 2, 1, tokens=9_500)
    assert pick("AdaptiveRoles", fleet, WITHIN).decode != 2
    assert pick("AdaptiveRoles", adaptive_fleet(), WITHIN).decode == 2
