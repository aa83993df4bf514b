"""The wait for KV memory: a worker whose cache is full admits nobody until somebody ends.

    held    = prompts + outputs/2 of all that are there, waiting or not
    over    = held + P - capacity          tokens to be freed before a prompt of P is admitted, in the order of arrival
    running = n * min(1, capacity/held)    requests that the memory lets run at once
    stay    = N*tpot(running) + running*p  ms in which the whole memory passes on to others (Little's law):
                                           N passes each, and a stall of p ms for each prompt that comes instead
    wait    = over * stay / capacity

Outputs are taken to be as long as what requests allow, `TYPICAL_OUTPUT` on average at most, because a maximum says
little about the length. A worker of unknown capacity is given the mean of the known; with none known nothing is said.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet import TYPICAL_OUTPUT, FleetView, Request, Slots

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Memory:
    """What full caches mean for a request at each candidate; arrays are (n,)."""

    share: Floats
    """Of the requests that are there, this one included, how many run at once: 0 to 1."""
    over: Floats
    """Tokens to be freed before it is admitted, as a share of the capacity."""
    output: Floats
    """Tokens that each of the requests there is expected to generate."""
    prompt: Floats
    """Prompt tokens of an average request there."""


def full_memory(
    view: FleetView, rows: Slots | slice, request: Request, foreign: Floats | float, most: Floats
) -> Memory | None:
    """Where memory is short for this request; `None` where it is not, or nobody's capacity is known.

    `most` is the most tokens held at each candidate, this request's included.
    """
    capacity = view.kv_capacity[rows]
    if not np.count_nonzero(most > capacity):  # NaN compares false
        return None
    prompt = float(request.prompt_tokens)
    context = view.context_tokens[rows]
    capacity = np.where(np.isnan(capacity), np.nanmean(capacity), capacity)
    count = np.maximum(view.in_flight[rows], 1)
    halves = view.outstanding_tokens[rows] - context
    output = np.minimum(2.0 * halves / count, TYPICAL_OUTPUT)
    prompts = (context - halves) / count
    held = (prompts + output / 2.0) * view.in_flight[rows] + foreign * view.mean_request_tokens
    wanted = held + prompt
    return Memory(
        share=np.minimum(capacity / wanted, 1.0),
        over=np.maximum(wanted / capacity - 1.0, 0.0),
        output=output,
        prompt=prompts,
    )
