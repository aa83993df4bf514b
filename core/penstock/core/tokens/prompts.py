"""From a request to token ids and block hashes: one function, the same the engine computes.

    prompts_of(request, tokenizer, naming, now, adapter) -> (Prompt, ...)

A completion may batch several prompts, a chat is one. Hashes are the engine's `sha256_cbor` chain with the request's
cache salt and adapter (`core.wire.block_hash`); only whole blocks have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from penstock.core.tokens.errors import PromptError
from penstock.core.tokens.requests import ChatPrompt, PromptRequest, TextOrIds
from penstock.core.tokens.tokenizer import PromptTokenizer
from penstock.core.wire.block_hash import DEFAULT_SEED, chain_hashes, root_hash

Adapter = tuple[str, str]
"""A LoRA adapter's name and path, as the engine was told them."""


@dataclass(frozen=True, slots=True)
class BlockNaming:
    """How a model's engines cut and name blocks."""

    size: int
    """Tokens per block."""
    seed: str = DEFAULT_SEED
    """The text the chain starts from: the engine's PYTHONHASHSEED where it has one."""

    def __post_init__(self) -> None:
        """Refuse a size no engine has."""
        if self.size < 1:
            raise ValueError(f"a block holds at least one token, got {self.size}")


class Prompt(msgspec.Struct, frozen=True):
    """One prompt as the engine will see it."""

    token_ids: Sequence[int]
    block_hashes: tuple[bytes, ...]
    """Of its whole blocks, in order."""

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.token_ids)


def prompts_of(
    request: PromptRequest,
    tokenizer: PromptTokenizer,
    naming: BlockNaming,
    now: datetime,
    adapter: Adapter | None = None,
) -> tuple[Prompt, ...]:
    """The request's prompts. `now` is the engine's clock, for templates that tell the date.

    Raises `PromptError` where the engine would refuse too, `TokensUnknown` where only the engine can tell.
    """
    if isinstance(request.prompt, ChatPrompt):
        given: tuple[TextOrIds, ...] = (tokenizer.render(request.prompt, now),)
    else:
        given = request.prompt
    return tuple(named(_ids(prompt, request, tokenizer), request.cache_salt, naming, adapter) for prompt in given)


def _ids(prompt: TextOrIds, request: PromptRequest, tokenizer: PromptTokenizer) -> Sequence[int]:
    if isinstance(prompt, str):
        ids: Sequence[int] = tokenizer.encode(prompt, special=request.special, limit=request.keep, side=request.side)
    elif request.keep is None:
        ids = prompt
    else:
        ids = prompt[-request.keep :] if request.side == "left" else prompt[: request.keep]
    if not ids:
        raise PromptError("the prompt has no tokens")
    return ids


def named(ids: Sequence[int], salt: str | None, naming: BlockNaming, adapter: Adapter | None = None) -> Prompt:
    """Token ids with their block hashes."""
    root = root_hash(naming.seed)
    return Prompt(ids, tuple(chain_hashes(ids, naming.size, parent=root, salt=salt, adapter=adapter)))
