"""Whether a model fits an accelerator, and how many tokens of KV cache are left: vLLM's own sum, before it runs.

An engine takes `utilisation` of each accelerator; weights, the peak of one pass's activations and the captured graphs
come off, the rest is KV cache. It refuses to start when the cache cannot hold one sequence of `max_context`.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.models.architecture import ModelArchitecture
from penstock.core.models.dtypes import DType
from penstock.core.models.hardware import Accelerator
from penstock.core.models.parallelism import Parallelism

__all__ = ["MemoryFit", "fit", "smallest_fit"]

_GIB = 2**30
_GRAPHS = _GIB  # CUDA graphs, library workspaces and communication buffers of one process.


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """What one worker's memory holds. All bytes are per accelerator; tokens are the whole worker's."""

    fits: bool
    weights_bytes: int
    activation_bytes: int
    kv_bytes_per_token: int
    """On the accelerator that holds most of a token's KV cache."""
    kv_capacity_tokens: int
    """0 when the weights leave no room."""
    reason: str
    """One sentence: why it fits, or why not and what to change."""

    def num_blocks(self, block_size: int) -> int:
        """Whole blocks of `block_size` tokens that the KV cache holds."""
        return self.kv_capacity_tokens // block_size


def fit(
    model: ModelArchitecture,
    accelerator: Accelerator,
    parallelism: Parallelism | None = None,
    max_context: int | None = None,
    utilisation: float = 0.9,
    dtype: DType | str | None = None,
    kv_dtype: DType | str | None = None,
    max_batched_tokens: int = 8192,
) -> MemoryFit:
    """Whether a worker with these degrees can serve sequences of `max_context` tokens (default: the model's own).

    Raises ValueError when `utilisation` is outside (0, 1] or a token count is below 1.
    """
    degrees = parallelism or Parallelism()
    context = model.max_context if max_context is None else max_context
    _check(utilisation, context, max_batched_tokens)
    weights = _weights(model, degrees, dtype)
    activation = _activation(model, degrees, max_batched_tokens)
    per_token = _kv_per_token(model, degrees, kv_dtype)
    room = accelerator.memory_bytes * utilisation - weights - activation
    capacity = max(0, int(room // per_token)) * degrees.data
    problem = _indivisible(model, degrees)
    fits = problem is None and capacity // degrees.data >= context
    reason = problem or _reason(model, accelerator, degrees, context, utilisation, weights, per_token, room, fits)
    if not fits and problem is None:
        reason += _remedy(model, accelerator, degrees, context, utilisation, dtype, kv_dtype, max_batched_tokens)
    return MemoryFit(fits, weights, activation, per_token, capacity if problem is None else 0, reason)


def smallest_fit(
    model: ModelArchitecture,
    accelerator: Accelerator,
    max_context: int | None = None,
    utilisation: float = 0.9,
    dtype: DType | str | None = None,
    kv_dtype: DType | str | None = None,
    max_batched_tokens: int = 8192,
    max_accelerators: int = 8,
) -> Parallelism | None:
    """The fewest accelerators, cut by tensor, that fit the model; None when `max_accelerators` (a node's) do not."""
    tensor = 1
    while tensor <= max_accelerators:
        degrees = Parallelism(tensor=tensor)
        context = model.max_context if max_context is None else max_context
        room = accelerator.memory_bytes * utilisation - _weights(model, degrees, dtype)
        room -= _activation(model, degrees, max_batched_tokens)
        if _indivisible(model, degrees) is None and room >= context * _kv_per_token(model, degrees, kv_dtype):
            return degrees
        tensor *= 2
    return None


def _check(utilisation: float, context: int, batched: int) -> None:
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is {utilisation}; must be above 0 and at most 1")
    for name, count in (("max_context", context), ("max_batched_tokens", batched)):
        if count < 1:
            raise ValueError(f"{name} is {count}; must be at least 1 token")


def _weights(model: ModelArchitecture, degrees: Parallelism, dtype: DType | str | None) -> int:
    dense = model.dense_weights_bytes(dtype) / degrees.tensor
    return round((dense + model.expert_weights_bytes(dtype) / degrees.expert_shards) / degrees.pipeline)


def _activation(model: ModelArchitecture, degrees: Parallelism, batched: int) -> int:
    """Peak of one pass: residual stream and its copies, one layer's widest feed-forward, logits of 256 sequences."""
    experts = model.experts
    wide = experts.intermediate * (experts.active + experts.shared) if experts else model.intermediate
    pass_bytes = batched * (4 * model.hidden + 3 * wide / degrees.tensor) * 2
    logits = 256 * model.vocab * 4
    return round(pass_bytes + logits) + _GRAPHS


def _kv_per_token(model: ModelArchitecture, degrees: Parallelism, dtype: DType | str | None) -> int:
    stage = -(-model.layers // degrees.pipeline) / model.layers
    return round(model.kv_bytes_per_token(dtype) * stage / model.kv_shards(degrees.tensor))


def _indivisible(model: ModelArchitecture, degrees: Parallelism) -> str | None:
    if model.attention_heads % degrees.tensor:
        return f"tensor: {degrees.tensor} does not divide the {model.attention_heads} attention heads of {model.name}"
    if degrees.pipeline > model.layers:
        return f"pipeline: {degrees.pipeline} is more stages than the {model.layers} layers of {model.name}"
    if degrees.expert > 1 and model.experts is None:
        return f"expert: {degrees.expert} needs a mixture of experts; {model.name} is dense"
    return None


def _reason(
    model: ModelArchitecture, accelerator: Accelerator, degrees: Parallelism, context: int, utilisation: float,
    weights: int, per_token: int, room: float, fits: bool,
) -> str:  # fmt: skip
    count = degrees.accelerators
    over = f"over {count} {accelerator.name}" if count > 1 else f"on one {accelerator.name}"
    head = f"{model.name} needs {_gib(weights)} of weights on each accelerator ({degrees}, {over}), "
    head += f"which leaves engines {_gib(accelerator.memory_bytes * utilisation)}"
    if fits:
        return f"{head}: room for {int(room // per_token) * degrees.data:,} tokens of KV cache"
    if room <= 0:
        return f"{head}: no room for KV cache"
    return f"{head}: room for {int(room // per_token):,} tokens of KV cache, below the context of {context:,}"


def _remedy(
    model: ModelArchitecture, accelerator: Accelerator, degrees: Parallelism, context: int, utilisation: float,
    dtype: DType | str | None, kv_dtype: DType | str | None, batched: int,
) -> str:  # fmt: skip
    enough = smallest_fit(model, accelerator, context, utilisation, dtype, kv_dtype, batched)
    if enough is not None and enough.accelerators > degrees.accelerators:
        return f"; use {enough}"
    shorter = smallest_fit(model, accelerator, min(context, 4096), utilisation, dtype, kv_dtype, batched)
    if shorter is not None:
        return f"; lower maxContextTokens, use {shorter} or more, or take a larger accelerator"
    return "; use a larger accelerator or a smaller number format: no 8 of this one hold it"


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
