"""Watts and joules: the published points, and what a clock does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.models import (
    Phase,
    energy_joules,
    find_accelerator,
    known_accelerators,
    resolve_profile,
    slowdown,
    throttled,
    watts,
)

clocks = st.floats(0.2, 1.0)
phases = st.sampled_from(Phase)


@given(st.sampled_from(known_accelerators()), phases, clocks, clocks, st.integers(1, 16), st.integers(1, 20000))
def test_a_slower_clock_never_draws_more_and_never_runs_faster(accelerator, phase, one, other, tensor, tokens) -> None:
    low, high = sorted((one, other))
    draw = [watts(accelerator, phase, clock, tensor, tokens) for clock in (low, high)]
    assert accelerator.idle_watts <= draw[0] <= draw[1] <= accelerator.tdp_watts
    assert slowdown(phase, low) >= slowdown(phase, high) >= 1


def test_phases_draw_the_published_shares_of_an_a100() -> None:
    a100 = find_accelerator("a100-80g")
    shares = {tensor: watts(a100, Phase.DECODE, tensor=tensor) / a100.tdp_watts for tensor in (2, 4, 8)}
    assert shares == pytest.approx({2: 0.74, 4: 0.59, 8: 0.43})
    assert watts(a100, Phase.PREFILL, tensor=8, tokens=128) == pytest.approx(0.46 * 400)
    assert watts(a100, Phase.PREFILL, tensor=8, tokens=4096) == 400
    assert watts(a100, Phase.IDLE) == 80


def test_the_working_curve_at_1110_of_1410_megahertz() -> None:
    """The anchor points written beside the curve: prefill loses 41 % of dynamic power for 22 % of time, decode 3 %."""
    clock = 1110 / 1410
    a100 = find_accelerator("a100-80g")
    dynamic = (watts(a100, Phase.PREFILL, clock) - 80) / (400 - 80)
    assert dynamic == pytest.approx(0.59, abs=0.01)
    assert slowdown(Phase.PREFILL, clock) == pytest.approx(1.22, abs=0.01)
    assert slowdown(Phase.DECODE, clock) == pytest.approx(1.03, abs=0.01)


def test_a_throttled_profile_slows_each_phase_as_its_curve_says() -> None:
    profile = resolve_profile("llama-3.1-8b", "h100-80g")
    slow = throttled(profile, 0.5)
    assert slow.prefill_ms(4096) / profile.prefill_ms(4096) == pytest.approx(slowdown(Phase.PREFILL, 0.5))
    assert slow.decode_ms(8, 4096) / profile.decode_ms(8, 4096) == pytest.approx(slowdown(Phase.DECODE, 0.5))


def test_energy_is_power_times_time() -> None:
    assert energy_joules(400, 2500) == 1000


@pytest.mark.parametrize("clock", [0, -0.5, 1.01, float("nan")])
def test_an_impossible_clock_is_refused(clock: float) -> None:
    with pytest.raises(ValueError, match="clock is"):
        watts(find_accelerator("l4-24g"), Phase.PREFILL, clock)
    with pytest.raises(ValueError, match="clock is"):
        slowdown(Phase.PREFILL, clock)
