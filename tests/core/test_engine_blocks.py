"""The paged KV cache alone: what is taken first, what is found, what is refused."""

import pytest
from penstock.core.engine import BlockPool


def pool_with(hashes: dict[int, int | None]) -> tuple[BlockPool, list[int]]:
    """A pool whose blocks are all in use and known by these hashes."""
    pool = BlockPool(len(hashes))
    blocks = pool.take(len(hashes))
    for block, name in zip(blocks, hashes.values(), strict=True):
        if name is not None:
            pool.remember(block, name)
    return pool, blocks


def test_blocks_that_cannot_be_found_are_taken_before_those_that_can() -> None:
    pool, (first, second, nameless) = pool_with({0: 10, 1: 11, 2: None})
    pool.give_back([first, second])
    pool.give_back([nameless])
    assert pool.take(1) == [nameless]
    assert pool.drain_removed() == []
    assert pool.take(1) == [second], "the tail before the head"
    assert pool.drain_removed() == [11]
    assert pool.match([10, 11], 2) == [first]


def test_sharing_a_free_block_saves_it_from_being_taken() -> None:
    pool, (first, second) = pool_with({0: 10, 1: 11})
    pool.give_back([first, second])
    pool.share(pool.match([10], 1))
    assert pool.take(1) == [second]
    assert pool.references() == (1, 1)
    pool.share([first])
    pool.give_back([first])
    assert pool.free == 0, "one of its two users is left"


def test_what_matches_does_not_count_as_room() -> None:
    pool, blocks = pool_with({0: 10, 1: 11, 2: 12})
    pool.give_back(blocks)
    assert pool.can_take(1, pool.match([10, 11], 2))
    assert not pool.can_take(2, pool.match([10, 11], 2))


def test_the_oldest_copy_of_a_hash_is_found_and_the_other_lives_on() -> None:
    pool, (first, second) = pool_with({0: 10, 1: 10})
    assert pool.match([10], 1) == [first]
    pool.give_back([first])
    pool.take(1)
    assert pool.match([10], 1) == [second]
    assert (pool.drain_removed(), pool.cached) == ([10], 1)


def test_misuse_is_refused() -> None:
    pool, (first, second) = pool_with({0: 10, 1: None})
    with pytest.raises(ValueError, match="1 blocks wanted, 0 of 2 are free"):
        pool.take(1)
    with pytest.raises(ValueError, match="already known"):
        pool.remember(first, 12)
    pool.give_back([second])
    with pytest.raises(ValueError, match="given back twice"):
        pool.give_back([second])
    with pytest.raises(ValueError, match="is free or"):
        pool.remember(second, 12)


def test_forgetting_needs_every_block_free() -> None:
    pool, blocks = pool_with({0: 10, 1: 11})
    assert not pool.forget_all()
    pool.give_back(blocks)
    assert pool.forget_all()
    assert (pool.match([10], 1), pool.cached, pool.free) == ([], 0, 2)
