"""What the prompts that follow a request make its worker's other requests wait, pass by pass.

A pass with a prompt in it lasts longer for everybody there, by what the prompt takes beyond reading the weights, which
the pass does anyway. Nobody knows the prompts to come, but where as many requests come as go (Little's law), a request
that generates N tokens, and so is there for N passes, is followed by 1/N of a request like it with each of them. A
prompt that stalls a pass by s ms therefore stands for s/N ms of each pass, and for a mean square of s²/N.

Reservations bring these two with them, and the fleet holds their sums. Sums of 1/N, rather than requests over their
mean length, because those that are there are longer than those that come (the inspection paradox), and because lengths
of prompts and answers differ between workers, most of all where a policy sends them by length.
"""

__all__ = ["NO_STALLS", "TYPICAL_OUTPUT", "stalls_each_pass"]

TYPICAL_OUTPUT = 256
"""Output tokens expected of a request that allows more: a maximum says little about the length."""
NO_STALLS = (0.0, 0.0)
_GRAIN = float(1 << 20)
"""Of a ms, and of a squared ms: sums of whole multiples of a power of two are exact, whatever comes and goes, below
2^33 (a single squared stall of 93 s, or 256 times that many where each goes over 256 passes)."""


def stalls_each_pass(
    base: float, slope: float, square: float, floor: float, prompt: int, cached: int, output: int
) -> tuple[float, float]:
    """(ms, ms²) that the prompts which follow a request bring to each pass; 0 where the profile is not known (NaN).

    `base`, `slope` and `square` are those of the profile's prefill, `floor` its decode's (`core.models.latency`);
    `prompt`, `cached` and `output` are tokens, of which `TYPICAL_OUTPUT` count at most.
    """
    stall = base + slope * (prompt - cached) + square * (prompt * prompt - cached * cached) - floor
    if not stall > 0.0:
        return NO_STALLS
    passes = output if 0 < output < TYPICAL_OUTPUT else TYPICAL_OUTPUT if output else 1
    scale = _GRAIN / passes
    return int(stall * scale) / _GRAIN, int(stall * stall * scale) / _GRAIN
