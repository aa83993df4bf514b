"""What a decision needs to know of a request: sizes and limits, never its text."""

from collections.abc import Sequence

import msgspec


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request, as every policy sees it. Made for every request: a frozen struct costs least.

    Token counts may be estimates (`exact_tokens` says so). `block_hashes` are the chained hashes of the
    prompt's whole blocks, empty when nobody computed them. `ttft_ms` and `tpot_ms` are the deployment's objectives,
    `None` where it has none. One that does not stream (`streams`) shows nothing of its first token. `deadline` is on
    the caller's clock, in seconds; `None` means the client waits as long as it likes. A lower `priority` number goes
    first, as in vLLM. `adapter` is the name and path of the LoRA adapter it wants of the model.
    """

    id: str
    model: str
    prompt_tokens: int
    max_tokens: int
    priority: int = 0
    exact_tokens: bool = False
    block_hashes: Sequence[bytes] = ()
    deadline: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    streams: bool = True
    adapter: tuple[str, str] | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt plus the most it may generate: what a reservation holds."""
        return self.prompt_tokens + self.max_tokens
