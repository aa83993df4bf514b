"""A worker that answers badly costs its own coverage and nothing else: no other waits, no history is lost."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from penstock.autoscaler.shell.scraper import MAX_PAGE_BYTES, Result, Scraper


def scraper(**options: float) -> Scraper:
    return Scraper(**({"interval_s": 0.05, "timeout_s": 0.3, "window_s": 5.0, "at_once": 8} | options))  # type: ignore[arg-type]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_samples_come_in_and_keep_their_order(engines) -> None:
    engine = await engines.start()
    async with scraper() as made:
        made.follow([("a", engine.url)])
        await until(lambda: len(made.history("a").samples) >= 3)
        samples = made.history("a").samples
    assert [s.sample.running for s in samples] == [3.0] * len(samples)
    for before, after in pairwise(samples):
        assert after.at > before.at
        assert after.sample.generation_tokens > before.sample.generation_tokens


@pytest.mark.parametrize(
    ("manner", "result"),
    [
        ("hang", Result.TIMED_OUT),
        ("drip", Result.TIMED_OUT),
        ("garbage", Result.UNREACHABLE),
        ("error", Result.REFUSED),
        ("redirect", Result.REFUSED),
        ("no-engine", Result.UNREADABLE),
        ("endless", Result.TOO_LARGE),
    ],
)
async def test_a_bad_answer_has_a_name_and_leaves_others_alone(engines, manner: str, result: Result) -> None:
    bad, good = await engines.start(manner=manner), await engines.start()
    async with scraper(timeout_s=5.0 if manner == "endless" else 0.3) as made:
        made.follow([("bad", bad.url), ("good", good.url)])
        await until(lambda: made.results[result] and len(made.history("good").samples) >= 3)
        assert made.history("bad").samples == ()


async def test_history_is_held_while_a_worker_is_away_and_goes_on_after(engines) -> None:
    engine = await engines.start()
    async with scraper() as made:
        made.follow([("a", engine.url)])
        await until(lambda: made.history("a").samples)
        engine.manner = "error"
        await until(lambda: made.results[Result.REFUSED])
        held = made.history("a").samples
        assert held
        engine.manner = "well"
        await until(lambda: len(made.history("a").samples) > len(held))


async def test_a_worker_that_left_is_forgotten_and_no_longer_asked(engines) -> None:
    engine = await engines.start()
    async with scraper() as made:
        made.follow([("a", engine.url)])
        await until(lambda: made.history("a").samples)
        made.follow([])
        assert made.history("a").samples == ()
        asked = engine.asked
        await asyncio.sleep(0.3)
        assert engine.asked <= asked + 1


async def test_a_worker_that_comes_back_elsewhere_starts_a_new_history(engines) -> None:
    first, second = await engines.start(running=1), await engines.start(running=9)
    async with scraper() as made:
        made.follow([("a", first.url)])
        await until(lambda: made.history("a").samples)
        made.follow([("a", second.url)])
        await until(lambda: made.history("a").samples)
        assert {s.sample.running for s in made.history("a").samples} == {9.0}


async def test_history_is_bounded_by_the_window(engines) -> None:
    engine = await engines.start()
    async with scraper(window_s=0.3, interval_s=0.02) as made:
        made.follow([("a", engine.url)])
        await until(lambda: engine.asked >= 40)
        assert 2 <= len(made.history("a").samples) <= 20


async def test_many_hanging_workers_do_not_starve_a_good_one(engines) -> None:
    bad = await engines.start(manner="hang")
    good = await engines.start()
    async with scraper(at_once=4, timeout_s=0.1) as made:
        made.follow([(f"bad{i}", bad.url) for i in range(20)] + [("good", good.url)])
        await until(lambda: len(made.history("good").samples) >= 2)


async def test_an_endless_page_is_cut_off_in_bounded_memory(engines) -> None:
    bad = await engines.start(manner="endless")
    tracemalloc.start()
    try:
        async with scraper(timeout_s=5.0) as made:
            made.follow([("bad", bad.url)])
            await until(lambda: made.results[Result.TOO_LARGE] >= 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_PAGE_BYTES
