"""The latency model: its rules, its monotony whatever the coefficients, its agreement with measurements."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.models import (
    LatencyProfile,
    Parallelism,
    ProfileSource,
    attention_work,
    find_accelerator,
    find_model,
    known_accelerators,
    known_models,
    published_profiles,
    resolve_profile,
    roofline_profile,
)

coefficient = st.floats(-200, 200, allow_nan=False).map(lambda value: round(value, 6))
small = st.floats(-1e-3, 1e-3, allow_nan=False)
profiles = st.builds(
    LatencyProfile,
    prefill=st.tuples(coefficient, coefficient, small),
    decode=st.tuples(coefficient, coefficient, small),
    source=st.sampled_from(ProfileSource),
    provenance=st.text(max_size=20),
    experts=st.tuples(st.floats(0, 50), st.floats(0, 1)),
)
load = st.tuples(st.integers(0, 9000), st.integers(0, 10**8), st.integers(0, 600), st.integers(0, 10**6))
SIMPLE = LatencyProfile((10, 0.1, 1e-5), (20, 0.5, 1e-3), ProfileSource.BENCHMARK, "made up")


@given(profiles, load, load)
def test_a_larger_pass_is_never_faster(profile: LatencyProfile, one: tuple[int, ...], more: tuple[int, ...]) -> None:
    larger = tuple(a + b for a, b in zip(one, more, strict=True))
    assert profile.step_ms(*one) <= profile.step_ms(*larger) * (1 + 1e-12)


@given(profiles, load)
def test_a_pass_takes_time_exactly_when_it_does_something(profile: LatencyProfile, work: tuple[int, ...]) -> None:
    assert (profile.step_ms(*work) > 0) == (work[0] + work[2] > 0)


@given(profiles, load)
def test_a_mixed_pass_lies_between_its_longer_part_and_both(profile: LatencyProfile, work: tuple[int, ...]) -> None:
    tokens, squares, batch, context = work
    context = context if batch else 0
    squares = squares if tokens else 0
    prefill, decode = profile.prefill_ms(tokens, squares), profile.decode_ms(batch, context)
    mixed = profile.step_ms(tokens, squares, batch, context)
    assert max(prefill, decode) * (1 - 1e-9) <= mixed <= (prefill + decode) * (1 + 1e-9) + 1e-9


@given(profiles, st.lists(load, min_size=1, max_size=20))
def test_arrays_give_what_single_passes_give(profile: LatencyProfile, work: list[tuple[int, ...]]) -> None:
    columns = [np.array(column, dtype=float) for column in zip(*work, strict=True)]
    assert profile.step_ms(*columns) == pytest.approx([profile.step_ms(*one) for one in work])
    assert profile.decode_ms(*columns[2:]) == pytest.approx([profile.decode_ms(*one[2:]) for one in work])


@given(profiles)
def test_a_profile_survives_json(profile: LatencyProfile) -> None:
    assert LatencyProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=6), st.integers(0, 5000))
def test_chunks_of_a_prompt_sum_to_the_whole(chunks: list[int], cached: int) -> None:
    done, work = cached, 0.0
    for chunk in chunks:
        work += attention_work(chunk, done)
        done += chunk
    assert work == done**2 - cached**2


def test_the_formulas_by_hand() -> None:
    assert SIMPLE.prefill_ms(1000) == pytest.approx(10 + 100 + 10)
    assert SIMPLE.prefill_ms(1000, attention_work(500, 500) + attention_work(500)) == SIMPLE.prefill_ms(1000)
    assert SIMPLE.decode_ms(8, 4000) == pytest.approx(20 + 4 + 4)
    assert SIMPLE.step_ms(1000, 10**6, 8, 4000) == pytest.approx(120 + 4 + 4)
    assert SIMPLE.prefill_ms(10) == 20, "a pass cannot be shorter than reading the weights"


def test_experts_are_read_as_more_tokens_meet_them() -> None:
    sparse = replace(SIMPLE, decode=(2, 0, 0), experts=(16, 0.25))
    assert sparse.floor_ms(1) == pytest.approx(2 + 4)
    assert sparse.floor_ms(2) == pytest.approx(2 + 16 * (1 - 0.75**2))
    assert sparse.floor_ms(1000) == pytest.approx(18)


def test_negative_coefficients_of_a_fit_count_as_nothing() -> None:
    profile = LatencyProfile((-100, 0.3, -1e-6), (40, 0.2, 1e-4), ProfileSource.CATALOGUE, "")
    assert (profile.prefill, profile.prefill_ms(10)) == ((0, 0.3, 0), 40)


def test_scaling_slows_each_phase_by_its_own_factor() -> None:
    slow = SIMPLE.scaled(prefill=2, decode=3)
    assert slow.prefill_ms(4000) == pytest.approx(2 * SIMPLE.prefill_ms(4000))
    assert slow.decode_ms(4, 1000) == pytest.approx(3 * SIMPLE.decode_ms(4, 1000))
    with pytest.raises(ValueError, match="cannot be scaled by 0"):
        SIMPLE.scaled(decode=0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prefill": [1, 2, 3]}, "decode missing"),
        ({"prefill": [1, 2], "decode": [1, 2, 3]}, "prefill must be 3 finite numbers"),
        ({"prefill": [1, 2, float("nan")], "decode": [1, 2, 3]}, "prefill must be 3 finite numbers"),
        ({"prefill": ["1", 2, 3], "decode": [1, 2, 3]}, "prefill must be 3 finite numbers"),
        ({"prefill": 5, "decode": [1, 2, 3]}, "prefill must be a list"),
        ({"prefill": [1, 2, 3], "decode": [1, 2, 3], "speed": 1}, "unknown field speed"),
        ({"prefill": [1, 2, 3], "decode": [1, 2, 3], "experts": [1, 2]}, "share of experts"),
        ({"prefill": [1, 2, 3], "decode": [1, 2, 3], "source": "Guess"}, "Guess"),
    ],
)
def test_wrong_profiles_are_refused_in_a_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LatencyProfile.from_dict(fields)


def test_trust_goes_from_online_to_roofline() -> None:
    assert min(ProfileSource, key=lambda source: source.trust) is ProfileSource.ONLINE
    assert ProfileSource.CATALOGUE.trust < ProfileSource.ROOFLINE.trust


# Published measurements


def latency(model: str, accelerator: str, tensor: int) -> LatencyProfile:
    return resolve_profile(model, accelerator, Parallelism(tensor))


@pytest.mark.parametrize(
    ("model", "tensor", "rows"),
    [
        ("bloom-176b", 8, {256: 99.2, 512: 173.8, 1024: 289.2, 2048: 540.4, 4096: 1348.2, 8192: 3593.2}),
        ("llama-2-70b", 2, {256: 112.9, 512: 196.9, 1024: 377.1, 2048: 688.1, 4096: 1485.4, 8192: 2990.2}),
        ("llama-2-70b", 8, {512: 94.3, 1024: 154.5, 2048: 274.2, 4096: 661.2, 8192: 1549.8}),
    ],
)
def test_published_prefill_meets_the_measured_medians(model: str, tensor: int, rows: dict[int, float]) -> None:
    """Medians of splitwise-sim's perf_model.csv on A100, one prompt at a time."""
    for tokens, measured in rows.items():
        assert latency(model, "a100-80g", tensor).prefill_ms(tokens) == pytest.approx(measured, rel=0.30), tokens


