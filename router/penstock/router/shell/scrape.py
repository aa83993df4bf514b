"""Workers' own load, looked at now and then.

The router knows its own requests exactly; what others send to a worker is only on the worker's metrics page.
A page that cannot be had changes nothing: the last sample grows old, and the policies see its age.
"""

import asyncio
import logging
import random
from collections.abc import Callable

import httpx
from penstock.core.fleet import Fleet, Worker
from penstock.core.wire.errors import WireError
from penstock.core.wire.scrape import parse_scrape

log = logging.getLogger("penstock.router.scrape")

_TIMEOUT = 2.0
_AT_ONCE = 16


class LoadScraper:
    """Samples every ready worker once per interval, spread over it."""

    def __init__(
        self,
        fleet: Fleet,
        interval: float,
        clock: Callable[[], float],
        block_size: Callable[[str, int], None] | None = None,
    ) -> None:
        """`interval` in seconds; `clock` makes the times of picks; `block_size` is told models' block sizes."""
        self._block_size = block_size
        self._fleet = fleet
        self._interval = interval
        self._clock = clock

    async def run(self) -> None:
        """Sample until cancelled."""
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=False) as client:
            while True:
                await self.sample_all(client)
                # Jitter keeps several routers from asking every worker at the same moment.
                await asyncio.sleep(self._interval * random.uniform(0.8, 1.2))

    async def sample_all(self, client: httpx.AsyncClient) -> None:
        """Sample every ready worker now."""
        slots = [s for s in self._fleet.workers().values() if self._fleet.ready[s]]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(slot: int, worker: Worker) -> None:
            async with gate:
                await self._sample(client, slot, worker)

        await asyncio.gather(*(one(slot, self._fleet.worker(slot)) for slot in slots))

    async def _sample(self, client: httpx.AsyncClient, slot: int, worker: Worker) -> None:
        before = int(self._fleet.in_flight[slot])
        try:
            response = await client.get(f"http://{worker.address}/metrics")
            response.raise_for_status()
            sample = parse_scrape(response.content)
        except (httpx.HTTPError, WireError) as problem:
            log.debug("no sample", extra={"worker": worker.name, "problem": repr(problem)})
            return
        if sample.block_size is not None and self._block_size is not None:
            self._block_size(worker.model, sample.block_size)
        if self._fleet.slot_of(worker.name) != slot or sample.running is None or sample.waiting is None:
            return
        usage = float("nan") if sample.kv_usage is None else sample.kv_usage
        # Ours came and went while the page was made: counting the larger number invents no strangers.
        ours = max(before, int(self._fleet.in_flight[slot]))
        strangers = sample.running + sample.waiting - ours
        self._fleet.sample(slot, strangers, usage, self._clock(), sample.kv_capacity_tokens)
