"""What one worker said, and when: the input of every signal."""

from dataclasses import dataclass

from penstock.core.wire import EngineSample


@dataclass(frozen=True, slots=True)
class TimedSample:
    """One scrape of one worker, at a time in seconds on the caller's clock."""

    at: float
    sample: EngineSample


@dataclass(frozen=True, slots=True)
class WorkerHistory:
    """The last samples of one worker, oldest first; none when it was never reached."""

    worker: str
    samples: tuple[TimedSample, ...] = ()
