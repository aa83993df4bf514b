"""An engine's metrics page, read into the running totals that a profile can be fitted from.

vLLM has renamed series over the years; `_SUMS` and `_HISTOGRAMS` say every name in the order of preference (a page of
the time between has both, and they must not be added). A data-parallel worker's page holds several engines, told apart
by the label `engine`: each of them makes passes of its own, so each is read on its own. What a page does not have is
not in the totals, which is another thing than 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from penstock.core.wire.scrape import parse_labels

__all__ = ["NAMES", "Buckets", "Reading", "Scrape", "Total", "condensed", "read_page"]


class Total(StrEnum):
    """What is counted since the engine started. Sums of times in seconds."""

    STEPS = "steps"
    """Passes of the engine (in vLLM: those that gave an output)."""
    INTERVALS = "intervals"
    """Output tokens that followed another of the same request: one for each sequence of each pass."""
    INTERVAL_S = "interval_s"
    FIRSTS = "firsts"
    """First tokens, that is, prompts computed."""
    PROMPT = "prompt"
    """Prompt tokens of those, cached ones included."""
    COMPUTED = "computed"
    CACHED = "cached"
    EXTERNAL = "external"
    """Prompt tokens whose KV another worker sent."""
    HITS = "hits"
    """Tokens found in the prefix cache, counted when a request is scheduled."""
    GENERATED = "generated"
    FINISHED = "finished"
    PREEMPTED = "preempted"
    ENDED = "ended"
    """Requests whose times were told at their end; the six below are sums over them."""
    PREFILL_S = "prefill_s"
    DECODE_S = "decode_s"
    ENDED_PROMPT = "ended_prompt"
    ENDED_OUTPUT = "ended_output"
    ENDED_COMPUTED = "ended_computed"
    LENGTHS = "lengths"
    """Requests behind `ENDED_PROMPT`."""


_SUMS: Mapping[Total, tuple[str, ...]] = {
    Total.PROMPT: ("vllm:prompt_tokens_total",),
    Total.HITS: ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    Total.GENERATED: ("vllm:generation_tokens_total",),
    Total.FINISHED: ("vllm:request_success_total",),
    Total.PREEMPTED: ("vllm:num_preemptions_total",),
}
_SOURCES: Mapping[str, Total] = {
    "local_compute": Total.COMPUTED,
    "local_cache_hit": Total.CACHED,
    "external_kv_transfer": Total.EXTERNAL,
}
_HISTOGRAMS: tuple[tuple[tuple[str, ...], Total | None, Total | None], ...] = (
    (("vllm:iteration_tokens_total",), Total.STEPS, None),
    # The older name was observed once for each token, too; it is not the mean of a request that came later.
    (
        ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        Total.INTERVALS,
        Total.INTERVAL_S,
    ),
    (("vllm:time_to_first_token_seconds",), Total.FIRSTS, None),
    (("vllm:request_prefill_time_seconds",), Total.ENDED, Total.PREFILL_S),
    (("vllm:request_decode_time_seconds",), None, Total.DECODE_S),
    (("vllm:request_prompt_tokens",), Total.LENGTHS, Total.ENDED_PROMPT),
    (("vllm:request_generation_tokens",), None, Total.ENDED_OUTPUT),
    (("vllm:request_prefill_kv_computed_tokens",), None, Total.ENDED_COMPUTED),
)
NAMES: Mapping[Total, str] = {
    **{total: names[0] for total, names in _SUMS.items()},
    **{total: names[0] for names, *totals in _HISTOGRAMS for total in totals if total is not None},
}
"""The series, by its present name, that a total is read from."""
_RUNNING = ("vllm:num_requests_running",)
_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_STEP_BUCKETS = "vllm:iteration_tokens_total_bucket"
_LENGTH_BUCKETS = "vllm:request_prompt_tokens_bucket"
_STARTED = ("vllm:generation_tokens_created", "vllm:prompt_tokens_created")
_SOURCED = "vllm:prompt_tokens_by_source_total"
_CONFIG, _SLEEP = "vllm:cache_config_info", "vllm:engine_sleep_state"
_WANTED = (
    *(name for names in _SUMS.values() for name in names),
    *(name + suffix for names, *_ in _HISTOGRAMS for name in names for suffix in ("_sum", "_count")),
    *_RUNNING, *_USAGE, *_STARTED, _STEP_BUCKETS, _LENGTH_BUCKETS, _SOURCED, _CONFIG, _SLEEP,
)  # fmt: skip
"""How lines begin that are read; a page has five times as many, mostly buckets."""

Buckets = dict[float, float]
"""Cumulative count by upper bound."""


class Sample(NamedTuple):
    """One line of a page."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer, or none, of one worker."""

    worker: str
    """Its address, or whatever the file calls it."""
    at_s: float
    """Middle of the request, seconds of any clock that all scrapes of a worker share."""
    took_s: float
    page: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One engine at one time."""

    at_s: float
    took_s: float
    model: str
    running: float | None
    kv_tokens: float | None
    """Tokens that the blocks in use hold, half a block a running sequence taken off; None: usage or size unknown."""
    kv_capacity: int | None
    asleep: bool
    started: float | None
    """Seconds since the epoch at which the engine began to count."""
    totals: dict[Total, float]
    step_buckets: Buckets = field(default_factory=dict)
    """Passes by the tokens they computed."""
    length_buckets: Buckets = field(default_factory=dict)
    """Ended requests by prompt tokens."""


def condensed(page: str) -> str:
    """The lines of a page that are read."""
    return "".join(line + "\n" for line in page.split("\n") if line.startswith(_WANTED))


def read_page(scrape: Scrape) -> dict[str, Reading]:
    """The engines of a page by rank. Raises ValueError, saying what is wrong, for what is no vLLM's page."""
    known = []
    for line in condensed(scrape.page).splitlines():
        try:
            known.append(_sample(line))
        except (ValueError, IndexError):
            raise ValueError(f"what {scrape.worker} sent is no metrics page; a line of it is {line[:80]!r}") from None
    known = [sample for sample in known if math.isfinite(sample.value)]
    if not known:
        raise ValueError(
            f"the page of {scrape.worker} has no vllm: series; give an engine's /metrics, and do not start it with "
            "--disable-log-stats"
        )
    ranks = sorted({s.labels.get("engine", "") for s in known if s.name in _RUNNING}) or [""]
    return {rank: _reading(scrape, [s for s in known if s.labels.get("engine", rank) == rank]) for rank in ranks}


