"""What the twin plays: requests that come by themselves, one after the other, and such as others give rise to.

A workload says how much of it there is before it begins, and is then read one request at a time; so a million
requests take no more memory than those that are alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
from penstock.core.traces import DEFAULT_BLOCK_TOKENS, Trace, TraceRequest

__all__ = ["Columns", "Numbered", "Recorded", "Workload", "as_workload"]

_READ_AT_ONCE = 256
"""Requests of columns: their numbers are cheaper to read in runs."""
Numbered = tuple[int, TraceRequest]
"""A request and its number, from 0, under which its outcome stands; no two have the same."""


class Workload(Protocol):
    """Requests for the twin. The same workload plays the same again."""

    @property
    def total(self) -> int:
        """How many requests there can be."""
        ...

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest one, prompt and output together."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Whether any names prefix blocks."""
        ...

    @property
    def block_tokens(self) -> int:
        """Prompt tokens that a prefix block stands for."""
        ...

    def opening(self) -> Iterator[Numbered]:
        """The requests that come by themselves, in the order of their arrival."""
        ...

    def after(self, number: int, now: float, completed: bool) -> Iterable[Numbered]:
        """The requests that the end of this one gives rise to, none of which may arrive before `now` (seconds)."""
        ...


class Recorded:
    """A trace as a workload: nothing in it waits for an answer."""

    __slots__ = ("trace",)

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    @property
    def total(self) -> int:
        """As in `Workload`."""
        return len(self.trace.requests)

    @property
    def longest_tokens(self) -> int:
        """As in `Workload`."""
        return self.trace.longest_tokens

    @property
    def shares_prefixes(self) -> bool:
        """As in `Workload`."""
        return self.trace.shares_prefixes

    @property
    def block_tokens(self) -> int:
        """As in `Workload`."""
        return self.trace.block_tokens

    def opening(self) -> Iterator[Numbered]:
        """As in `Workload`."""
        return enumerate(self.trace.requests)

    def after(self, number: int, now: float, completed: bool) -> Iterable[Numbered]:
        """None: a trace waits for nobody."""
        return ()


class Columns:
    """Arrivals and lengths as arrays: 16 bytes a request, for workloads too long to be kept as objects."""

    __slots__ = ("arrivals_s", "input_tokens", "output_tokens")

    block_tokens = DEFAULT_BLOCK_TOKENS
    shares_prefixes = False

    def __init__(
        self,
        arrivals_s: npt.NDArray[np.float64],
        input_tokens: npt.NDArray[np.int32],
        output_tokens: npt.NDArray[np.int32],
    ) -> None:
        """Three arrays of one length: seconds, sorted, and tokens of at least 1. Raises ValueError otherwise."""
        if not len(arrivals_s) == len(input_tokens) == len(output_tokens):
            raise ValueError("arrivals, input tokens and output tokens of a workload must be equally many")
        if len(arrivals_s) and (np.diff(arrivals_s, prepend=0.0) < 0).any():
            raise ValueError("arrivals of a workload must be sorted, the first one at 0 s or later")
        if len(arrivals_s) and min(int(input_tokens.min()), int(output_tokens.min())) < 1:
            raise ValueError("every request of a workload needs at least 1 input and 1 output token")
        self.arrivals_s, self.input_tokens, self.output_tokens = arrivals_s, input_tokens, output_tokens

    @property
    def total(self) -> int:
        """As in `Workload`."""
        return len(self.arrivals_s)

    @property
    def longest_tokens(self) -> int:
        """As in `Workload`."""
        return int((self.input_tokens + self.output_tokens).max()) if self.total else 0

    def opening(self) -> Iterator[Numbered]:
        """As in `Workload`."""
        columns = self.arrivals_s, self.input_tokens, self.output_tokens
        for first in range(0, self.total, _READ_AT_ONCE):
            rows = zip(*(column[first : first + _READ_AT_ONCE].tolist() for column in columns), strict=True)
            for number, (arrival_s, given, asked) in enumerate(rows, first):
                yield number, TraceRequest(arrival_s, given, asked)

    def after(self, number: int, now: float, completed: bool) -> Iterable[Numbered]:
        """None: these requests come by themselves."""
        return ()


def as_workload(played: Trace | Workload) -> Workload:
    """A workload of what may be a trace."""
    return Recorded(played) if isinstance(played, Trace) else played
