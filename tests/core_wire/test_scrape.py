"""Reading a metrics page: the right numbers, and None where there are none."""

import pytest
from penstock.core.wire import EngineSample, Total, WireError, parse_labels, parse_scrape
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


def page(ranks=1, model="a/b"):
    """A page written by the library vLLM itself uses."""
    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    running = Gauge("vllm:num_requests_running", "r", labels, registry=registry)
    waiting = Gauge("vllm:num_requests_waiting", "w", labels, registry=registry)
    usage = Gauge("vllm:kv_cache_usage_perc", "u", labels, registry=registry)
    prompt = Counter("vllm:prompt_tokens", "p", labels, registry=registry)
    success = Counter("vllm:request_success", "s", [*labels, "finished_reason"], registry=registry)
    ttft = Histogram("vllm:time_to_first_token_seconds", "t", labels, registry=registry)
    shape = ["engine", "block_size", "num_gpu_blocks", "kv_cache_size_tokens"]
    config = Gauge("vllm:cache_config_info", "c", shape, registry=registry)
    for rank in range(ranks):
        engine = str(rank)
        running.labels(model, engine).set(3 + rank)
        waiting.labels(model, engine).set(2)
        usage.labels(model, engine).set(0.25 * (rank + 1))
        prompt.labels(model, engine).inc(1e6)
        success.labels(model, engine, "stop").inc(5)
        success.labels(model, engine, "abort").inc(1)
        for value in (0.1, 0.4):
            ttft.labels(model, engine).observe(value)
        config.labels(engine, "16", "100", "1600").set(1)
    return generate_latest(registry)


def test_one_rank():
    sample = parse_scrape(page())
    assert (sample.running, sample.waiting, sample.kv_usage, sample.ranks) == (3, 2, 0.25, 1)
    assert sample.prompt_tokens == 1e6
    assert sample.finished == {"stop": 5, "abort": 1}
    assert sample.ttft == Total(0.5, 2)
    assert (sample.block_size, sample.num_blocks, sample.kv_capacity_tokens) == (16, 100, 1600)
    assert sample.models == ("a/b",)


def test_ranks_add_up_and_usage_is_their_mean():
    sample = parse_scrape(page(ranks=2))
    assert (sample.running, sample.waiting, sample.ranks) == (7, 4, 2)
    assert sample.kv_usage == pytest.approx(0.375)
    assert sample.finished["stop"] == 10
    assert (sample.num_blocks, sample.kv_capacity_tokens, sample.block_size) == (200, 3200, 16)


def test_what_is_missing_is_none_and_not_zero():
    sample = parse_scrape(b"vllm:num_requests_running 1.0\n")
    assert sample.running == 1
    assert sample.waiting is None
    assert sample.ttft is None
    assert sample.kv_capacity_tokens is None
    assert sample.sleeping is None
    assert sample == EngineSample(running=1.0, ranks=1)


def test_a_histogram_needs_both_halves():
    sample = parse_scrape(b"vllm:time_to_first_token_seconds_sum 1.0\n")
    assert sample.ttft is None


def test_not_a_number_is_no_number():
    assert parse_scrape(b'vllm:kv_cache_usage_perc{engine="0"} NaN\n').kv_usage is None
    assert parse_scrape(b'vllm:kv_cache_usage_perc{engine="0"} oops\n').kv_usage is None


def test_time_stamps_and_braces_in_label_values():
    text = b'vllm:num_requests_running{engine="0",model_name="odd } name \\"x\\" \\\\ y"} 4.0 1795270043000\n'
    sample = parse_scrape(text)
    assert sample.running == 4
    assert sample.models == ('odd } name "x" \\ y',)


def test_asleep_and_awake():
    line = 'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {}\n'
    assert parse_scrape(line.format("0.0").encode()).sleeping is True
    assert parse_scrape(line.format("1.0").encode()).sleeping is False


@pytest.mark.parametrize("text", [b"", b"<html>502</html>", b"go_goroutines 7\n"])
def test_a_page_of_something_else_is_an_error(text):
    with pytest.raises(WireError, match="vllm:"):
        parse_scrape(text)


def test_labels_unescape():
    assert parse_labels('a="x\\ny",b="\\\\",c="\\""') == {"a": "x\ny", "b": "\\", "c": '"'}
