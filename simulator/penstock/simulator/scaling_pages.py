"""What a simulated worker's metrics page says, as far as the autoscaler reads it, and the rhythm of its readings."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from penstock.autoscaler.decisions.observations import TimedSample
from penstock.core.wire import EngineSample, Total
from penstock.simulator.events import SCRAPE, EventQueue
from penstock.simulator.scaling_pods import Pod
from penstock.simulator.worker import TwinWorker

__all__ = ["Scrapes", "engine_sample"]

_FIRST_S = 1.0
_JITTER = 0.1


def engine_sample(worker: TwinWorker, now: float) -> EngineSample:
    """The page of a worker at `now`, counters since its engine started."""
    worker.settle(now)
    stats, config = worker.engine.stats(), worker.spec.config
    sources = stats.prompt_tokens_by_source
    ended = float(sum(stats.finished.values()))
    return EngineSample(
        running=float(stats.running),
        waiting=float(stats.waiting),
        kv_usage=stats.kv_usage,
        ranks=1,
        prompt_tokens=float(stats.prompt_tokens),
        cached_prompt_tokens=float(sources.local_cache_hit + sources.external_kv_transfer),
        generation_tokens=float(stats.generation_tokens),
        prefix_queries=float(stats.prefix_queries),
        prefix_hits=float(stats.prefix_hits),
        preemptions=float(stats.preemptions),
        finished={str(reason): float(count) for reason, count in stats.finished.items()},
        prompt_length=Total(float(worker.prompt_ended), ended),
        output_length=Total(float(worker.output_ended), ended),
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        kv_capacity_tokens=config.num_blocks * config.block_size,
    )


class Scrapes:
    """One rhythm for each pod, with the scraper's own jitter, from the time its engine is up."""

    def __init__(
        self, events: EventQueue, interval_s: float, window_s: float, seed: int, answers: Callable[[Pod], bool]
    ) -> None:
        """`answers(pod)` says whether a pod's page can be had now."""
        self._events, self._interval_s, self._window_s = events, interval_s, window_s
        self._seed, self._answers = seed, answers

    def follow(self, pod: Pod, now: float) -> None:
        """Look at a pod from now on."""
        chance = random.Random(f"{self._seed} scrapes {pod.name}")
        first = now + chance.uniform(0.0, min(_FIRST_S, self._interval_s))
        self._events.at(first, SCRAPE, pod.number, partial(self._scrape, pod, chance))

    def _scrape(self, pod: Pod, chance: random.Random, now: float, _: int) -> None:
        worker = pod.worker
        if worker is None or worker.gone_s <= now or pod.deleted_s is not None:
            return
        if not pod.started:
            pod.samples.clear()  # A new engine is a new history.
        elif self._answers(pod):
            pod.samples.append(TimedSample(now, engine_sample(worker, now)))
            while len(pod.samples) > 1 and pod.samples[1].at <= now - self._window_s:
                pod.samples.popleft()
        pause = self._interval_s * chance.uniform(1.0 - _JITTER, 1.0 + _JITTER)
        self._events.at(now + pause, SCRAPE, pod.number, partial(self._scrape, pod, chance))
