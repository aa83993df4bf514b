"""KV that is kept for a peer, and KV that is fetched from one: leases, transfers, and what becomes of both."""

import pytest
from engine_stage import make, prompt, run, step
from penstock.core.engine import (
    violations,
)


def test_a_lease_keeps_kv_until_it_is_released() -> None:
    engine = make()
    engine.add(prompt("leg", 10, out=1, lease_seconds=30), 0.0)
    finished, _, now = run(engine)
    assert finished[0].held is not None
    assert (finished[0].held.tokens, finished[0].held.until) == (10, now + 30)
    assert engine.stats().kv_usage == 3 / 64
    assert (engine.stats().held, engine.idle) == (1, False)
    assert engine.next_wakeup() == now + 30
    assert engine.release("leg")
    assert not engine.release("leg")
    assert engine.idle
    assert violations(engine) == []


def test_a_lease_that_runs_out_frees_the_blocks_a_prompt_waits_for() -> None:
    engine = make(num_blocks=16)
    engine.add(prompt("leg", 40, out=1, lease_seconds=30), 0.0)
    _, _, now = run(engine)
    engine.add(prompt("next", 40), now)
    assert engine.schedule(now) is None
    wakeup = engine.next_wakeup()
    assert wakeup == now + 30
    assert engine.schedule(wakeup - 0.001) is None
    assert [work.id for work in engine.schedule(wakeup).work] == ["next"]
    assert engine.stats().leases_expired == 1


def test_an_aborted_leg_leaves_no_lease() -> None:
    engine = make()
    engine.add(prompt("leg", 10, out=4, lease_seconds=30), 0.0)
    step(engine, 0.0)
    assert engine.abort("leg", 0.1).held is None
    assert engine.idle


def test_remote_kv_is_awaited_then_only_one_token_is_computed() -> None:
    engine = make()
    engine.admit_with_remote_kv(prompt("leg", 30, out=8, stem="x"), 30, 0.0)
    assert engine.schedule(0.0) is None
    (transfer,) = engine.take_transfers()
    assert (transfer.id, transfer.tokens, transfer.cached_tokens) == ("leg", 30, 0)
    assert engine.take_transfers() == ()
    assert (engine.stats().waiting_deferred, engine.stats().waiting) == (1, 1)
    assert violations(engine) == []
    assert engine.remote_kv_arrived("leg")
    made, outputs, now = step(engine, 0.5)
    assert (made.tokens, len(outputs.tokens)) == (1, 1)
    finished, steps, _ = run(engine, now)
    assert made.tokens + sum(later.tokens for later in steps) == 8, "one token again, then seven"
    sources = engine.stats().prompt_tokens_by_source
    assert (sources.local_compute, sources.local_cache_hit, sources.external_kv_transfer) == (0, 0, 30)
    assert (finished[0].remote_tokens, finished[0].cached_tokens) == (30, 0)


def test_only_what_is_not_cached_here_is_fetched() -> None:
    engine = make()
    engine.add(prompt("before", 20, stem="x"), 0.0)
    run(engine)
    engine.admit_with_remote_kv(prompt("leg", 24, stem="x"), 24, 1.0)
    assert engine.schedule(1.0) is None
    (transfer,) = engine.take_transfers()
    assert (transfer.tokens, transfer.cached_tokens) == (4, 20)
    engine.remote_kv_arrived("leg")
    finished, _, _ = run(engine, 1.0)
    assert (finished[0].remote_tokens, finished[0].cached_tokens) == (4, 20)


def test_fetched_blocks_can_be_found_by_the_next_prompt() -> None:
    engine = make()
    engine.admit_with_remote_kv(prompt("leg", 24, stem="x"), 24, 0.0)
    engine.schedule(0.0)
    engine.remote_kv_arrived("leg")
    engine.add(prompt("next", 24, stem="x"), 0.0)
    finished, _, _ = run(engine)
    assert {end.id: end.cached_tokens for end in finished} == {"leg": 0, "next": 20}


def test_a_failed_transfer_is_computed_here() -> None:
    engine = make()
    engine.admit_with_remote_kv(prompt("leg", 30, stem="x"), 30, 0.0)
    engine.schedule(0.0)
    assert engine.remote_kv_failed("leg")
    assert step(engine, 0.0)[0].prompt_tokens == 30
    finished, _, _ = run(engine)
    assert finished[0].remote_tokens == 0
    assert engine.stats().transfers_failed == 1
    assert engine.stats().prompt_tokens_by_source.local_compute == 30


def test_an_abort_during_the_transfer_frees_its_blocks() -> None:
    engine = make()
    engine.admit_with_remote_kv(prompt("leg", 30), 30, 0.0)
    engine.schedule(0.0)
    assert engine.stats().kv_usage > 0
    engine.abort("leg", 0.1)
    assert violations(engine) == []
    assert engine.idle
    assert not engine.remote_kv_arrived("leg")
    assert not engine.remote_kv_failed("leg")


@pytest.mark.parametrize("remote", [0, 31])
def test_a_prefill_leg_of_another_prompt_is_refused(remote: int) -> None:
    with pytest.raises(ValueError, match="must have had the same prompt"):
        make().admit_with_remote_kv(prompt("leg", 30), remote, 0.0)


def test_part_of_a_prompt_can_come_from_elsewhere() -> None:
    engine = make()
    engine.admit_with_remote_kv(prompt("leg", 30, out=1), 16, 0.0)
    engine.schedule(0.0)
    engine.remote_kv_arrived("leg")
    assert step(engine, 0.0)[0].prompt_tokens == 14
    sources = engine.stats().prompt_tokens_by_source
    assert (sources.local_compute, sources.external_kv_transfer) == (14, 16)
