"""The paged KV cache alone: what is taken first, what is found, what is refused."""

import pytest
from penstock.core.engine import BlockPool
from penstock.core.engine.blocks import Block


def pool_with(*hashes: int, nameless: int = 0) -> tuple[BlockPool, list[Block]]:
    """A pool whose blocks are all in use, and those that are known by these hashes."""
    pool = BlockPool(len(hashes) + nameless)
    pool.take(pool.size)
    return pool, pool.remember(hashes)


def test_blocks_that_cannot_be_found_are_taken_before_those_that_can() -> None:
    pool, blocks = pool_with(10, 11, nameless=1)
    pool.give_back(blocks)
    pool.give_back([], 1)
    pool.take(1)
    assert pool.drain_removed() == []
    pool.take(1)
    assert pool.drain_removed() == [11], "the tail before the head"
    assert pool.match([10, 11], 2) == blocks[:1]


def test_the_least_recently_used_go_first() -> None:
    pool, blocks = pool_with(10, 11, 12)
    for block in (blocks[1], blocks[0], blocks[2]):
        pool.give_back([block])
    pool.share(pool.match([11], 1))
    pool.give_back(pool.match([11], 1))
    pool.take(3)
    assert pool.drain_removed() == [10, 12, 11]


def test_sharing_a_free_block_saves_it_from_being_taken() -> None:
    pool, (first, second) = pool_with(10, 11)
    pool.give_back([first, second])
    pool.share(pool.match([10], 1))
    pool.take(1)
    assert pool.drain_removed() == [11]
    assert (pool.users(), pool.nameless) == ({first: 1}, 1)
    pool.share([first])
    pool.give_back([first])
    assert pool.free == 0, "one of its two users is left"
    assert pool.users() == {first: 1}


def test_of_blocks_given_back_together_each_loses_one_user() -> None:
    pool, blocks = pool_with(10, 11, 12)
    pool.share(blocks[:2])
    pool.share(blocks[:1])
    pool.give_back(blocks)
    assert pool.users() == {10: 2, 11: 1, 12: 0}
    pool.give_back(blocks[:2])
    assert (pool.users(), pool.free) == ({10: 1, 11: 0, 12: 0}, 2)


def test_what_matches_does_not_count_as_room() -> None:
    pool, blocks = pool_with(10, 11, 12)
    pool.give_back(blocks)
    assert pool.can_take(1, pool.match([10, 11], 2))
    assert not pool.can_take(2, pool.match([10, 11], 2))


def test_what_others_use_does_not_take_room() -> None:
    pool, blocks = pool_with(10, 11, 12)
    pool.give_back(blocks[2:])
    assert pool.can_take(1, pool.match([10, 11], 2))
    assert not pool.can_take(1, pool.match([12], 1))


def test_the_oldest_copy_of_a_hash_is_found_and_the_other_lives_on() -> None:
    pool, (first, second) = pool_with(10, 10)
    assert pool.match([10], 1) == [first]
    assert (first != second, pool.users()) == (True, {first: 1, second: 1})
    pool.give_back([first])
    pool.take(1)
    assert pool.match([10], 1) == [second]
    assert (pool.drain_removed(), pool.cached) == ([10], 1)
    pool.give_back([second])
    pool.take(1)
    assert (pool.match([10], 1), pool.drain_removed(), pool.cached, pool.users()) == ([], [10], 0, {})


def test_a_copy_made_later_goes_first_where_it_is_older_in_use() -> None:
    pool, (first,) = pool_with(10, nameless=2)
    (second,) = pool.remember([10])
    pool.give_back([second])
    pool.take(1)
    assert (pool.match([10, 11], 2), pool.drain_removed()) == ([first], [10])
    third, other = pool.remember([10, 11])
    assert pool.match([10, 11], 2) == [first, other]
    assert pool.users() == {first: 1, third: 1, other: 1}


def test_misuse_is_refused() -> None:
    pool, (first,) = pool_with(10, nameless=1)
    with pytest.raises(ValueError, match="1 blocks wanted, 0 of 2 are free"):
        pool.take(1)
    with pytest.raises(ValueError, match="2 blocks to be known by a hash, 1 in use have none"):
        pool.remember([11, 12])
    pool.give_back([], 1)
    with pytest.raises(ValueError, match="given back twice"):
        pool.give_back([], 1)
    with pytest.raises(ValueError, match="to be known by a hash"):
        pool.remember([12])
    pool.give_back([first])
    with pytest.raises(ValueError, match="1 of 1 blocks with a hash given back twice"):
        pool.give_back([first])


def test_forgetting_needs_every_block_free() -> None:
    pool, blocks = pool_with(10, 11)
    assert not pool.forget_all()
    pool.give_back(blocks)
    assert pool.forget_all()
    assert (pool.match([10], 1), pool.cached, pool.free) == ([], 0, 2)
