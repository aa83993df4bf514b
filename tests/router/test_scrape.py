"""Workers' own load, from real metrics pages over real sockets."""

import httpx
from fake_worker import Call, FakeWorker
from penstock.core.fleet import Fleet, Worker
from penstock.router.shell.scrape import LoadScraper

PAGE = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
"""


async def page(call: Call) -> None:
    """A metrics page."""
    await call.reply(PAGE)


async def broken(call: Call) -> None:
    """Not a metrics page."""
    await call.reply(b"no", b"500 Internal Server Error")


async def test_only_requests_that_are_not_ours_count_and_a_failure_keeps_the_last_sample() -> None:
    fleet, now = Fleet(), 10.0
    async with FakeWorker(page) as w, httpx.AsyncClient() as client:
        slot = fleet.add(Worker("w", "127.0.0.1", w.port, "m"))
        fleet.set_ready(slot, True)
        fleet.reserve(slot, 1, 1)
        scraper = LoadScraper(fleet, 1.0, lambda: now)
        await scraper.sample_all(client)
        seen = fleet.view().foreign(slot, 12.0)
        assert (seen.value, seen.age, fleet.kv_usage[slot]) == (6.0, 2.0, 0.25)
        w.script = broken
        now = 20.0
        await scraper.sample_all(client)
        held = fleet.view().foreign(slot, 20.0)
        assert (held.value, held.age) == (6.0, 10.0), "a failed scrape must neither clear nor freshen the sample"


async def test_workers_that_are_not_ready_are_left_alone() -> None:
    fleet = Fleet()
    async with FakeWorker(page) as w, httpx.AsyncClient() as client:
        slot = fleet.add(Worker("w", "127.0.0.1", w.port, "m"))
        await LoadScraper(fleet, 1.0, lambda: 0.0).sample_all(client)
        assert not w.received and not fleet.view().foreign(slot, 0.0).known


async def test_a_worker_at_an_ipv6_address_is_asked_like_any_other() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, content=PAGE)

    fleet = Fleet()
    slot = fleet.add(Worker("w", "fd00::1", 8000, "m"))
    fleet.set_ready(slot, True)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await LoadScraper(fleet, 1.0, lambda: 0.0).sample_all(client)
    assert asked == ["http://[fd00::1]:8000/metrics"] and fleet.view().foreign(slot, 0.0).value == 7.0
