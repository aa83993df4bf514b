"""One worker's metrics page, read into the few numbers the control plane acts on.

A page has some 500 lines, most of them histogram buckets; this reader takes the series it knows and passes over the
rest without parsing their labels. A number the page does not have is None, never zero.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.core.wire.errors import WireError


@dataclass(frozen=True, slots=True)
class Total:
    """A histogram's running sum and count since the engine started."""

    sum: float
    count: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """One scrape of one worker; counters are totals since the engine started, summed over its ranks."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """0 to 1, the mean of the ranks."""
    ranks: int = 0
    """Data-parallel engine ranks behind this page."""
    models: tuple[str, ...] = ()
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    generation_tokens: float | None = None
    prefix_queries: float | None = None
    """Tokens looked up in the prefix cache; `prefix_hits` of them were found."""
    prefix_hits: float | None = None
    preemptions: float | None = None
    finished: dict[str, float] = field(default_factory=dict)
    """Requests ended, by reason: stop, length, abort, error, repetition."""
    prompt_tokens_by_source: dict[str, float] = field(default_factory=dict)
    ttft: Total | None = None
    """Seconds from arrival to the first token."""
    inter_token: Total | None = None
    tpot: Total | None = None
    """Seconds per output token of a finished request, the first token aside."""
    e2e: Total | None = None
    queue: Total | None = None
    prefill: Total | None = None
    decode: Total | None = None
    prompt_length: Total | None = None
    """Prompt tokens of finished requests."""
    output_length: Total | None = None
    """Tokens generated for finished requests."""
    block_size: int | None = None
    num_blocks: int | None = None
    kv_capacity_tokens: int | None = None
    sleeping: bool | None = None


_SUMS = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:kv_cache_usage_perc": "kv_usage",
    b"vllm:prompt_tokens_total": "prompt_tokens",
    b"vllm:prompt_tokens_cached_total": "cached_prompt_tokens",
    b"vllm:generation_tokens_total": "generation_tokens",
    b"vllm:prefix_cache_queries_total": "prefix_queries",
    b"vllm:prefix_cache_hits_total": "prefix_hits",
    b"vllm:num_preemptions_total": "preemptions",
}
_TOTALS = {
    b"vllm:time_to_first_token_seconds": "ttft",
    b"vllm:inter_token_latency_seconds": "inter_token",
    b"vllm:request_time_per_output_token_seconds": "tpot",
    b"vllm:e2e_request_latency_seconds": "e2e",
    b"vllm:request_queue_time_seconds": "queue",
    b"vllm:request_prefill_time_seconds": "prefill",
    b"vllm:request_decode_time_seconds": "decode",
    b"vllm:request_prompt_tokens": "prompt_length",
    b"vllm:request_generation_tokens": "output_length",
}
_BY_LABEL = {
    b"vllm:request_success_total": ("finished", "finished_reason"),
    b"vllm:prompt_tokens_by_source_total": ("prompt_tokens_by_source", "source"),
}
_CONFIG = b"vllm:cache_config_info"
_SLEEP = b"vllm:engine_sleep_state"

_WANTED = frozenset(
    [*_SUMS, *_BY_LABEL, _CONFIG, _SLEEP, *(n + b"_sum" for n in _TOTALS), *(n + b"_count" for n in _TOTALS)]
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def parse_labels(text: str) -> dict[str, str]:
    """The labels between a series' braces, escapes undone."""
    unescape: Callable[[re.Match[str]], str] = lambda m: "\n" if m[1] == "n" else m[1]  # noqa: E731
    return {name: _ESCAPE.sub(unescape, value) for name, value in _LABEL.findall(text)}


def parse_scrape(page: bytes) -> EngineSample:
    """Read a metrics page of vLLM's; raises `WireError` where no line of it is one."""
    seen: dict[bytes, list[tuple[bytes, float]]] = {}
    known = False
    for line in page.split(b"\n"):
        if not line.startswith(b"vllm:"):
            continue
        known = True
        name, brace, rest = line.partition(b"{")
        if not brace:
            name, _, rest = line.partition(b" ")
        if name not in _WANTED:
            continue
        labels, closed, number = rest.rpartition(b"}")
        value = _number(number if closed else rest)
        if value is not None:
            seen.setdefault(name, []).append((labels, value))
    if not known:
        raise WireError(f"a metrics page of {len(page)} bytes has no vllm: series; is this address an engine?")
    return _sample(seen)


def _number(text: bytes) -> float | None:
    """The value of a sample line's tail (`value [timestamp]`); None for NaN and for what is no number."""
    try:
        value = float(text.split(None, 1)[0])
    except (ValueError, IndexError):
        return None
    return None if value != value else value


Series = dict[bytes, list[tuple[bytes, float]]]


def _sample(seen: Series) -> EngineSample:
    fields: dict[str, Any] = {attribute: _total(seen, name) for name, attribute in _SUMS.items()}
    if fields["kv_usage"] is not None:
        fields["kv_usage"] /= len(seen[b"vllm:kv_cache_usage_perc"])
    for name, attribute in _TOTALS.items():
        value, count = _total(seen, name + b"_sum"), _total(seen, name + b"_count")
        fields[attribute] = Total(value, count) if value is not None and count is not None else None
    for name, (attribute, label) in _BY_LABEL.items():
        fields[attribute] = _by_label(seen.get(name, []), label)
    ranks = len(seen.get(b"vllm:num_requests_running", ()))
    return EngineSample(**fields, **_shape(seen), ranks=ranks, models=_models(seen), sleeping=_sleeping(seen))


def _total(seen: Series, name: bytes) -> float | None:
    return sum(value for _, value in seen[name]) if name in seen else None


def _by_label(series: list[tuple[bytes, float]], label: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for text, value in series:
        key = parse_labels(text.decode(errors="replace")).get(label, "")
        sums[key] = sums.get(key, 0.0) + value
    return sums


def _models(seen: Series) -> tuple[str, ...]:
    labels = (parse_labels(text.decode(errors="replace")) for text, _ in seen.get(b"vllm:num_requests_running", ()))
    return tuple(dict.fromkeys(found["model_name"] for found in labels if "model_name" in found))


def _shape(seen: Series) -> dict[str, Any]:
    """Block size, blocks and tokens of the KV cache, summed over ranks, from the labels of cache_config_info."""
    configs = [parse_labels(text.decode(errors="replace")) for text, _ in seen.get(_CONFIG, ())]

    def whole(label: str) -> list[int]:
        return [int(config[label]) for config in configs if config.get(label, "").isdigit()]

    sizes, blocks, tokens = whole("block_size"), whole("num_gpu_blocks"), whole("kv_cache_size_tokens")
    capacity = sum(tokens) if tokens else (sum(blocks) * sizes[0] if blocks and sizes else None)
    return {
        "block_size": sizes[0] if sizes else None,
        "num_blocks": sum(blocks) if blocks else None,
        "kv_capacity_tokens": capacity,
    }


def _sleeping(seen: Series) -> bool | None:
    """Whether every rank sleeps: its `awake` state is 0."""
    states = _by_label(seen.get(_SLEEP, []), "sleep_state")
    return states["awake"] == 0 if "awake" in states else None
