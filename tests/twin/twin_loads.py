"""A load in steps, which two tests of the autoscaler in the loop play."""

from __future__ import annotations

import random
from collections.abc import Sequence

from penstock.core.traces import Trace, TraceRequest

Steps = Sequence[tuple[float, float]]
"""Seconds, and requests per second."""


def load_in_steps(steps: Steps, seed: int, lead_s: float, prompts: tuple[int, int], output: int) -> Trace:
    """Independent arrivals after `lead_s` of nothing, which moves them between cycles and scrapes; prompts of so many
    tokens, evenly drawn."""
    chance, start = random.Random(seed), lead_s
    made: list[TraceRequest] = []
    for seconds, rate in steps:
        at = start + chance.expovariate(rate)
        while at < start + seconds:
            made.append(TraceRequest(at, chance.randint(*prompts), output))
            at += chance.expovariate(rate)
        start += seconds
    return Trace(tuple(made))
