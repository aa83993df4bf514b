import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.operator.shell.queue import Pace, WorkQueue

A, B = ("ns", "a"), ("ns", "b")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def queue_at(clock, **pace):
    return WorkQueue(clock=clock, random=lambda: 1.0, pace=Pace(**pace))


async def _next(queue):
    return await asyncio.wait_for(queue.take(), 1.0)


async def _nothing(queue):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.01)


async def test_a_key_waits_once_however_often_it_is_added():
    queue = queue_at(Clock())
    for _ in range(5):
        queue.add(A)
    assert len(queue) == 1
    assert await _next(queue) == A
    await _nothing(queue)


async def test_a_key_is_worked_on_by_one_at_a_time_and_comes_back_if_it_changed_meanwhile():
    queue = queue_at(Clock())
    queue.add(A)
    await _next(queue)
    queue.add(A)
    queue.add(A)
    await _nothing(queue)
    queue.done(A)
    assert await _next(queue) == A
    queue.done(A)
    await _nothing(queue)


async def test_failures_back_off_and_events_do_not_shorten_the_wait():
    clock = Clock()
    queue = queue_at(clock, backoff_base_s=1.0, backoff_cap_s=8.0)
    waits = []
    queue.add(A)
    for _ in range(6):
        await _next(queue)
        waits.append(queue.failed(A))
        queue.add(A)
        await _nothing(queue)
        clock.now += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    await _next(queue)
    queue.done(A)
    queue.add(A)
    assert await _next(queue) == A, "success must forget the failures"


async def test_the_server_can_ask_for_a_longer_wait():
    queue = queue_at(Clock(), backoff_base_s=1.0)
    queue.add(A)
    await _next(queue)
    assert queue.failed(A, at_least_s=30.0) == 30.0


async def test_a_failing_key_does_not_hold_up_another():
    queue = queue_at(Clock())
    queue.add(A)
    await _next(queue)
    queue.failed(A, at_least_s=1000.0)
    queue.add(B)
    assert await _next(queue) == B


async def test_the_earlier_of_two_requests_stands():
    clock = Clock()
    queue = queue_at(clock)
    queue.add(A, 50.0)
    queue.add(A, 5.0)
    queue.add(A, 20.0)
    await _nothing(queue)
    clock.now += 5.0
    assert await _next(queue) == A


async def test_requeue_after_brings_a_key_back_without_an_event():
    clock = Clock()
    queue = queue_at(clock)
    queue.add(A)
    await _next(queue)
    queue.done(A, again_after_s=10.0)
    await _nothing(queue)
    clock.now += 10.0
    assert await _next(queue) == A


async def test_the_rate_over_all_keys_is_bounded():
    clock = Clock()
    queue = queue_at(clock, rate_per_s=10.0, burst=3.0)
    for number in range(6):
        queue.add(("ns", str(number)))
    for _ in range(3):
        queue.done(await _next(queue))
    await _nothing(queue)
    clock.now += 0.11
    await _next(queue)
    await _nothing(queue)


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "done", "fail"]), st.integers(0, 3)), max_size=60))
def test_no_key_that_was_asked_for_is_ever_lost(steps):
    """Whatever the order: a key added and not yet taken afterwards is waiting."""

    async def run():
        clock = Clock()
        queue = queue_at(clock, rate_per_s=1e9, burst=1e9)
        owed, working = set(), set()
        for what, number in steps:
            key = ("ns", str(number))
            if what == "add":
                queue.add(key)
                owed.add(key)
            elif what == "take" and owed - working:
                clock.now += 1000.0
                taken = await _next(queue)
                assert taken not in working
                owed.discard(taken)
                working.add(taken)
            elif key in working and what in ("done", "fail"):
                working.discard(key)
                if what == "done":
                    queue.done(key)
                else:
                    queue.failed(key)
                    owed.add(key)
        clock.now += 1000.0
        for key in working:
            queue.done(key)
        assert {await _next(queue) for _ in range(len(owed))} == owed

    asyncio.run(run())
