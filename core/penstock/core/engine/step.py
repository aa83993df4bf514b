"""One iteration of an engine: which sequences compute which tokens, how long it takes, what came out."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct
from penstock.core.engine.events import BlockEvent
from penstock.core.engine.sequence import Finished, Token

__all__ = ["Admission", "Outputs", "Step", "Transfer", "Work"]


class Work(NamedTuple):
    """One sequence's share of a step."""

    id: str
    tokens: int
    """Tokens computed in this step."""
    computed: int
    """Tokens whose KV was there before."""


class Admission(NamedTuple):
    """A sequence that left the waiting queue in a step."""

    id: str
    cached_tokens: int
    resumed: bool
    """Whether it had been preempted before."""


class Transfer(NamedTuple):
    """KV to fetch from another engine; blocks are reserved. Answer with `remote_kv_arrived` or `remote_kv_failed`."""

    id: str
    tokens: int
    cached_tokens: int
    """Leading tokens found here, which need no fetching."""


class Step(Struct, frozen=True, gc=False):
    """One iteration. `prompt_tokens`, `squares`, `sequences` and `context` are T, S, B and C of the latency model."""

    number: int
    ids: tuple[str, ...]
    """The sequences that compute something."""
    counts: tuple[int, ...]
    """Tokens each of them computes."""
    computed: tuple[int, ...]
    """Tokens of each whose KV was there before."""
    duration_ms: float
    prompt_tokens: int
    squares: float
    sequences: int
    context: int
    admitted: tuple[Admission, ...] = ()
    preempted: tuple[str, ...] = ()
    swap_ms: float = 0.0
    """How much of `duration_ms` went on copies to and from the host."""

    @property
    def work(self) -> tuple[Work, ...]:
        """Each sequence's share."""
        return tuple(map(Work, self.ids, self.counts, self.computed))

    @property
    def tokens(self) -> int:
        """Tokens computed, prompt and decode together."""
        return self.prompt_tokens + self.sequences


class Outputs(Struct, frozen=True, gc=False):
    """What a completed step gave. A sequence's last token stands in `tokens` as well as its end in `finished`."""

    tokens: tuple[Token, ...]
    finished: tuple[Finished, ...]
    events: tuple[BlockEvent, ...]