@pytest.mark.parametrize(
    ("model", "tensor", "rows"),
    [
        ("bloom-176b", 8, {1: 48.8, 2: 50.0, 4: 51.0, 8: 53.0, 16: 57.3}),
        ("llama-2-70b", 2, {1: 54.9, 2: 59.9, 4: 60.5, 8: 61.7, 16: 65.5}),
        ("llama-2-70b", 8, {1: 44.9, 2: 44.6, 4: 45.8, 8: 46.5, 16: 50.4}),
    ],
)
def test_published_decode_meets_the_measured_medians(model: str, tensor: int, rows: dict[int, float]) -> None:
    """Prompts of 512 tokens, 128 tokens out: 576 tokens of context in the mean."""
    for batch, measured in rows.items():
        predicted = latency(model, "a100-80g", tensor).decode_ms(batch, batch * 576)
        assert predicted == pytest.approx(measured, rel=0.06), batch


def test_the_published_profile_of_a_pair_is_the_one_that_timed_whole_passes() -> None:
    assert "splitwise" in latency("llama-2-70b", "h100-80g", 4).provenance
    assert "DistServe" in latency("opt-66b", "a100-80g", 2).provenance
    assert "Vidur" in latency("llama-2-70b", "a40-48g", 4).provenance


def test_llama_3_1_is_answered_by_what_was_measured_on_llama_3() -> None:
    profile = latency("llama-3.1-8b", "a100-80g", 1)
    assert profile.source is ProfileSource.CATALOGUE
    assert profile.decode_ms(1, 1) == pytest.approx(10.5, rel=0.02)


