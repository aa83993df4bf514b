"""The metrics page of the simulated engine: counted as it runs, written only when somebody scrapes.

Counting must be nearly free, since it happens once a token; so a counter is a number in a dict, a histogram a list of
bucket counts found by bisection, and labels become text at the scrape.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path

from penstock.core.wire.metrics import (
    CACHE_CONFIG_INFO,
    CACHED_SOURCES,
    ENGINE_METRICS,
    FINISHED_REASONS,
    PROMPT_SOURCES,
    SLEEP_STATES,
    WAITING_REASONS,
    Kind,
    Metric,
    When,
)

LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SMALL_BUCKETS = (0, 1, 2, 5, 10, 20)
TRANSFER_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
BYTES_BUCKETS = tuple(float(1 << power) for power in range(17, 36, 2))

_SUBLABELS: Mapping[str, tuple[str, ...]] = {
    "vllm:request_success": FINISHED_REASONS,
    "vllm:num_requests_waiting_by_reason": WAITING_REASONS,
    "vllm:prompt_tokens_by_source": PROMPT_SOURCES,
    "vllm:prompt_tokens_cached_by_source": CACHED_SOURCES,
    "vllm:engine_sleep_state": SLEEP_STATES,
}
"""Values of the third label of those families that have one; all of them are on the page from the start."""


def count_buckets(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to `largest`: the buckets of request sizes."""
    bounds = [mantissa * 10**power for power in range(len(str(largest))) for mantissa in (1, 2, 5)]
    return tuple(float(bound) for bound in bounds if bound <= largest)


class Histogram:
    """Counts per bucket, sum and count; `observe` is the hot path."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = list(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, as often as `times` says."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class EngineMetrics:
    """All families of one engine. `values` holds counters and gauges by (family, third label)."""

    def __init__(self, model_name: str, max_model_len: int, *, lora: bool, transfer: bool) -> None:
        on_page = {When.ALWAYS, *([When.TRANSFER] if transfer else [])}
        self._families = [metric for metric in ENGINE_METRICS.values() if metric.when in on_page]
        self._labels = f'engine="0",model_name="{escape(model_name)}"'
        self._created = time.time()
        self.values: dict[tuple[str, str], float] = {}
        self.histograms: dict[str, Histogram] = {}
        self._lora = lora
        self.lora_info: dict[tuple[str, str, str], float] = {}
        """Seconds since the epoch by (max_lora, running adapters, waiting adapters)."""
        for metric in self._families:
            if metric.kind is Kind.HISTOGRAM:
                self.histograms[metric.name] = Histogram(_buckets(metric.name, max_model_len))
            else:
                for label in _SUBLABELS.get(metric.name, ("",)):
                    self.values[metric.name, label] = 0.0

    def add(self, name: str, amount: float = 1.0, label: str = "") -> None:
        """Raise a counter; `name` without `vllm:` and `_total`."""
        self.values[f"vllm:{name}", label] += amount

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge."""
        self.values[f"vllm:{name}", label] = value

    def histogram(self, name: str) -> Histogram:
        """The histogram of that name, for a caller that observes often."""
        return self.histograms[f"vllm:{name}"]

    def render(self, cache_config: Mapping[str, str]) -> bytes:
        """The page in Prometheus' text format 0.0.4."""
        lines: list[str] = []
        for metric in self._families:
            if metric.kind is Kind.HISTOGRAM:
                self._render_histogram(metric, lines)
            else:
                self._render_values(metric, lines)
        if self._lora:
            self._render_lora(lines)
        labels = ",".join(f'{name}="{escape(value)}"' for name, value in sorted(cache_config.items()))
        lines += _head(CACHE_CONFIG_INFO, "Information of the LLMEngine CacheConfig", "gauge")
        lines.append(f"{CACHE_CONFIG_INFO}{{{labels}}} 1.0")
        lines += _process_lines()
        return "\n".join(lines).encode() + b"\n"

    def _render_values(self, metric: Metric, lines: list[str]) -> None:
        counter = metric.kind is Kind.COUNTER
        name = metric.name + "_total" if counter else metric.name
        samples = [(self._full(metric, label), label) for label in _SUBLABELS.get(metric.name, ("",))]
        lines += _head(name, metric.help, metric.kind)
        lines += [f"{name}{{{labels}}} {self.values[metric.name, label]}" for labels, label in samples]
        if counter:
            self._render_created(metric, [labels for labels, _ in samples], lines)

    def _render_histogram(self, metric: Metric, lines: list[str]) -> None:
        histogram = self.histograms[metric.name]
        lines += _head(metric.name, metric.help, metric.kind)
        running = 0
        for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
            running += count
            text = "+Inf" if bound == float("inf") else str(float(bound))
            lines.append(f'{metric.name}_bucket{{engine="0",le="{text}",{self._labels[11:]}}} {float(running)}')
        lines.append(f"{metric.name}_count{{{self._labels}}} {float(running)}")
        lines.append(f"{metric.name}_sum{{{self._labels}}} {histogram.sum}")
        self._render_created(metric, [self._labels], lines)

    def _render_created(self, metric: Metric, labels: list[str], lines: list[str]) -> None:
        lines += _head(f"{metric.name}_created", metric.help, "gauge")
        lines += [f"{metric.name}_created{{{text}}} {self._created!r}" for text in labels]

    def _render_lora(self, lines: list[str]) -> None:
        metric = ENGINE_METRICS["vllm:lora_requests_info"]
        lines += _head(metric.name, metric.help, metric.kind)
        for values, seconds in self.lora_info.items():
            labels = ",".join(f'{name}="{escape(v)}"' for name, v in zip(metric.labels, values, strict=True))
            lines.append(f"{metric.name}{{{labels}}} {seconds!r}")

    def _full(self, metric: Metric, label: str) -> str:
        return f'{self._labels},{metric.labels[-1]}="{label}"' if label else self._labels


def escape(value: str) -> str:
    """A label value as the text format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _buckets(name: str, max_model_len: int) -> tuple[float, ...]:
    known: Mapping[str, tuple[float, ...]] = {
        "vllm:iteration_tokens_total": ITERATION_BUCKETS,
        "vllm:request_params_n": SMALL_BUCKETS[1:],
        "vllm:request_num_preemptions": SMALL_BUCKETS,
        "vllm:time_to_first_token_seconds": TTFT_BUCKETS,
        "vllm:inter_token_latency_seconds": TOKEN_BUCKETS,
        "vllm:request_time_per_output_token_seconds": TOKEN_BUCKETS,
        "vllm:nixl_xfer_time_seconds": TRANSFER_BUCKETS,
        "vllm:nixl_post_time_seconds": TRANSFER_BUCKETS,
        "vllm:nixl_bytes_transferred": BYTES_BUCKETS,
    }
    return known.get(name) or (LATENCY_BUCKETS if name.endswith("_seconds") else count_buckets(max_model_len))


def _process_lines() -> list[str]:
    """The process' own CPU time and memory, as every Prometheus client exports them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return [
        *_head("process_cpu_seconds_total", "User and system CPU time in seconds.", "counter"),
        f"process_cpu_seconds_total {time.process_time():.2f}",
        *_head("process_resident_memory_bytes", "Resident memory size in bytes.", "gauge"),
        f"process_resident_memory_bytes {float(pages * 4096)}",
    ]