def _sample(line: str) -> Sample:
    """A line of the text format: name, labels if any, value, and a time that nobody needs."""
    name, brace, rest = line.partition("{")
    if not brace:
        name, _, number = line.partition(" ")
        return Sample(name, {}, float(number.split()[0]))
    labels, _, number = rest.rpartition("}")
    return Sample(name, parse_labels(labels), float(number.split()[0]))


def _reading(scrape: Scrape, samples: list[Sample]) -> Reading:
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    running, usage = _first(by_name, _RUNNING), _first(by_name, _USAGE)
    capacity, block = _shape(by_name.get(_CONFIG, []))
    kv = None
    if usage is not None and capacity is not None and running is not None:
        kv = max(usage * capacity - 0.5 * block * running, 0.0)
    states = {s.labels.get("sleep_state"): s.value for s in by_name.get(_SLEEP, [])}
    return Reading(
        at_s=scrape.at_s,
        took_s=scrape.took_s,
        model=next((s.labels["model_name"] for s in samples if s.labels.get("model_name")), ""),
        running=running,
        kv_tokens=kv,
        kv_capacity=capacity,
        asleep=states.get("awake") == 0.0,
        started=_first(by_name, _STARTED),
        totals=_totals(by_name),
        step_buckets=_buckets(by_name.get(_STEP_BUCKETS, [])),
        length_buckets=_buckets(by_name.get(_LENGTH_BUCKETS, [])),
    )


def _first(by_name: Mapping[str, list[Sample]], names: Iterable[str]) -> float | None:
    """The sum of the first series that the page has."""
    found = next((by_name[name] for name in names if name in by_name), None)
    return None if found is None else sum(sample.value for sample in found)


def _totals(by_name: Mapping[str, list[Sample]]) -> dict[Total, float]:
    found: dict[Total, float | None] = {total: _first(by_name, names) for total, names in _SUMS.items()}
    for names, count, amount in _HISTOGRAMS:
        for total, suffix in ((count, "_count"), (amount, "_sum")):
            if total is not None:
                found[total] = _first(by_name, [name + suffix for name in names])
    for sample in by_name.get(_SOURCED, []):
        source = _SOURCES.get(sample.labels.get("source", ""))
        if source is not None:
            found[source] = (found.get(source) or 0.0) + sample.value
    return {total: value for total, value in found.items() if value is not None}


def _buckets(samples: list[Sample]) -> Buckets:
    counts: Buckets = {}
    for sample in samples:
        bound = float(sample.labels.get("le", "nan"))
        counts[bound] = counts.get(bound, 0.0) + sample.value
    ordered = sorted(bound for bound in counts if not math.isnan(bound))
    # A histogram's counts never fall from one bound to the next; one that does is none.
    falls = any(counts[high] < counts[low] for low, high in pairwise(ordered))
    return {} if falls else {bound: counts[bound] for bound in ordered}


def _shape(infos: list[Sample]) -> tuple[int | None, int]:
    """Tokens of the KV cache, and of a block; older versions say blocks only."""
    labels = infos[0].labels if infos else {}

    def whole(name: str) -> int | None:
        return int(labels[name]) if labels.get(name, "").isdigit() else None

    block, blocks = whole("block_size"), whole("num_gpu_blocks")
    tokens = whole("kv_cache_size_tokens") or (blocks * block if blocks and block else None)
    return tokens, block or 0