def test_every_published_profile_is_found_and_says_where_it_stands() -> None:
    for known in published_profiles():
        found = resolve_profile(known.model, known.accelerator, known.parallelism)
        assert found.source is ProfileSource.CATALOGUE
        assert "MIT" in known.latency.provenance or "Apache" in known.latency.provenance


# Roofline

VIDUR_TENSOR_1 = [
    ("llama-2-7b", "a100-80g", 0.0640949, 9.28),
    ("llama-2-7b", "h100-80g", 0.0200783, 5.792),
    ("llama-2-7b", "a40-48g", 0.122907, 26.304),
    ("codellama-34b", "h100-80g", 0.100452, 24.72),
    ("llama-2-70b", "a100-80g", 0.592483, 92.88),
    ("llama-2-70b", "h100-80g", 0.207428, 50.0),
    ("qwen-72b", "a40-48g", 1.2435, 269.52),
]


@pytest.mark.parametrize(("model", "accelerator", "per_token", "floor"), VIDUR_TENSOR_1)
def test_the_roofline_meets_vidurs_operator_profiles(
    model: str, accelerator: str, per_token: float, floor: float
) -> None:
    profile = roofline_profile(find_model(model), find_accelerator(accelerator))
    assert profile.prefill[1] == pytest.approx(per_token, rel=0.20)
    assert profile.decode[0] == pytest.approx(floor, rel=0.15)


def test_a_decode_floor_is_the_reading_of_the_weights() -> None:
    """Llama 3.1 8B on an H100: 15 GB at three quarters of 3.35 TB/s, and a millisecond of host work."""
    llama, h100 = find_model("llama-3.1-8b"), find_accelerator("h100-80g")
    read = (llama.total_parameters - llama.embedding_parameters) * 2
    assert resolve_profile(llama, h100).decode[0] == pytest.approx(1 + read / (0.75 * 3.35e12) * 1e3, rel=1e-6)


@pytest.mark.parametrize("model", known_models(), ids=lambda known: known.name)
@pytest.mark.parametrize("accelerator", known_accelerators(), ids=lambda known: known.name)
def test_every_pair_has_a_sane_profile(model: object, accelerator: object) -> None:
    profile = resolve_profile(model, accelerator)
    assert 0.1 < profile.decode_ms(1, 128) < 5000
    assert profile.prefill_ms(8192) > profile.prefill_ms(512) > 0
    assert profile.decode_ms(64, 64 * 1024) < 64 * profile.decode_ms(1, 1024), "batching must pay"


