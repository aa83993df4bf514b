"""Asking each worker how it does, in its own rhythm, so that one that hangs delays no other.

A scrape that fails leaves the worker's history as it was: the last thing known ages, and the signals say so.
"""

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import aiohttp
from penstock.autoscaler.decisions import TimedSample, WorkerHistory
from penstock.core.wire import WireError, parse_scrape

log = logging.getLogger("penstock.autoscaler.scraper")

MAX_PAGE_BYTES = 4 * 1024 * 1024
_CHUNK = 64 * 1024


class Result(StrEnum):
    """How a scrape ended."""

    OK = "Ok"
    TIMED_OUT = "TimedOut"
    UNREACHABLE = "Unreachable"
    REFUSED = "Refused"
    """Another status than 200."""
    TOO_LARGE = "TooLarge"
    UNREADABLE = "Unreadable"


class _ScrapeError(Exception):
    def __init__(self, result: Result, text: str) -> None:
        super().__init__(text)
        self.result = result


@dataclass(slots=True)
class _Followed:
    """One worker under observation."""

    url: str
    task: asyncio.Task[None]
    samples: deque[TimedSample] = field(default_factory=deque)
    last: Result | None = None


class Scraper:
    """Keeps the history of every worker it is told to follow."""

    def __init__(self, *, interval_s: float, timeout_s: float, window_s: float, at_once: int) -> None:
        self._interval_s, self._timeout_s, self._window_s = interval_s, timeout_s, window_s
        self._places = asyncio.Semaphore(at_once)
        self._followed: dict[str, _Followed] = {}
        self._session: aiohttp.ClientSession | None = None
        self.results: Counter[Result] = Counter()

    async def __aenter__(self) -> "Scraper":
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2 * self._interval_s),
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [followed.task for followed in self._followed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._followed.clear()
        if self._session is not None:
            await self._session.close()

    def follow(self, workers: Iterable[tuple[str, str]]) -> None:
        """Observe exactly these workers (name, metrics URL); the history of one that left is forgotten."""
        wanted = dict(workers)
        for name in [n for n, f in self._followed.items() if wanted.get(n) != f.url]:
            self._followed.pop(name).task.cancel()
        for name in wanted.keys() - self._followed.keys():
            task = asyncio.get_running_loop().create_task(self._observe(name, wanted[name]))
            self._followed[name] = _Followed(wanted[name], task)

    def history(self, name: str) -> WorkerHistory:
        """What is known of a worker; empty for one that is not followed."""
        followed = self._followed.get(name)
        return WorkerHistory(name, tuple(followed.samples) if followed else ())

    async def _observe(self, name: str, url: str) -> None:
        # A first scrape at a random moment spreads the scrapes of workers that came together.
        await asyncio.sleep(random.uniform(0, min(1.0, self._interval_s)))
        while True:
            async with self._places:
                await self._scrape_once(name, url)
            await asyncio.sleep(self._interval_s * random.uniform(0.9, 1.1))

    async def _scrape_once(self, name: str, url: str) -> None:
        try:
            sample = parse_scrape(await self._page(url))
            result, text = Result.OK, ""
        except _ScrapeError as error:
            result, text = error.result, str(error)
        except TimeoutError:
            result, text = Result.TIMED_OUT, f"no answer within {self._timeout_s:g} s"
        except (WireError, ValueError, ArithmeticError, LookupError) as error:
            # A page may hold anything; whatever it does to the reader, the worker stays observed.
            result, text = Result.UNREADABLE, str(error)
        except (aiohttp.ClientError, OSError) as error:
            result, text = Result.UNREACHABLE, repr(error)
        followed = self._followed[name]
        self.results[result] += 1
        if result is Result.OK:
            self._remember(followed.samples, TimedSample(asyncio.get_running_loop().time(), sample))
        if result is not followed.last and (result is not Result.OK or followed.last is not None):
            log.log(
                logging.INFO if result is Result.OK else logging.WARNING,
                "worker answers again" if result is Result.OK else "worker cannot be scraped",
                extra={"worker": name, "url": url, "result": str(result), "error": text},
            )
        followed.last = result

    def _remember(self, samples: deque[TimedSample], timed: TimedSample) -> None:
        samples.append(timed)
        # One that is older stays: a window begins between two scrapes.
        while len(samples) > 1 and samples[1].at <= timed.at - self._window_s:
            samples.popleft()

    async def _page(self, url: str) -> bytes:
        assert self._session is not None
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise _ScrapeError(Result.REFUSED, f"status {response.status}")
            page = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                page += chunk
                if len(page) > MAX_PAGE_BYTES:
                    raise _ScrapeError(Result.TOO_LARGE, f"more than {MAX_PAGE_BYTES} bytes")
            return bytes(page)
