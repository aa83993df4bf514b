"""Numbers that look random and are not: a lot for every worker, from its name and a key.

The worker with the lowest lot owns the key (rendezvous hashing). When a worker goes, only its own keys move.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from penstock.core.fleet import FleetView, Slots

_WORD = (1 << 64) - 1
_UNIT = 2.0**-64


def drawn(view: FleetView, slots: Slots, key: int) -> NDArray[np.float64]:
    """One lot in [0, 1] for each slot, the same for the same worker and key; shape like `slots`."""
    words = mixed(view.name_hash[slots] ^ np.uint64(_mix(key & _WORD)))
    return words.astype(np.float64) * _UNIT


def mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: every bit of the input turns half the bits of the output."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return cast(NDArray[np.uint64], words ^ (words >> np.uint64(31)))


def _mix(word: int) -> int:
    """The same for one number, so that keys in a row lie far apart."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
