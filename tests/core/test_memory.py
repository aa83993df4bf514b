"""What fits where, and how much KV cache is left."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.models import (
    Parallelism,
    find_accelerator,
    find_model,
    fit,
    known_accelerators,
    known_models,
    smallest_fit,
)

names = st.sampled_from(known_models())
accelerators = st.sampled_from(known_accelerators())


def capacity(model: str, accelerator: str, parallelism: Parallelism, **options: object) -> int:
    return fit(find_model(model), find_accelerator(accelerator), parallelism, **options).kv_capacity_tokens


@pytest.mark.parametrize(
    ("model", "parallelism", "measured"),
    [
        ("opt-13b", Parallelism(1), 66_144),
        ("opt-13b", Parallelism(2), 163_008),
        ("opt-13b", Parallelism(4), 356_736),
        ("opt-66b", Parallelism(4), 78_496),
        ("opt-66b", Parallelism(4, pipeline=2), 212_320),
    ],
)
def test_capacity_is_near_what_distserve_measured(model: str, parallelism: Parallelism, measured: int) -> None:
    """DistServe's max_num_tokens.csv on A100-80G; its engine captures no graphs, so it keeps a little more."""
    assert capacity(model, "a100-80g", parallelism) == pytest.approx(measured, rel=0.16)


def test_what_is_known_to_fit_fits() -> None:
    assert smallest_fit(find_model("llama-3.1-8b"), find_accelerator("h100-80g")) == Parallelism(1)
    assert smallest_fit(find_model("llama-3.1-70b"), find_accelerator("h100-80g"), 32768) == Parallelism(4)
    assert smallest_fit(find_model("gpt-oss-120b"), find_accelerator("h100-80g"), 8192) == Parallelism(1)
    assert smallest_fit(find_model("deepseek-v3"), find_accelerator("h200-141g"), 8192) == Parallelism(8)
    assert smallest_fit(find_model("deepseek-v3"), find_accelerator("h100-80g"), 8192) is None
    assert smallest_fit(find_model("llama-3.1-405b"), find_accelerator("h100-80g"), 8192) is None


def test_a_misfit_says_what_to_change() -> None:
    no = fit(find_model("llama-3.1-70b"), find_accelerator("h100-80g"), Parallelism(1), 8192)
    assert not no.fits
    assert "needs 131.4 GiB of weights" in no.reason
    assert "h100-80g" in no.reason
    assert no.reason.endswith("; use tensor: 2")
    assert no.kv_capacity_tokens == 0


def test_a_context_too_long_is_told_from_weights_too_large() -> None:
    no = fit(find_model("llama-3.1-70b"), find_accelerator("h100-80g"), Parallelism(2), 131072)
    assert not no.fits
    assert "below the context of 131,072" in no.reason
    assert no.reason.endswith("; use tensor: 4")


def test_a_model_no_node_holds_is_told_so() -> None:
    no = fit(find_model("llama-3.1-405b"), find_accelerator("h100-80g"), Parallelism(8), 8192)
    assert "no 8 of this one hold it" in no.reason


@pytest.mark.parametrize(
    ("parallelism", "sentence"),
    [
        (Parallelism(3), "tensor: 3 does not divide the 32 attention heads"),
        (Parallelism(pipeline=33), "more stages than the 32 layers"),
        (Parallelism(tensor=2, data=2, expert=4), "is dense"),
    ],
)
def test_degrees_the_model_cannot_take_are_refused(parallelism: Parallelism, sentence: str) -> None:
    no = fit(find_model("llama-3.1-8b"), find_accelerator("b200-180g"), parallelism, 8192)
    assert not no.fits
    assert sentence in no.reason
    assert no.kv_capacity_tokens == 0


@given(names, accelerators, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1024, 4096, 32768]))
def test_the_smallest_fit_fits_and_half_of_it_does_not(model, accelerator, limit, context) -> None:
    found = smallest_fit(model, accelerator, context, max_accelerators=limit)
    if found is None:
        largest = Parallelism(limit)
        assert model.attention_heads % limit or not fit(model, accelerator, largest, context).fits
        return
    assert fit(model, accelerator, found, context).fits
    if found.tensor > 1:
        assert not fit(model, accelerator, Parallelism(found.tensor // 2), context).fits


@given(names, accelerators, st.floats(0.3, 1.0))
def test_more_memory_never_holds_less(model, accelerator, utilisation) -> None:
    some = fit(model, accelerator, Parallelism(), 1024, utilisation)
    more = fit(model, accelerator, Parallelism(), 1024, min(1.0, utilisation + 0.05))
    assert some.kv_capacity_tokens <= more.kv_capacity_tokens
    assert some.fits <= more.fits


@given(names, accelerators)
def test_what_is_accounted_for_is_what_the_engine_may_take(model, accelerator) -> None:
    known = fit(model, accelerator, Parallelism(), 1)
    used = known.weights_bytes + known.activation_bytes + known.kv_capacity_tokens * known.kv_bytes_per_token
    if known.kv_capacity_tokens:
        room = accelerator.memory_bytes * 0.9
        assert room - known.kv_bytes_per_token < used <= room


def test_kv_is_cut_by_heads_and_replicated_beyond_them() -> None:
    model, accelerator = find_model("qwen2.5-7b"), find_accelerator("a100-80g")
    per_token = [fit(model, accelerator, Parallelism(tensor), 1024).kv_bytes_per_token for tensor in (1, 2, 4)]
    assert per_token == [57344, 28672, 14336]
    latent = [fit(find_model("deepseek-v3"), accelerator, Parallelism(tensor), 1024) for tensor in (1, 8)]
    assert latent[0].kv_bytes_per_token == latent[1].kv_bytes_per_token


def test_spreading_experts_frees_memory_for_kv() -> None:
    model, accelerator = find_model("qwen3-30b-a3b"), find_accelerator("a100-80g")
    copies = fit(model, accelerator, Parallelism(data=4), 4096)
    spread = fit(model, accelerator, Parallelism(data=4, expert=4), 4096)
    assert spread.weights_bytes < copies.weights_bytes
    assert spread.kv_capacity_tokens > copies.kv_capacity_tokens


def test_fp8_kv_doubles_the_tokens() -> None:
    wide = capacity("llama-3.1-8b", "h100-80g", Parallelism())
    assert capacity("llama-3.1-8b", "h100-80g", Parallelism(), kv_dtype="fp8") == pytest.approx(2 * wide, abs=1)


def test_capacity_falls_as_the_context_and_batch_need_room() -> None:
    sizes = [capacity("llama-3.1-8b", "l4-24g", Parallelism(), max_batched_tokens=n) for n in (2048, 8192, 32768)]
    assert all(large > small for large, small in pairwise(sizes))


def test_blocks_are_whole() -> None:
    known = fit(find_model("llama-3.1-8b"), find_accelerator("l4-24g"), Parallelism(), 1024)
    assert known.num_blocks(16) * 16 <= known.kv_capacity_tokens < (known.num_blocks(16) + 1) * 16


@pytest.mark.parametrize(
    "options", [{"utilisation": 0}, {"utilisation": 1.01}, {"max_context": 0}, {"max_batched_tokens": 0}]
)
def test_senseless_limits_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        fit(find_model("llama-3.1-8b"), find_accelerator("l4-24g"), **options)


def test_the_stage_with_most_layers_bounds_the_cache() -> None:
    model, accelerator = find_model("llama-3.1-8b"), find_accelerator("l40s-48g")
    assert fit(model, accelerator, Parallelism(pipeline=3), 1024).kv_bytes_per_token == 131072 * 11 // 32