def test_more_accelerators_shorten_long_passes() -> None:
    model, accelerator = find_model("llama-3.1-70b"), find_accelerator("h100-80g")
    times = [roofline_profile(model, accelerator, Parallelism(tensor)) for tensor in (1, 2, 4, 8)]
    assert sorted((p.prefill_ms(4096) for p in times), reverse=True) == [p.prefill_ms(4096) for p in times]
    assert sorted((p.decode_ms(8, 8192) for p in times), reverse=True) == [p.decode_ms(8, 8192) for p in times]


def test_fp8_weights_halve_the_floor_and_speed_up_hopper_alone() -> None:
    model = find_model("llama-3.1-8b")
    for name, faster in (("h100-80g", 2.0), ("a100-80g", 1.0)):
        wide = roofline_profile(model, find_accelerator(name))
        narrow = roofline_profile(model, find_accelerator(name), dtype="fp8")
        assert (wide.decode[0] - 1) / (narrow.decode[0] - 1) == pytest.approx(2)
        assert wide.prefill[1] / narrow.prefill[1] == pytest.approx(faster, rel=1e-3)


def test_one_user_of_a_mixture_reads_few_experts_and_many_read_all() -> None:
    profile = resolve_profile("qwen3-30b-a3b", "h100-80g")
    dense = find_model("qwen3-30b-a3b").weights_bytes() / (0.75 * 3.35e12) * 1e3
    assert profile.decode_ms(1, 1) < 0.2 * dense
    assert profile.floor_ms(512) == pytest.approx(1 + dense, rel=0.05)


def test_a_slower_accelerator_of_a_known_name_gets_no_published_figures() -> None:
    slow = replace(find_accelerator("a100-80g"), memory_bandwidth=1e12)
    assert resolve_profile("llama-2-70b", slow, Parallelism(8)).source is ProfileSource.ROOFLINE


def test_unknown_names_come_with_suggestions() -> None:
    with pytest.raises(LookupError, match=r"did you mean .*h100-80g"):
        resolve_profile("llama-3.1-8b", "h100-80gb")
    with pytest.raises(LookupError, match=r"did you mean .*Llama-3.1-8B"):
        resolve_profile("Llama-3.1-8b-Instruc", "h100-80g")


def test_the_rooflines_terms_by_hand() -> None:
    llama, h100 = find_model("llama-3.1-70b"), find_accelerator("h100-80g")
    one, four = (roofline_profile(llama, h100, Parallelism(tensor)) for tensor in (1, 4))
    causal = 2 * 80 * 8192 / (0.5 * 989.4e12) * 1e3
    assert (one.prefill[2], four.prefill[2]) == pytest.approx((causal, causal / 4))
    ring = 2 * 80 * 8192 * 2 * 2 * (3 / 4) / (0.75 * 450e9) * 1e3
    assert four.prefill[1] - one.prefill[1] / 4 == pytest.approx(ring)
    assert four.decode[2] == pytest.approx(327_680 / 4 / (0.75 * 3.35e12) * 1e3)


def test_latent_attention_is_bound_by_work_on_one_accelerator_and_by_reading_on_eight() -> None:
    deepseek, h100 = find_model("deepseek-v3"), find_accelerator("h100-80g")
    work = 61 * 128 * 2 * (2 * 512 + 64) / (0.5 * 989.4e12) * 1e3
    reading = 70_272 / (0.75 * 3.35e12) * 1e3
    slopes = [roofline_profile(deepseek, h100, Parallelism(tensor)).decode[2] for tensor in (1, 8)]
    assert slopes == pytest.approx([work, reading])


def test_a_published_decode_of_256_sequences_costs_what_256_prompt_tokens_do() -> None:
    """Vidur's line at 256 tokens, and 8 us of host work for each sequence."""
    profile = resolve_profile("llama-2-7b", "a100-80g")
    assert profile.decode_ms(256, 0) == pytest.approx(2.31469 + 0.0640949 * 256 + 256 * 0.008)
