"""From the engine's records to vLLM's metrics: which figure goes into which family."""

import math
import time
from collections.abc import Iterable

from penstock.core.engine import EngineStats, Finished
from penstock.workers.decisions.simulated.requests import Generation
from penstock.workers.shell.simulated.metrics import EngineMetrics
from penstock.workers.shell.simulated.options import Options


def observe_request(metrics: EngineMetrics, generation: Generation) -> None:
    """Count what a request asks for."""
    metrics.histogram("request_params_n").observe(generation.n)
    metrics.histogram("request_params_max_tokens").observe(generation.max_tokens)


def observe_end(metrics: EngineMetrics, end: Finished, reason: str) -> None:
    """Count a sequence's end: times in seconds, sizes in tokens; what never happened to it is not counted."""
    metrics.add("request_success", label=reason)
    timing = end.timing
    running = None if timing.scheduled is None else timing.finished - timing.scheduled
    per_token = None
    if timing.decode_seconds is not None and end.output_tokens > 1:
        per_token = timing.decode_seconds / (end.output_tokens - 1)
    figures = {
        "e2e_request_latency_seconds": timing.finished - timing.arrival,
        "request_queue_time_seconds": timing.queue_seconds,
        "request_prefill_time_seconds": timing.prefill_seconds,
        "request_decode_time_seconds": timing.decode_seconds,
        "request_inference_time_seconds": running,
        "request_time_per_output_token_seconds": per_token,
        "request_prompt_tokens": end.prompt_tokens,
        "request_generation_tokens": end.output_tokens,
        "request_max_num_generation_tokens": end.output_tokens,
        "request_num_preemptions": end.preemptions,
        # As vLLM counts it: KV that came from a peer is in it, too. `prompt_tokens_by_source` tells them apart.
        "request_prefill_kv_computed_tokens": end.prompt_tokens - end.cached_tokens,
    }
    for name, value in figures.items():
        if value is not None:
            metrics.histogram(name).observe(value)


def write_page(metrics: EngineMetrics, stats: EngineStats, options: Options, adapters: Iterable[str]) -> bytes:
    """The metrics page, gauges and counters as `stats` has them; `adapters` are those with requests."""
    put = metrics.set
    put("num_requests_running", stats.running)
    put("num_requests_waiting", stats.waiting)
    put("num_requests_waiting_by_reason", stats.waiting_capacity, "capacity")
    put("num_requests_waiting_by_reason", stats.waiting_deferred, "deferred")
    put("kv_cache_usage_perc", stats.kv_usage)
    put("prefix_cache_queries", stats.prefix_queries)
    put("prefix_cache_hits", stats.prefix_hits)
    put("external_prefix_cache_queries", stats.external_queries)
    put("external_prefix_cache_hits", stats.external_hits)
    put("num_preemptions", stats.preemptions)
    put("prompt_tokens", stats.prompt_tokens)
    put("generation_tokens", stats.generation_tokens)
    sources = stats.prompt_tokens_by_source
    put("prompt_tokens_by_source", sources.local_compute, "local_compute")
    put("prompt_tokens_by_source", sources.local_cache_hit, "local_cache_hit")
    put("prompt_tokens_by_source", sources.external_kv_transfer, "external_kv_transfer")
    put("prompt_tokens_cached", sources.local_cache_hit + sources.external_kv_transfer)
    put("prompt_tokens_cached_by_source", sources.local_cache_hit, "device")
    put("prompt_tokens_cached_by_source", sources.external_kv_transfer, "p2p")
    if options.kv_transfer is not None:
        put("nixl_num_failed_transfers", stats.transfers_failed)
        put("nixl_num_kv_expired_reqs", stats.leases_expired)
    if options.enable_lora:
        # The value is a time and series of other combinations stay: a reader takes the latest.
        metrics.lora_info[str(options.max_loras), ",".join(sorted(adapters)), ""] = math.floor(time.time())
    return metrics.render(_cache_config(options))


def _cache_config(options: Options) -> dict[str, str]:
    """The labels from which a scraper learns the worker's shape."""
    return {
        "engine": "0",
        "block_size": str(options.block_size),
        "num_gpu_blocks": str(options.num_blocks),
        "num_gpu_blocks_override": str(options.num_blocks),
        "kv_cache_size_tokens": str(options.num_blocks * options.block_size),
        "enable_prefix_caching": str(options.prefix_caching),
        "prefix_caching_hash_algo": "sha256_cbor",
        "cache_dtype": "auto",
        "gpu_memory_utilization": "0.9",
    }
