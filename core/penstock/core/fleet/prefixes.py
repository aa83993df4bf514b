"""What picks ask about prompts in workers' caches; who answers lives with the router."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class PrefixIndex(Protocol):
    """Who has how much of a prompt cached."""

    def longest_prefix(self, hashes: Sequence[bytes], slots: int) -> NDArray[np.int64]:
        """Blocks of this prompt each worker holds from its beginning on, shape (slots,)."""
        ...
