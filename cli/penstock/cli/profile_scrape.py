"""Workers' metrics pages, fetched at an interval for a time; a worker that does not answer is asked less often.

Nothing is retried within an interval: a page that comes late is of another time. What a worker failed with is kept to
be told, and when none of them has ever answered the scraping ends early.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
from penstock.core.models.fitting_pages import Scrape, condensed, read_page

MOST_BYTES = 16 << 20
"""Bound on a page; vLLM's has some 50 kB."""
MOST_SCRAPES = 100_000
_SLOWEST_S = 15.0
_TRIES = 3
"""Failures of every worker from the start after which nobody is there."""


@dataclass(slots=True)
class Tally:
    """How one worker answered."""

    url: str
    answered: int = 0
    failed: int = 0
    in_a_row: int = 0
    problem: str = ""
    """Of the last failure."""


@dataclass(slots=True)
class Scraping:
    """What to fetch, and what came of it so far."""

    urls: Sequence[str]
    interval_s: float
    duration_s: float
    timeout_s: float
    scrapes: list[Scrape] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    began_s: float = 0.0

    @property
    def hopeless(self) -> bool:
        """Whether no worker ever answered, though each was asked often enough."""
        return all(one.answered == 0 and one.failed >= _TRIES for one in self.tallies)


def metrics_url(text: str) -> str:
    """The address of a metrics page: of a worker's base URL, that of its `/metrics`. Raises ValueError for no URL."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is no address ({error}); write http://HOST:PORT") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{text!r} is no address; write http://HOST:PORT")
    return text if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"


async def scrape(plan: Scraping, stop: asyncio.Event, keep: Callable[[Scrape], None]) -> None:
    """Fetch every worker's page at the interval until the time is over or `stop` is set; each page that is one goes
    to `plan.scrapes` and to `keep`."""
    plan.tallies = [Tally(url) for url in plan.urls]
    plan.began_s = time.monotonic()
    # Wall time is looked at once: a clock that is set right meanwhile must not stretch an interval.
    offset = time.time() - plan.began_s
    limits = httpx.Limits(max_connections=2 * len(plan.urls))
    async with httpx.AsyncClient(timeout=plan.timeout_s, limits=limits, trust_env=False) as client:
        tasks = [asyncio.create_task(_follow(plan, one, client, offset, stop, keep)) for one in plan.tallies]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


async def _follow(
    plan: Scraping, tally: Tally, client: httpx.AsyncClient, offset: float, stop: asyncio.Event,
    keep: Callable[[Scrape], None],
) -> None:  # fmt: skip
    """One worker, from the first page to the last."""
    due = plan.began_s + plan.interval_s * random.uniform(0.0, 0.5)  # Not all of them in one moment.
    ends = plan.began_s + plan.duration_s
    while not stop.is_set():
        await _wait(stop, due - time.monotonic())
        if stop.is_set():
            return
        await _once(plan, tally, client, offset, keep)
        if plan.hopeless:
            stop.set()
        now = time.monotonic()
        if due >= ends:
            return
        due = next_due(due, now, plan.interval_s, tally.in_a_row)
        # The last page is of the end, so that a worker whose interval is long is still seen there.
        due = min(due, ends)


def next_due(due: float, now: float, interval_s: float, failures: int) -> float:
    """When to ask again: at the next whole interval that has not passed, or later and later while nobody answers."""
    if failures:
        pause: float = min(interval_s * 2.0 ** min(failures, 10), max(_SLOWEST_S, interval_s))
        return now + pause * random.uniform(0.8, 1.2)
    missed = max(int((now - due) // interval_s), 0)
    return due + (missed + 1) * interval_s


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(seconds, 0.0))


async def _once(
    plan: Scraping, tally: Tally, client: httpx.AsyncClient, offset: float, keep: Callable[[Scrape], None]
) -> None:
    began = time.monotonic()
    try:
        page = await asyncio.wait_for(_fetch(client, tally.url), plan.timeout_s)
        ended = time.monotonic()
        found = Scrape(tally.url, (began + ended) / 2 + offset, ended - began, condensed(page))
        read_page(found)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, OSError) as error:
        tally.failed += 1
        tally.in_a_row += 1
        tally.problem = _said(error, plan.timeout_s)
        return
    tally.answered += 1
    tally.in_a_row = 0
    plan.scrapes.append(found)
    keep(found)


async def _fetch(client: httpx.AsyncClient, url: str) -> str:
    """A page of bounded size. Raises httpx.HTTPError, and ValueError for one that is larger."""
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > MOST_BYTES:
                raise ValueError(f"the answer is larger than {MOST_BYTES >> 20} MiB")
            parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _said(error: Exception, timeout_s: float) -> str:
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return str(error) or type(error).__name__
