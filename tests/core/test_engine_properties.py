"""What no order of calls may break: blocks and tokens are conserved, everybody finishes, names do not matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from penstock.core.engine import (
    BatchScheduler,
    BlockRemoved,
    BlockStored,
    Engine,
    EngineConfig,
    FinishReason,
    Preemption,
    SchedulingPolicy,
    Sequence,
)
from penstock.core.engine import violations as broken
from penstock.core.models import LatencyProfile, ProfileSource

PROFILE = LatencyProfile((2, 0.1, 1e-5), (5, 0.2, 1e-3), ProfileSource.BENCHMARK, "made up")
BLOCK = 4
LONGEST = 48

configs = st.builds(
    EngineConfig,
    num_blocks=st.integers(LONGEST // BLOCK, 40),
    block_size=st.just(BLOCK),
    max_num_batched_tokens=st.sampled_from([1, 3, 16, 64]),
    max_num_seqs=st.sampled_from([1, 2, 5, 64]),
    max_model_len=st.just(LONGEST),
    enable_prefix_caching=st.booleans(),
    policy=st.sampled_from(SchedulingPolicy),
)


@st.composite
def orders(draw, plain=configs) -> EngineConfig:
    """Any scheduler with any way of preemption."""
    scheduler = draw(st.sampled_from(BatchScheduler))
    first = scheduler is BatchScheduler.PREFILL_FIRST
    return replace(
        draw(plain),
        scheduler=scheduler,
        enable_chunked_prefill=scheduler is BatchScheduler.STALL_FREE or draw(st.booleans()),
        max_stalls=draw(st.sampled_from([None, 0, 1, 4])) if first else None,
        mixed_pass_factor=draw(st.sampled_from([None, 1.1])),
        preemption=draw(st.sampled_from(Preemption)),
        num_host_blocks=draw(st.sampled_from([1, 6, 40])),
        swap_ms_per_block=draw(st.sampled_from([0.0, 0.5])),
    )


every_config = st.one_of(configs, orders())


def sequence(number: int, tokens: int, out: int, stem: int, priority: int, lease: float | None) -> Sequence:
    # Prompts of one stem share every block, so hits are frequent.
    hashes = tuple(stem * 1000 + index for index in range(tokens // BLOCK))
    return Sequence(f"s{number}", tokens, out, block_hashes=hashes, priority=priority, lease_seconds=lease)


requests = st.lists(
    st.tuples(
        st.integers(1, LONGEST - 1),
        st.integers(1, 20),
        st.integers(0, 3),
        st.integers(0, 2),
        st.sampled_from([None, None, None, 0.05, 5.0]),
        st.integers(0, 12),  # steps before it is added
        st.sampled_from(["plain", "plain", "plain", "remote", "failing", "abort"]),
    ),
    min_size=1,
    max_size=14,
)


@dataclass
class World:
    """Drives one engine as a caller would and keeps its own books."""

    engine: Engine
    now: float = 0.0
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ended: dict[str, FinishReason] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    computed: Counter[str] = field(default_factory=Counter)
    findable: Counter[int] = field(default_factory=Counter)
    trace: list[tuple[tuple[str, int, int], ...]] = field(default_factory=list)
    preempted: int = 0

    def settle(self, fate: dict[str, str]) -> None:
        for transfer in self.engine.take_transfers():
            if fate[transfer.id] == "failing":
                assert self.engine.remote_kv_failed(transfer.id)
            else:
                assert self.engine.remote_kv_arrived(transfer.id)

    def step(self, fate: dict[str, str]) -> bool:
        made = self.engine.schedule(self.now)
        self.settle(fate)
        if made is None:
            made = self.engine.schedule(self.now)
            self.settle(fate)
        if made is None:
            return False
        assert broken(self.engine) == []
        config = self.engine.config
        whole = not config.enable_chunked_prefill and len(made.work) - made.sequences == 1
        assert made.tokens > 0
        assert whole or made.tokens <= config.max_num_batched_tokens
        assert made.duration_ms > 0
        assert made.tokens == sum(work.tokens for work in made.work)
        self.now += made.duration_ms / 1e3
        self.preempted += len(made.preempted)
        self.trace.append(tuple(made.work))
        for work in made.work:
            self.computed[work.id] += work.tokens
        for name in [work.id for work in made.work if fate[work.id] == "abort"][:1]:
            self.ended[name] = self.engine.abort(name, self.now).reason
        self.take(self.engine.complete(made, self.now))
        assert broken(self.engine) == []
        return True

    def take(self, outputs) -> None:
        for token in outputs.tokens:
            self.tokens.setdefault(token.id, []).append(token.number)
        for end in outputs.finished:
            assert end.id not in self.ended, "a sequence ended twice"
            self.ended[end.id] = end.reason
            self.cached[end.id] = end.cached_tokens
        for event in outputs.events:
            if isinstance(event, BlockStored):
                self.findable.update(event.hashes)
            elif isinstance(event, BlockRemoved):
                self.findable[event.hash] -= 1
                assert self.findable[event.hash] >= 0, "removed more often than stored"


def play(config: EngineConfig, script, rename=lambda name: name) -> World:
    world = World(Engine(config, PROFILE))
    fate: dict[str, str] = {}
    todo = sorted(enumerate(script), key=lambda item: (item[1][5], item[0]))
    steps = 0
    while todo or not world.engine.idle:
        while todo and todo[0][1][5] <= steps:
            number, (tokens, out, stem, priority, lease, _, kind) = todo.pop(0)
            one = sequence(number, tokens, out, stem, priority, lease)
            one = structs.replace(one, id=rename(one.id))
            fate[one.id] = kind
            if kind in ("remote", "failing"):
                world.engine.admit_with_remote_kv(one, tokens, world.now)
            else:
                world.engine.add(one, world.now)
        if not world.step(fate) and not todo:
            wakeup = world.engine.next_wakeup()
            assert wakeup is not None or world.engine.idle, "stuck with nothing to wait for"
            world.now = max(world.now, wakeup or 0.0)
        steps += 1
        assert steps < 5000, "no progress"
    return world


@settings(max_examples=80, deadline=None)
@given(every_config, requests)
def test_whatever_comes_everybody_ends_and_nothing_leaks(config, script) -> None:
    everybody_ends_and_nothing_leaks(config, script)


@pytest.mark.full
@pytest.mark.timeout(1800)
@settings(max_examples=5000, deadline=None)
@given(every_config, requests)
def test_nothing_leaks_in_many_runs(config, script) -> None:
    everybody_ends_and_nothing_leaks(config, script)


def everybody_ends_and_nothing_leaks(config, script) -> None:
    world = play(config, script)
    assert len(world.ended) == len(script)
    pool = world.engine.scheduler.pool
    assert (pool.nameless, set(pool.users().values()) - {0}) == (0, set())
    assert world.engine.stats().kv_usage == 0
    assert world.engine.stats().running == world.engine.stats().waiting == 0
    assert world.engine.stats().host_usage == world.engine.stats().swapped == 0
    for number, (tokens, out, *_rest, kind) in enumerate(script):
        name = f"s{number}"
        given_out = world.tokens.get(name, [])
        assert given_out == list(range(len(given_out))), "a token was lost or given twice"
        if kind != "abort":
            assert len(given_out) == min(out, LONGEST - tokens)
            assert world.ended[name] is FinishReason.LENGTH


@settings(max_examples=50, deadline=None)
@given(every_config, requests)
def test_every_token_is_computed_once_unless_found_fetched_or_preempted(config, script) -> None:
    script = [(*request[:6], "plain") for request in script]
    world = play(config, script)
    stats = world.engine.stats()
    assert stats.generation_tokens == sum(len(numbers) for numbers in world.tokens.values())
    assert stats.step_tokens == sum(world.computed.values())
    assert stats.prompt_tokens == sum(request[0] for request in script)
    sources = stats.prompt_tokens_by_source
    assert sources.local_compute + sources.local_cache_hit + sources.external_kv_transfer == stats.prompt_tokens
    for number, (tokens, *_rest) in enumerate(script):
        name = f"s{number}"
        least = tokens + len(world.tokens[name]) - 1 - world.cached[name]
        if not stats.preemptions:
            assert world.computed[name] == least
        else:
            assert world.computed[name] >= min(least, 1)


@settings(max_examples=50, deadline=None)
@given(every_config, requests)
def test_hits_are_whole_blocks_below_the_prompt(config, script) -> None:
    world = play(config, script)
    for number, (tokens, *_rest) in enumerate(script):
        hit = world.cached.get(f"s{number}", 0)
        assert hit % BLOCK == 0
        assert hit < tokens
    stats = world.engine.stats()
    assert stats.prefix_hits <= stats.prefix_queries


@settings(max_examples=50, deadline=None)
@given(requests)
def test_with_room_for_all_one_by_one_the_hits_are_the_longest_common_prefix(script) -> None:
    """Against the plainest model there is: a set of every hash seen before."""
    engine = Engine(EngineConfig(num_blocks=2000, block_size=BLOCK, max_model_len=LONGEST), PROFILE)
    world, seen = World(engine), set()
    for number, (tokens, out, stem, *_rest) in enumerate(script):
        one = sequence(number, tokens, out, stem, 0, None)
        expected = 0
        for name in one.block_hashes[: (tokens - 1) // BLOCK]:
            if name not in seen:
                break
            expected += BLOCK
        engine.add(one, world.now)
        while world.step({one.id: "plain"}):
            pass
        seen.update(one.block_hashes)
        assert world.cached[one.id] == expected
    assert {name for name, count in world.findable.items() if count} == seen


@settings(max_examples=30, deadline=None)
@given(every_config, requests)
def test_names_do_not_matter_and_runs_repeat(config, script) -> None:
    one, again = play(config, script), play(config, script)
    assert one.trace == again.trace
    other = play(config, script, rename=lambda name: f"{hash(name)}/{name}")
    shape = [[work[1:] for work in made] for made in one.trace]
    assert shape == [[work[1:] for work in made] for made in other.trace]
    assert one.now == other.now


def test_the_properties_see_preemptions_and_expiries() -> None:
    """The scripts above are worth nothing if small caches never run short: this one does, by construction."""
    config = EngineConfig(num_blocks=12, block_size=BLOCK, max_model_len=LONGEST)
    script = [(20, 20, stem, 0, None, 0, "plain") for stem in range(3)] + [(30, 2, 9, 0, 0.05, 3, "plain")]
    world = play(config, script)
    assert world.preempted > 0
    assert world.engine.stats().leases_expired == 1


def test_the_properties_see_swaps_and_stalls() -> None:
    """The same for the other schedulers: small caches swap, in both directions, and output waits for prompts."""
    config = EngineConfig(
        num_blocks=12, block_size=BLOCK, max_model_len=LONGEST, max_num_batched_tokens=64, max_num_seqs=4,
        scheduler=BatchScheduler.PREFILL_FIRST, max_stalls=1, preemption=Preemption.SWAP, num_host_blocks=20,
    )  # fmt: skip
    script = [(12, 20, stem, 0, None, at, "plain") for stem, at in enumerate((0, 2, 4, 6))]
    world = play(config, script)
    stats = world.engine.stats()
    assert stats.blocks_swapped_out >= stats.blocks_swapped_in > 0
    assert {len(made) for made in world.trace} >= {1, 2}
    assert any(work.computed and work.tokens == 1 for made in world.trace for work in made if len(made) == 2)


@pytest.mark.parametrize("fault", ["leak", "double", "host"])
def test_the_invariants_notice_a_fault(fault: str) -> None:
    engine = Engine(EngineConfig(num_blocks=12, block_size=BLOCK, max_model_len=LONGEST), PROFILE)
    engine.add(sequence(0, 20, 4, 0, 0, None), 0.0)
    engine.complete(engine.schedule(0.0), 0.1)
    assert broken(engine) == []
    if fault == "leak":
        engine.scheduler.pool.take(1)
    elif fault == "host":
        engine.scheduler.host.used += 1
    else:
        engine.scheduler.pool.give_back(engine.living()[0].blocks[:1])
    assert broken(engine) != []
