"""Profiles fitted from metrics pages: what was put in comes out, and what the load or the pages lack is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from fitting_stage import BUDGET, TRUE, Asked, scraped, traffic
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.models import LatencyProfile, ProfileSource
from penstock.core.models.fitting_equations import equations
from penstock.core.models.fitting_intervals import Dropped, histories
from penstock.core.models.fitting_metrics import MetricsFit, fit_metrics
from penstock.core.models.fitting_pages import Scrape, Total, read_page

RATES = (0.3, 0.8, 1.6, 2.4, 3.0)


@cache
def pages(seed: int = 0) -> tuple[Scrape, ...]:
    """Five minutes of a worker that is asked more and more."""
    return tuple(scraped(traffic(RATES, 60.0, seed), seconds=300.0))


def fitted(scrapes: Iterable[Scrape], budget: int | None = BUDGET) -> MetricsFit:
    return fit_metrics(scrapes, "test", max_num_batched_tokens=budget)


def rewritten(scrapes: Iterable[Scrape], change: Callable[[str], str]) -> list[Scrape]:
    return [replace(one, page=change(one.page)) for one in scrapes]


def without(scrapes: Iterable[Scrape], *starts: str) -> list[Scrape]:
    """Pages less the lines that begin so."""
    return rewritten(
        scrapes, lambda page: "".join(line + "\n" for line in page.splitlines() if not line.startswith(starts))
    )


def agrees(profile: LatencyProfile, within: float, truth: LatencyProfile = TRUE) -> None:
    """Over the range of the load."""
    for tokens in (300, 600, 1000):
        assert profile.prefill_ms(tokens) == pytest.approx(truth.prefill_ms(tokens), rel=within), tokens
    for batch in (1, 3, 6):
        for context in (500, 1200):
            told = profile.decode_ms(batch, batch * context)
            assert told == pytest.approx(truth.decode_ms(batch, batch * context), rel=within), (batch, context)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_was_put_in_comes_out(seed: int) -> None:
    found = fitted(pages(seed))
    agrees(found.fit.profile, 0.02)
    assert found.fit.decode.mean_error < 0.01 < found.fit.decode.r_squared
    assert found.fit.profile.source is ProfileSource.ONLINE and found.models == ("tiny",)
    assert found.kv_capacity == 8192 * 16 and not found.notes
    assert "95 % within" in found.fit.profile.provenance
    for value, spread, truth in zip(
        (*found.fit.profile.prefill[:2], *found.fit.profile.decode), (*found.spread[:2], *found.spread[3:]),
        (*TRUE.prefill[:2], *TRUE.decode), strict=True,
    ):  # fmt: skip
        assert abs(value - truth) < 5 * spread + 0.01 * truth


@pytest.mark.parametrize(("rates", "outputs"), [((2.2,), 3.5), ((0.5, 1.5), 4.8), ((3.4, 0.4), 3.0)])
def test_times_of_another_load_are_foretold(rates: tuple[float, ...], outputs: float) -> None:
    profile = fitted(pages()).fit.profile
    coefficients = np.array([*profile.prefill, *profile.decode])
    others, _ = histories(scraped(traffic(rates, 150.0, seed=9, outputs=outputs), seconds=150.0 * len(rates)))
    rows, _, _ = equations(others[0], 0, BUDGET)
    errors = np.array([abs(np.dot(one.row, coefficients) / one.ms - 1.0) for one in rows if one.prompt is None])
    walls = np.array([np.dot(one.row, coefficients) / one.ms - 1.0 for one in rows if one.batch > 1.2])
    assert len(errors) >= 5 and errors.mean() < 0.02 and abs(walls.mean()) < 0.02


@pytest.mark.parametrize(
    ("prefill", "decode", "faster"),
    [((5.0, 0.03, 0.0), (10.0, 0.1, 5e-5), 3.0), ((20.0, 0.15, 1e-5), (30.0, 1.0, 0.0), 0.7),
     ((8.0, 0.05, 2e-6), (8.0, 0.3, 1e-4), 2.5)],
)  # fmt: skip
def test_other_engines_are_told_too(
    prefill: tuple[float, float, float], decode: tuple[float, float, float], faster: float
) -> None:
    truth = LatencyProfile(prefill, decode, ProfileSource.BENCHMARK, "made up")
    load = traffic([rate * faster for rate in RATES], 60.0)
    agrees(fitted(scraped(load, seconds=300.0, profile=truth)).fit.profile, 0.04, truth)


def test_a_worker_that_is_always_busy_is_told_by_wall_time_alone() -> None:
    """Nine requests a second for five minutes: some 25 sequences at a time, prompts never rare, times 10 ms off."""
    truth = LatencyProfile((6.0, 0.03, 5e-7), (12.0, 0.06, 1.5e-5), ProfileSource.BENCHMARK, "made up")
    load = traffic((9.0,), 300.0, seed=1, outputs=5.0)
    busy = scraped(load, seconds=300.0, profile=truth, budget=2048, blocks=40_000, sequences=256, jitter_s=0.01)
    found = fitted(busy, 2048)
    for tokens in (500, 800, 1000):
        assert found.fit.profile.prefill_ms(tokens) == pytest.approx(truth.prefill_ms(tokens), rel=0.03)
    for batch in (16, 24, 32):
        told = found.fit.profile.decode_ms(batch, 900 * batch)
        assert told == pytest.approx(truth.decode_ms(batch, 900 * batch), rel=0.02)


def test_rarer_scrapes_do_where_sequences_last() -> None:
    long = scraped(traffic((0.5, 1.0, 1.5, 2.0), 180.0, seed=3, outputs=4.8), every=5.0, seconds=720.0)
    profile = fitted(long).fit.profile
    for batch in (2, 6, 12):
        assert profile.decode_ms(batch, 900 * batch) == pytest.approx(TRUE.decode_ms(batch, 900 * batch), rel=0.03)


def test_prompts_that_come_together_do_not_make_prefill_longer() -> None:
    """Pairs that are computed in one pass would count it twice."""
    rng = np.random.default_rng(0)
    alone = traffic(RATES, 60.0)
    pairs = [Asked(300.0 + 4.0 * k + 0.001 * n, int(rng.integers(200, 450)), 20) for k in range(50) for n in range(2)]
    found = fitted(scraped([*alone, *pairs], seconds=500.0))
    agrees(found.fit.profile, 0.04)
    assert found.dropped[Dropped.OVERLAPPED] > 20


# Loads that do not tell.


def test_a_batch_that_never_changes_is_refused() -> None:
    rng = np.random.default_rng(0)
    lone = [Asked(4.0 * k, int(rng.integers(100, 1000)), int(rng.integers(10, 60))) for k in range(60)]
    with pytest.raises(ValueError, match=r"not identifiable: the batch ranged from 1\.0 to 1\.0 sequences only"):
        fitted(scraped(lone, seconds=240.0))


def test_prompts_of_one_length_are_refused() -> None:
    alike = [replace(one, prompt=512) for one in traffic(RATES, 60.0)]
    with pytest.raises(ValueError, match="prompts ranged from 512 to 512 computed tokens only"):
        fitted(scraped(alike, seconds=300.0))


def test_contexts_of_one_length_leave_their_cost_untold() -> None:
    rng = np.random.default_rng(0)
    alike = [
        replace(one, prompt=2000, output=40, shared=int(rng.integers(50, 112)) * 16, stem=place % 40)
        for place, one in enumerate(traffic(RATES, 80.0))
    ]
    found = fitted(scraped(alike, seconds=400.0))
    assert found.fit.profile.decode[2] == 0.0
    assert any("a token of context costs is not identifiable" in note for note in found.notes)
    assert any("of prompt tokens were cached" in note for note in found.notes)
    for batch in (1, 3):
        truth = TRUE.decode_ms(batch, 2020 * batch)
        assert found.fit.profile.decode_ms(batch, 2020 * batch) == pytest.approx(truth, rel=0.03)


def test_an_idle_worker_and_a_short_time_are_refused_with_what_was_lacking() -> None:
    with pytest.raises(ValueError, match=r"0 equations for decode, 8 are needed.*60 x nothing ran"):
        fitted(scraped([], seconds=60.0))
    with pytest.raises(ValueError, match="are needed to fit a profile; scrape more often"):
        fitted(pages()[:10])
    with pytest.raises(ValueError, match="nothing was scraped"):
        fitted([])


# Pages that are not as they should be.


def test_a_restart_costs_one_interval() -> None:
    first, second = pages(1)[:150], pages(2)
    later = [replace(one, at_s=one.at_s + 160.0) for one in second]
    found = fitted([*first, *later])
    assert found.dropped[Dropped.RESTARTED] == 1
    agrees(found.fit.profile, 0.02)


def test_a_restart_is_seen_though_every_counter_rose() -> None:
    early = rewritten(pages()[:20], lambda page: re.sub(r"(_created\{.*\}) \S+", r"\1 1000.0", page))
    late = rewritten(pages()[20:40], lambda page: re.sub(r"(_created\{.*\}) \S+", r"\1 2000.0", page))
    history = histories([*early, *late])[0][0]
    assert equations(history, 0, None)[2][Dropped.RESTARTED] == 1


def test_older_names_give_the_same() -> None:
    def older(page: str) -> str:
        page = page.replace("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
        page = page.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
        return page.replace("vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits")

    aged = without(
        rewritten(pages(), older),
        "vllm:prompt_tokens_by_source", "vllm:prompt_tokens_cached", "vllm:request_prefill_kv_computed_tokens",
        "vllm:engine_sleep_state",
    )  # fmt: skip
    found, usual = fitted(aged), fitted(pages())
    now = (*usual.fit.profile.prefill, *usual.fit.profile.decode)
    assert (*found.fit.profile.prefill, *found.fit.profile.decode) == pytest.approx(now, rel=1e-6)


def test_a_page_with_old_and_new_names_is_not_counted_twice() -> None:
    line = re.compile(r"^(vllm:)inter_token_latency(_seconds_(?:sum|count).*)$", re.MULTILINE)
    both = [
        replace(one, page=one.page + "".join(f"{m[1]}time_per_output_token{m[2]}\n" for m in line.finditer(one.page)))
        for one in pages()[:50]
    ]
    told = [read_page(one)[""].totals if "" in read_page(one) else read_page(one)["0"].totals for one in both]
    assert [t[Total.INTERVALS] for t in told] == [read_page(one)["0"].totals[Total.INTERVALS] for one in pages()[:50]]


def test_without_a_histogram_of_passes_tokens_alone_must_do() -> None:
    found = fitted(without(pages(), "vllm:iteration_tokens_total"))
    assert any("wall time was not used" in note for note in found.notes)
    for batch in (1, 2):
        truth = TRUE.decode_ms(batch, 800 * batch)
        assert found.fit.profile.decode_ms(batch, 800 * batch) == pytest.approx(truth, rel=0.05)


def test_without_the_time_between_tokens_nothing_is_fitted() -> None:
    with pytest.raises(ValueError, match=r"lacks vllm:inter_token_latency_seconds; without it"):
        fitted(without(pages(), "vllm:inter_token_latency"))


def test_series_that_come_and_go_cost_their_intervals() -> None:
    gone = without(pages()[100:110], "vllm:time_to_first_token")
    found = fitted([*pages()[:100], *gone, *pages()[110:]])
    assert found.dropped[Dropped.MISSING] == 11
    agrees(found.fit.profile, 0.02)


def test_a_count_without_end_is_none() -> None:
    endless = rewritten(pages()[100:110], lambda page: re.sub(r"(latency_seconds_sum{.*}) .*", r"\1 +Inf", page))
    found = fitted([*pages()[:100], *endless, *pages()[110:]])
    assert found.dropped[Dropped.MISSING] == 11
    agrees(found.fit.profile, 0.02)


def test_a_sum_that_stands_still_is_no_time() -> None:
    still = rewritten(pages(), lambda page: re.sub(r"(latency_seconds_sum{.*}) .*", r"\1 0.0", page))
    made = [one for history in histories(still)[0] for one in equations(history, 0, BUDGET)[0]]
    assert made and all(one.ms > 0 for one in made)


@pytest.mark.parametrize(
    "junk", ["", "<html>busy</html>", "vllm:num_requests_running{", "process_cpu_seconds_total 1\n"]
)
def test_garbage_is_counted_and_left_out(junk: str) -> None:
    found = fitted([replace(one, page=junk) if place % 50 == 7 else one for place, one in enumerate(pages())])
    assert found.dropped[Dropped.GARBAGE] == 6
    agrees(found.fit.profile, 0.02)
    with pytest.raises(ValueError, match="none of 301 answers was a page of vLLM's metrics"):
        fitted(rewritten(pages(), lambda _: junk))


@given(st.integers(0, 300), st.integers(0, 4000))
def test_a_page_cut_anywhere_is_read_or_refused_in_a_sentence(place: int, length: int) -> None:
    cut = replace(pages()[place], page=pages()[place].page[:length])
    try:
        read_page(cut)
    except ValueError as error:
        assert "w sent is no metrics page" in str(error) or "has no vllm: series" in str(error)


def test_sleep_and_preemption_cost_their_intervals() -> None:
    asleep = rewritten(pages()[50:60], lambda page: page.replace('sleep_state="awake"} 1', 'sleep_state="awake"} 0'))
    found = fitted([*pages()[:50], *asleep, *pages()[60:]])
    assert found.dropped[Dropped.ASLEEP] == 11
    short = scraped(traffic((2.0, 3.0), 60.0, outputs=4.8), seconds=120.0, blocks=700)
    assert equations(histories(short)[0][0], 0, BUDGET)[2][Dropped.PREEMPTED] > 0


def test_a_page_that_took_long_is_no_clock() -> None:
    """Wall time is not used between pages that may be of any moment of half a second."""
    history = histories([replace(one, took_s=0.5) for one in pages()])[0][0]
    assert all(one.batch < 7 and one.kind.name != "WALL" for one in equations(history, 0, BUDGET)[0])


def test_requests_that_are_aborted_while_they_wait_cost_little() -> None:
    asked = traffic((1.0, 2.0, 3.0), 60.0, outputs=4.5)
    some = [replace(one, aborted=place % 5 == 0) for place, one in enumerate(asked)]
    found = fitted(scraped(some, seconds=180.0))
    assert found.used > 50
    agrees(found.fit.profile, 0.03)


def test_an_engine_whose_speed_changes_is_told_not_to_be_believed() -> None:
    slow = scraped(traffic(RATES, 60.0, 1), seconds=300.0, profile=TRUE.scaled(3.0, 3.0))
    parts = [
        replace(one, at_s=one.at_s + 1000.0 * (place // 50))
        for place, one in enumerate([*pages()[100:150], *slow[100:150], *pages()[150:200], *slow[150:200]])
    ]
    assert any("believe little of this profile" in note for note in fitted(parts).notes)


def test_a_page_as_vllm_writes_it_is_read() -> None:
    """Labels with values that are no numbers, counts as floats, exponents, several ranks, another model's adapter."""
    page = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/m"} 3.0
