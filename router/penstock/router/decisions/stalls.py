"""How sure a time per token is, and so how far it has to stay below its objective for a request to be taken.

Between a request's tokens come the stalls of prompts that others bring (`core.fleet.stalls`): of its n passes each
waits `stall` ms on average, with a mean square of m ms². Stalls are a compound Poisson process, so the mean over n
passes has

    spread = sqrt(m / n)                       the standard deviation, ms

Who is taken at a worker lengthens the time per token of all who are there. Each of them keeps its objective with
probability P(z), z = (objective - tpot) / spread. One more keeps P(z) of a promise, and costs the others together
p(z) * (tpot - floor) / spread of theirs, since what tpot has above the floor is what they bring (P and p: the normal
distribution and its density). It is taken where it keeps more than it costs, and is itself kept rather than not:

    P(z) / p(z) >= (tpot - floor) / spread   and   z >= 0

The z of equality times the spread is the margin in ms that tpot has to keep from its objective. Where no prompt comes
there is no spread, and no margin.
"""

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Z = np.linspace(0.0, 4.0, 41)
_RATIO = np.array([math.sqrt(math.pi / 2) * (1 + math.erf(z / math.sqrt(2))) * math.exp(z * z / 2) for z in _Z])
"""P(z) / p(z) at each of them."""
_SURE = float(_Z[-1])
_NEXT_TO_NOTHING = 1e-9
"""ms, so that nothing is divided by no spread."""


def spread_ms(squares: Floats, output: float) -> Floats:
    """Standard deviation of a time per token (ms) over `output` passes with this mean square of stalls (ms²), (n,)."""
    squares = squares * (1.0 / max(output, 1.0))
    return cast(Floats, np.sqrt(squares, out=squares))


def margin_ms(above: Floats, spread: Floats) -> Floats:
    """ms to be kept from the objective, (n,), where the time per token has `above` ms above the floor."""
    margin: Floats = np.interp(above / (spread + _NEXT_TO_NOTHING), _RATIO, _Z)
    margin *= spread
    return margin


def keeps(tpot: Floats, spread: Floats, floor: Floats, objective: float) -> NDArray[np.bool_]:
    """Where one more is to be taken for the objective's sake, (n,); all times in ms."""
    room = objective - tpot
    kept: NDArray[np.bool_] = room >= _SURE * spread
    if np.count_nonzero(kept) == kept.size:
        return kept  # nobody comes near it, nearly always; no margin is above that
    return room >= margin_ms(tpot - floor, spread)
