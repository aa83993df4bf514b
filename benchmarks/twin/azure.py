"""The workload of these benchmarks: lengths of the Azure conversation trace, arriving in a Poisson stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from penstock.core.traces import Trace, parse_trace
from penstock.simulator.workloads import Columns, arrivals, stream_like

__all__ = ["in_conversations", "lengths_of"]

_BLOCK_TOKENS, _TURNS, _OPEN = 64, 4.0, 500


def lengths_of(trace: Path, requests: int, rate: float, seed: int) -> Columns:
    """So many requests of a trace's lengths, `rate` of them a second."""
    recorded = parse_trace(trace.read_text().splitlines()).trace
    # A little more time than needed, cut to the number wanted.
    times = arrivals(rate, requests / rate * 1.2 + 10.0, seed=seed)[:requests]
    return stream_like(recorded, times, seed)


def in_conversations(plain: Columns, seed: int) -> Trace:
    """The same requests with prefix blocks: each goes on from one of the open conversations, drawn by lot, and a
    conversation ends after `_TURNS` turns on average."""
    rng = np.random.default_rng((seed, 0x707265))
    opened: list[list[int]] = []
    asked, named = [], 0
    for _, request in plain.opening():
        whole = request.input_tokens // _BLOCK_TOKENS
        goes_on = len(opened) >= _OPEN
        blocks = opened.pop(int(rng.integers(len(opened)))) if goes_on else []
        new = max(0, whole - len(blocks))
        blocks = blocks[:whole] + list(range(named, named + new))
        named += new
        asked.append(replace(request, prefix_blocks=tuple(blocks)))
        opened.append([] if rng.random() < 1.0 / _TURNS else blocks)
    return Trace(tuple(asked), _BLOCK_TOKENS)
