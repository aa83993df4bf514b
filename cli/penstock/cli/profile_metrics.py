"""A fit from workers' `/metrics`: scraped now, read from a file of scrapes, or both; and how it is told."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.cli.profile_scrape import MOST_SCRAPES, Scraping, Tally, metrics_url, scrape
from penstock.cli.profile_scrapes_file import line_of, read_scrapes
from penstock.core.models.fitting_metrics import MetricsFit, fit_metrics
from penstock.core.models.fitting_pages import Scrape
from penstock.core.models.fitting_solve import Quality
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_SHOW_S, _PLAIN_S = 0.5, 10.0
_COEFFICIENTS = (
    ("prefill base", "ms"), ("per token", "us"), ("per squared token", "ns"),
    ("decode base", "ms"), ("per sequence", "ms"), ("per token of context", "us"),
)  # fmt: skip
_UNIT = {"ms": 1.0, "us": 1e3, "ns": 1e6}
_BARE = re.compile(r"[^/]+:\d+(/.*)?")
"""An address that lacks its scheme."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to scrape, and how."""

    sources: Sequence[str]
    """URLs of workers, and files of scrapes."""
    interval_s: float
    duration_s: float
    timeout_s: float
    save: Path | None
    max_num_batched_tokens: int | None

    def __post_init__(self) -> None:
        if not 0.1 <= self.interval_s <= 600.0:
            raise ValueError(f"an interval of {self.interval_s:g} s; give 100ms to 10m, as passes take milliseconds")
        if self.timeout_s <= 0:
            raise ValueError("a time-out of 0 s waits for nothing; give one above 0")
        count = len(self.urls) * self.duration_s / self.interval_s
        if count > MOST_SCRAPES:
            raise ValueError(f"{count:.0f} scrapes are more than {MOST_SCRAPES}; scrape less often or for less long")
        if self.urls and self.duration_s < 2 * self.interval_s:
            raise ValueError("fewer than three scrapes tell nothing; scrape more often or for longer")
        if self.save is not None and not self.urls:
            raise ValueError("--save writes what is scraped, and no source is a URL; leave it out")
        if self.save is not None and not self.save.absolute().parent.is_dir():
            raise ValueError(f"{self.save} cannot be written: its folder does not exist")
        if self.save is not None and self.save.resolve() in [file.resolve() for file in self.files]:
            raise ValueError(f"--save would overwrite {self.save}, which is read; give another file")
        for file in self.files:
            if _BARE.fullmatch(str(file)) and not file.exists():
                raise ValueError(f"there is no file {file}; to scrape a worker there write http://{file}")

    @property
    def urls(self) -> list[str]:
        """The metrics pages to fetch, each once."""
        return list(dict.fromkeys(metrics_url(source) for source in self.sources if "://" in source))

    @property
    def files(self) -> list[Path]:
        """The files to read."""
        return [Path(source) for source in self.sources if "://" not in source]


def fit_from_metrics(wanted: Wanted, provenance: str, console: Console) -> MetricsFit:
    """Gather the scrapes and fit. Raises ValueError, saying what is lacking, and OSError for files."""
    scrapes = [found for file in wanted.files for found in read_scrapes(file)]
    if wanted.urls:
        scrapes += _scraped(wanted, console)
    said = provenance or f"penstock profile fit --metrics, {len(scrapes)} scrapes"
    try:
        return fit_metrics(scrapes, said, max_num_batched_tokens=wanted.max_num_batched_tokens)
    except ValueError as error:
        if not scrapes or not wanted.urls:
            raise
        kept = f"the scrapes are in {wanted.save}" if wanted.save else "with --save the scrapes would be kept"
        raise ValueError(f"{error}; {kept}, and files of several times can be fitted together") from None


