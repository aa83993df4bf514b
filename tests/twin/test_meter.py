"""Energy is power times time, phase by phase, at every clock."""

from __future__ import annotations

import pytest
from penstock.core.models import Parallelism, Phase, find_accelerator, watts
from penstock.simulator.meter import Meter

H100 = find_accelerator("h100-80g")
TENSOR = 4


@pytest.mark.parametrize("clock", [1.0, 0.7, 0.4])
def test_energy_is_power_times_time_at_each_clock(clock: float) -> None:
    assert H100 is not None
    meter = Meter(H100, Parallelism(tensor=TENSOR))
    meter.set_clock(clock)
    meter.pass_over(700, 200.0)
    meter.pass_over(0, 1000.0)
    busy = 0.2 * watts(H100, Phase.PREFILL, clock, TENSOR, 700) + watts(H100, Phase.DECODE, clock, TENSOR)
    assert meter.busy_joules == pytest.approx(TENSOR * busy)
    assert meter.joules(10.0) == pytest.approx(TENSOR * (busy + 8.8 * H100.idle_watts))


def test_a_clock_counts_from_the_pass_that_follows() -> None:
    assert H100 is not None
    meter = Meter(H100, Parallelism(tensor=TENSOR))
    meter.pass_over(4096, 100.0)
    full = meter.busy_joules
    meter.set_clock(0.5)
    assert meter.busy_joules == full
    meter.pass_over(4096, 100.0)
    assert full < meter.busy_joules < 1.5 * full
    with pytest.raises(ValueError, match="clock is 0"):
        meter.set_clock(0.0)
    assert meter.clock == 0.5, "what was refused changes nothing"
    assert meter.draw(4096) == pytest.approx(TENSOR * watts(H100, Phase.PREFILL, 0.5, TENSOR, 4096))
