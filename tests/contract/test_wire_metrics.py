"""vLLM's metric families, as a 0.32 engine was seen to export them: the list the rest of the house is held against."""

import pytest
from penstock.core.wire import ENGINE_METRICS, Kind, When

COUNTERS = """admission_rejections estimated_flops_per_gpu estimated_read_bytes_per_gpu estimated_write_bytes_per_gpu
external_prefix_cache_hits external_prefix_cache_queries generation_tokens mm_cache_hits mm_cache_queries
num_preemptions prefix_cache_hits prefix_cache_queries prompt_tokens prompt_tokens_by_source prompt_tokens_cached
prompt_tokens_cached_by_source request_success"""
GAUGES = (
    "engine_sleep_state kv_cache_usage_perc num_requests_running num_requests_waiting num_requests_waiting_by_reason"
)
HISTOGRAMS = """e2e_request_latency_seconds inter_token_latency_seconds iteration_tokens_total
request_decode_time_seconds request_generation_tokens request_inference_time_seconds
request_max_num_generation_tokens request_num_preemptions request_params_max_tokens request_params_n
request_prefill_kv_computed_tokens request_prefill_time_seconds request_prompt_tokens request_queue_time_seconds
request_time_per_output_token_seconds time_to_first_token_seconds"""
TRANSFER_HISTOGRAMS = "nixl_xfer_time_seconds nixl_post_time_seconds nixl_bytes_transferred nixl_num_descriptors"
TRANSFER_COUNTERS = """nixl_num_failed_transfers nixl_num_failed_notifications nixl_num_kv_expired_reqs
nixl_num_notifications_after_expiry"""


@pytest.mark.parametrize(
    ("kind", "when", "names"),
    [
        (Kind.COUNTER, When.ALWAYS, COUNTERS),
        (Kind.GAUGE, When.ALWAYS, GAUGES),
        (Kind.HISTOGRAM, When.ALWAYS, HISTOGRAMS),
        (Kind.COUNTER, When.TRANSFER, TRANSFER_COUNTERS),
        (Kind.HISTOGRAM, When.TRANSFER, TRANSFER_HISTOGRAMS),
        (Kind.GAUGE, When.LORA, "lora_requests_info"),
    ],
)
def test_the_families_are_exactly_these(kind, when, names):
    ours = {metric.name for metric in ENGINE_METRICS.values() if (metric.kind, metric.when) == (kind, when)}
    assert ours == {f"vllm:{name}" for name in names.split()}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("request_success", "finished_reason"),
        ("prompt_tokens_by_source", "source"),
        ("prompt_tokens_cached_by_source", "source"),
        ("num_requests_waiting_by_reason", "reason"),
        ("engine_sleep_state", "sleep_state"),
    ],
)
def test_some_families_have_a_third_label(name, label):
    assert ENGINE_METRICS[f"vllm:{name}"].labels == ("engine", "model_name", label)


def test_the_others_have_rank_and_model():
    third = {"request_success", "prompt_tokens_by_source", "prompt_tokens_cached_by_source"}
    third |= {"num_requests_waiting_by_reason", "engine_sleep_state", "lora_requests_info"}
    for metric in ENGINE_METRICS.values():
        if metric.name.removeprefix("vllm:") not in third:
            assert metric.labels == ("engine", "model_name"), metric.name
