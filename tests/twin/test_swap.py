"""Preemption by swapping, from a scenario file to what requests feel of it."""

from __future__ import annotations

import pytest
from penstock.core.engine import Preemption
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Impossible
from penstock.simulator.files import parse_scenario
from penstock.simulator.scenario import HostMemory
from penstock.simulator.twin import Result, Twin

FILE = """
model: llama-3.1-8b
nodes: a100-80g=1x1
engine: {maxContext: 2048, kvCapacity: 4096, prefixCaching: false%s}
workload: {arrivals: {rate: 1, for: 1s}}
"""
SWAP = ", preemption: Swap, hostKvCapacity: %d, hostGbytesPerS: %g"
CROWD = Trace(tuple(TraceRequest(0.02 * n, 400, 400) for n in range(24)), 16)


def play(engine: str) -> tuple[Twin, Result]:
    """A crowd on an engine whose cache holds five of them at their end."""
    twin = Twin(parse_scenario(FILE % engine, "swap.yaml").scenario(), CROWD)
    return twin, twin.run()


def test_a_file_chooses_how_engines_make_room() -> None:
    assert parse_scenario(FILE % "", "a.yaml").scenario().host is None
    scenario = parse_scenario(FILE % (SWAP % (8192, 10)), "a.yaml").scenario()
    assert scenario.host == HostMemory(8192, 10.0)
    config = Twin(scenario, CROWD).workers[0].engine.config
    assert config.preemption is Preemption.SWAP and config.num_host_blocks == 8192 // 16
    # Keys and values of 16 tokens over 10 GB/s.
    assert config.swap_ms_per_block == pytest.approx(scenario.model.kv_bytes_per_token() * 16 / 10e9 * 1e3)
    assert parse_scenario(FILE % ", preemption: Swap, hostKvCapacity: 64", "a.yaml").scenario().host == HostMemory(64)


def test_a_group_of_accelerators_copies_over_as_many_links() -> None:
    text = FILE.replace("1x1", "1x2") + "parallelism: {tensor: 2}\n"
    one, two = (
        Twin(parse_scenario(form % (SWAP % (8192, 10)), "a.yaml").scenario(), CROWD).workers[0].engine.config
        for form in (FILE, text)
    )
    assert two.swap_ms_per_block == pytest.approx(one.swap_ms_per_block / 2)


def test_what_is_swapped_out_is_not_computed_again() -> None:
    dropped, swapped = play(""), play(SWAP % (100_000, 25))
    for twin, result in (dropped, swapped):
        assert twin.workers[0].engine.stats().preemptions > 0
        assert [outcome.output_tokens for outcome in result.outcomes] == [400] * len(CROWD.requests)
    assert dropped[0].workers[0].engine.stats().blocks_swapped_out == 0
    stats = swapped[0].workers[0].engine.stats()
    assert stats.blocks_swapped_out == stats.blocks_swapped_in > 0
    assert swapped[1].end_s < dropped[1].end_s, "copying at 25 GB/s is cheaper than computing again"


def test_a_slow_link_to_the_host_is_felt() -> None:
    assert play(SWAP % (100_000, 0.1))[1].end_s > play(SWAP % (100_000, 25))[1].end_s


def test_a_full_host_leaves_the_rest_to_be_computed_again() -> None:
    small, large = play(SWAP % (512, 25))[0], play(SWAP % (100_000, 25))[0]
    assert 0 < small.workers[0].engine.stats().blocks_swapped_out < large.workers[0].engine.stats().blocks_swapped_out


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (", preemption: Swap", "preemption: Swap needs hostKvCapacity"),
        (", hostKvCapacity: 100", "are for preemption: Swap"),
        (", hostGbytesPerS: 10", "are for preemption: Swap"),
        (", preemption: Drop", "input should be 'Recompute' or 'Swap'"),
        (SWAP % (8192, 0), "greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(engine: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"swap\.yaml: engine") as error:
        play(engine)
    assert said in str(error.value)


def test_a_host_without_room_for_a_block_is_refused() -> None:
    with pytest.raises(Impossible, match="holds no block of 16"):
        play(SWAP % (8, 25))
