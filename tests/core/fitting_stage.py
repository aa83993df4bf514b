"""A simulated engine on a virtual clock, scraped now and then: the pages are those that its HTTP server writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from penstock.core.engine import Engine, EngineConfig, Sequence
from penstock.core.models import LatencyProfile, ProfileSource
from penstock.core.models.fitting_pages import Scrape
from penstock.workers.shell.simulated import metrics as metrics_page
from penstock.workers.shell.simulated.accounts import observe_end, write_page
from penstock.workers.shell.simulated.metrics import EngineMetrics
from penstock.workers.shell.simulated.options import parse_options

TRUE = LatencyProfile((15.0, 0.12, 5e-6), (25.0, 0.4, 3e-4), ProfileSource.BENCHMARK, "made up")
BUDGET, SEQUENCES, BLOCK = 1024, 64, 16


@dataclass(frozen=True)
class Asked:
    """One request."""

    at: float
    prompt: int
    output: int
    shared: int = 0
    """Tokens at the beginning that all prompts with the same `stem` share."""
    stem: int = 0
    remote: bool = False
    """Whether its KV comes from another worker."""
    aborted: bool = False
    """Whether its client goes at once, where it would have to wait."""


def traffic(rates: Many[float], seconds_each: float, seed: int = 0, outputs: float = 3.5) -> list[Asked]:
    """Poisson arrivals at one rate after another; log-normal lengths, prompts of some 800 tokens."""
    rng = np.random.default_rng(seed)
    made, begin = [], 0.0
    for rate in rates:
        for at in np.sort(rng.uniform(begin, begin + seconds_each, rng.poisson(rate * seconds_each))):
            prompt = int(np.clip(rng.lognormal(6.5, 0.6), 32, 3000))
            made.append(Asked(float(at), prompt, int(np.clip(rng.lognormal(outputs, 0.5), 4, 400))))
        begin += seconds_each
    return made


def scraped(
    asked: Iterable[Asked],
    *,
    profile: LatencyProfile = TRUE,
    every: float = 1.0,
    seconds: float,
    worker: str = "w",
    budget: int = BUDGET,
    blocks: int = 8192,
    sequences: int = SEQUENCES,
    name: str = "tiny",
    jitter_s: float = 0.0,
) -> list[Scrape]:
    """The pages of an engine that is asked these, one every `every` seconds from 0 on; `jitter_s` is how far off the
    times are that the scraper writes on them."""
    flags = ["--served-model-name", name, "--profile", json.dumps(profile.to_dict()), "--block-size", str(BLOCK)]
    flags += ["--num-gpu-blocks-override", str(blocks), "--max-model-len", "8192"]
    options = parse_options(flags, {})
    metrics = EngineMetrics(name, options.max_model_len, lora=False, transfer=False)
    metrics.set("engine_sleep_state", 1.0, "awake")
    config = EngineConfig(
        num_blocks=blocks, block_size=BLOCK, max_num_batched_tokens=budget, max_num_seqs=sequences, max_model_len=8192
    )
    engine = Engine(config, profile)
    line = sorted(asked, key=lambda one: one.at)
    pages: list[Scrape] = []
    rng = np.random.default_rng(0)
    due, now, step, ends, place = 0.0, 0.0, None, 0.0, 0
    while due <= seconds:
        arrival = line[place].at if place < len(line) else float("inf")
        now = min(ends if step is not None else float("inf"), arrival, due)
        if step is not None and ends <= now:
            outputs = engine.complete(step, now)
            metrics.histogram("iteration_tokens_total").observe(step.tokens)
            for token in outputs.tokens:
                name = "inter_token_latency_seconds" if token.number else "time_to_first_token_seconds"
                metrics.histogram(name).observe(token.interval)
            for end in outputs.finished:
                observe_end(metrics, end, str(end.reason))
            step = None
        elif arrival <= now:
            _ask(engine, line[place], place, now)
            if line[place].aborted and step is not None:
                end = engine.abort(str(place), now)
                if end is not None:
                    observe_end(metrics, end, "abort")
            place += 1
        else:
            with patch.object(metrics_page, "_process_lines", list):  # They cost more than all else.
                page = write_page(metrics, engine.stats(), options, ()).decode()
            pages.append(Scrape(worker, due + jitter_s * float(rng.uniform(-1, 1)), 0.005, page))
            due += every
        if step is None:
            step = engine.schedule(now)
            for transfer in engine.take_transfers():
                engine.remote_kv_arrived(transfer.id)
            step = step or engine.schedule(now)
            ends = now + step.duration_ms / 1e3 if step is not None else 0.0
    return pages


def _ask(engine: Engine, one: Asked, place: int, now: float) -> None:
    whose = [
        ("stem", one.stem) if index * BLOCK < one.shared else ("own", place) for index in range(one.prompt // BLOCK)
    ]
    hashes = tuple(hash((*whose[index], index)) for index in range(one.prompt // BLOCK))
    sequence = Sequence(str(place), one.prompt, one.output, block_hashes=hashes)
    if one.remote:
        engine.admit_with_remote_kv(sequence, one.prompt, now)
    else:
        engine.add(sequence, now)
