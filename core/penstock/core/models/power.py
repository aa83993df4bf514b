"""Watts and joules of an accelerator by what it runs and how fast its clock may go.

Working curve, until somebody publishes watts against MHz for both phases: with f the clock as a share of its maximum

    watts(f)    = idle + (phase - idle) * f^2.2
    slowdown(f) = 1 / ((1 - m) * f + m)     m = 0.15 for prefill, which waits for compute; 0.85 for decode, for memory

It is inferred; the one public anchor is a mixed workload that loses 5-7 % of speed for 20 % of peak power on A100
(ASPLOS 2024, power oversubscription of LLM inference). Phase watts are shares of TDP measured on A100 for Llama-2-70B
(splitwise-sim `perf_model.csv`, MIT): prefill rises with the tokens of a pass to the TDP, decode is flat in batch and
context and falls with tensor parallelism.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
from penstock.core.models.hardware import Accelerator
from penstock.core.models.latency import LatencyProfile

__all__ = ["Phase", "energy_joules", "slowdown", "throttled", "watts"]


class Phase(StrEnum):
    """What the accelerator is doing."""

    IDLE = "Idle"
    PREFILL = "Prefill"
    DECODE = "Decode"


_EXPONENT = 2.2
_MEMORY_BOUND = {Phase.PREFILL: 0.15, Phase.DECODE: 0.85}
_TENSOR = (1, 2, 4, 8)
_DECODE_SHARE = (0.79, 0.74, 0.59, 0.43)  # tensor 1 is not published: the highest of tensor 2, at 16 sequences.
_PREFILL_TOKENS = (128, 256, 512, 1024, 2048)
_PREFILL_SHARE = {
    1: (1.0, 1.0, 1.0, 1.0, 1.0),  # Not published; tensor 2 is at the TDP from 128 tokens on.
    2: (1.0, 1.0, 1.0, 1.0, 1.0),
    4: (0.64, 0.81, 1.0, 1.0, 1.0),
    8: (0.46, 0.66, 0.75, 0.75, 1.0),
}
_DEGREES, _WIDTHS = np.log2(_TENSOR), np.log2(_PREFILL_TOKENS)


def watts(accelerator: Accelerator, phase: Phase, clock: float = 1.0, tensor: int = 1, tokens: int = 2048) -> float:
    """Draw of one accelerator of a worker cut by `tensor`; `tokens` are a prefill pass's, `clock` is in (0, 1]."""
    _check_clock(clock)
    full = accelerator.tdp_watts * _share(phase, tensor, tokens)
    return accelerator.idle_watts + max(0.0, full - accelerator.idle_watts) * math.pow(clock, _EXPONENT)


def slowdown(phase: Phase, clock: float) -> float:
    """How many times longer a pass takes at this clock; 1 at full clock and when idle."""
    _check_clock(clock)
    bound = _MEMORY_BOUND.get(phase, 1.0)
    return 1.0 / ((1.0 - bound) * clock + bound)


def throttled(profile: LatencyProfile, clock: float) -> LatencyProfile:
    """The profile of the same worker at this clock."""
    return profile.scaled(slowdown(Phase.PREFILL, clock), slowdown(Phase.DECODE, clock))


def energy_joules(draw_watts: float, milliseconds: float) -> float:
    """Energy of a constant draw over a time."""
    return draw_watts * milliseconds / 1e3


def _share(phase: Phase, tensor: int, tokens: int) -> float:
    """Share of TDP at full clock; degrees between the measured ones lie on the line between them."""
    if phase is Phase.IDLE:
        return 0.0
    at: float = math.log2(max(1, min(tensor, _TENSOR[-1])))
    if phase is Phase.DECODE:
        return float(np.interp(at, _DEGREES, _DECODE_SHARE))
    wide = math.log2(max(1, tokens))
    if tensor in _PREFILL_SHARE:
        return float(np.interp(wide, _WIDTHS, _PREFILL_SHARE[tensor]))
    shares = [float(np.interp(wide, _WIDTHS, _PREFILL_SHARE[degree])) for degree in _TENSOR]
    return float(np.interp(at, _DEGREES, shares))


def _check_clock(clock: float) -> None:
    if not 0.0 < clock <= 1.0:
        raise ValueError(f"clock is {clock}; give the share of the maximum clock, above 0 and at most 1")