vllm:num_requests_running{engine="1",model_name="org/m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="org/m"} 0.25
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",kv_cache_size_tokens="65536",num_cpu_blocks="None",num_gpu_blocks="2048",num_gpu_blocks_override="None"} 1.0
vllm:generation_tokens_created{engine="0",model_name="org/m"} 1.7952929580485475e+09
vllm:prompt_tokens_by_source_total{engine="0",model_name="org/m",source="local_compute"} 1185.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="org/m",source="external_kv_transfer"} 2e+06
vllm:request_success_total{engine="0",finished_reason="length",model_name="org/m"} 5.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="org/m"} 1.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="org/m"} 423.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="org/m"} 3.032460012997035
vllm:iteration_tokens_total_bucket{engine="0",le="8.0",model_name="org/m"} 400.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="org/m"} 409.0
vllm:request_prompt_tokens_sum{engine="0",model_name="org/m"} NaN
"""  # noqa: E501
    ranks = read_page(Scrape("w", 1.0, 0.0, page))
    assert sorted(ranks) == ["0", "1"] and ranks["1"].running == 0.0 and ranks["1"].kv_tokens is None
    first = ranks["0"]
    assert (first.model, first.kv_capacity, first.started) == ("org/m", 65536, 1795292958.0485475)
    assert first.kv_tokens == 0.25 * 65536 - 0.5 * 32 * 3
    assert first.totals[Total.EXTERNAL] == 2e6 and first.totals[Total.FINISHED] == 6.0
    assert first.totals[Total.INTERVAL_S] == 3.032460012997035 and Total.ENDED_PROMPT not in first.totals
    assert first.step_buckets == {8.0: 400.0, float("inf"): 409.0}


# Several engines.


def test_workers_are_fitted_together_though_one_dies() -> None:
    second = [replace(one, worker="v") for one in pages(1)[:40]]
    found = fitted([*pages(), *second])
    assert found.engines == ("w", "v")
    agrees(found.fit.profile, 0.02)


def test_ranks_of_one_worker_are_engines_of_their_own() -> None:
    def both(one: Scrape, other: Scrape) -> Scrape:
        ranked = other.page.replace('engine="0"', 'engine="1"')
        return replace(one, page=one.page + ranked)

    found = fitted([both(one, other) for one, other in zip(pages(), pages(1), strict=True)])
    assert found.engines == ("w engine 0", "w engine 1")
    agrees(found.fit.profile, 0.02)


def test_a_slower_worker_is_named() -> None:
    slow = scraped(traffic(RATES, 60.0, 1), seconds=300.0, worker="v", profile=TRUE.scaled(1.5, 1.5))
    notes = fitted([*pages(), *pages(2)[:0], *[replace(one, worker="u") for one in pages(2)], *slow]).notes
    assert [note for note in notes if note.startswith("v is") and "slower" in note]
    assert not [note for note in notes if note.startswith(("w is", "u is"))]


def test_workers_of_different_models_are_refused() -> None:
    other = scraped(traffic((1.0,), 20.0), seconds=20.0, worker="v", name="huge")
    with pytest.raises(ValueError, match=r"different models \(huge, tiny\)"):
        fitted([*pages(), *other])


def test_a_prefill_and_a_decode_worker_make_one_profile() -> None:
    asked = traffic(RATES, 60.0)
    first = scraped([replace(one, output=1) for one in asked], seconds=300.0, worker="p")
    then = scraped([replace(one, remote=True) for one in asked], seconds=300.0, worker="d")
    agrees(fitted([*first, *then]).fit.profile, 0.05)
    with pytest.raises(ValueError, match="equations for prefill"):
        fitted(then)
    with pytest.raises(ValueError, match="equations for decode"):
        fitted(first)