def report(made: MetricsFit) -> Iterator[str]:
    """What a person should know of the fit, a sentence a line."""
    for phase, quality in (("prefill", made.fit.prefill), ("decode", made.fit.decode)):
        yield f"{phase}: {sentence(quality)}, of intervals held out"
    profile = made.fit.profile
    values = zip(_COEFFICIENTS, (*profile.prefill, *profile.decode), made.spread, strict=True)
    yield "coefficients: " + ", ".join(
        f"{name} {value * _UNIT[unit]:.3g} ± {spread * _UNIT[unit]:.2g} {unit}"
        for (name, unit), value, spread in values
    )
    yield f"seen: {made.seen.sentence}"
    left_out = "; ".join(f"{count} x {reason}" for reason, count in made.dropped.most_common())
    yield (
        f"{made.used} intervals of {len(made.engines)} engine{'s' if len(made.engines) > 1 else ''} over "
        f"{made.seconds:.0f} s used" + (f"; left out of one equation or of all: {left_out}" if left_out else "")
    )
    for note in made.notes:
        yield f"note: {note}"


def sentence(quality: Quality) -> str:
    """How far off a fit is."""
    return (
        f"off by {quality.mean_error:.1%} on average, {quality.median_error:.1%} at the median, "
        f"{quality.p95_error:.1%} at the 95 % quantile of {quality.samples} samples; R2 {quality.r_squared:.3f}"
    )


# Scraping, and showing it.


def _scraped(wanted: Wanted, console: Console) -> list[Scrape]:
    """Fetch until the time is over or somebody presses Ctrl-C. Raises ValueError when nobody ever answered."""
    plan = Scraping(wanted.urls, wanted.interval_s, wanted.duration_s, wanted.timeout_s)
    with ExitStack() as stack:
        file = None
        if wanted.save is not None:
            file = stack.enter_context(wanted.save.open("w", encoding="utf-8", buffering=1))

        def keep(found: Scrape) -> None:
            if file is not None:
                file.write(line_of(found))

        interrupted = asyncio.run(_run(plan, keep, console))
    for tally in plan.tallies:
        if tally.failed:
            said = f"{tally.url}: {tally.answered} scrapes, {tally.failed} failed, the last with: {tally.problem}"
            console.print(f"profile: {said}", highlight=False, markup=False, soft_wrap=True)
    if plan.hopeless:
        raise ValueError("no worker answered; give the address of an engine, such as http://127.0.0.1:8000")
    if interrupted:
        said = f"stopped after {time.monotonic() - plan.began_s:.0f} s; fitting what was scraped until then"
        console.print(f"profile: {said}", highlight=False, markup=False, soft_wrap=True)
    return plan.scrapes


async def _run(plan: Scraping, keep: Callable[[Scrape], None], console: Console) -> bool:
    """Scrape; whether a signal ended it. A second Ctrl-C, while fitting, ends the program."""
    stop, interrupted = asyncio.Event(), False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    with _shown(plan, console) as show:
        ticker = loop.create_task(_tick(show))
        try:
            await scrape(plan, stop, keep)
        finally:
            ticker.cancel()
            show()
    return interrupted


async def _tick(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(_SHOW_S)


@contextmanager
def _shown(plan: Scraping, console: Console) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("scraping"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=plan.duration_s)
            yield lambda: bar.update(task, completed=_elapsed(plan), description=_state(plan.tallies))
        return
    said = -_PLAIN_S

    def show() -> None:
        nonlocal said
        if _elapsed(plan) - said >= _PLAIN_S:
            said = _elapsed(plan)
            line = f"profile: {said:.0f} of {plan.duration_s:.0f} s, {_state(plan.tallies)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    yield show


def _elapsed(plan: Scraping) -> float:
    return min(time.monotonic() - plan.began_s, plan.duration_s) if plan.began_s else 0.0


def _state(tallies: Sequence[Tally]) -> str:
    failed = sum(one.failed for one in tallies)
    silent = sum(one.in_a_row > 0 for one in tallies)
    said = f"{sum(one.answered for one in tallies)} scrapes"
    if failed:
        said += f", {failed} failed"
    return said + (f", {silent} of {len(tallies)} workers silent" if silent else "")
