"""The shape of a transformer: from it follow its weights, its work per token and its KV cache.

Counts are of the published checkpoints; `tests/core` holds each declared total against the count that
`count_parameters` derives from the shape, so a mistyped layer number cannot stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from penstock.core.models.dtypes import DType

__all__ = ["Attention", "Experts", "ModelArchitecture", "count_parameters"]


class Attention(StrEnum):
    """What a layer keeps per token: keys and values of every head, of groups of heads, or one latent vector."""

    MHA = "MHA"
    GQA = "GQA"
    MLA = "MLA"


@dataclass(frozen=True, slots=True)
class Experts:
    """The sparse part of a mixture-of-experts model: in each of `layers` layers a token visits `active` of `routed`
    experts and all `shared` ones; `intermediate` is the width of one expert."""

    routed: int
    active: int
    layers: int
    intermediate: int
    shared: int = 0
    dtype: DType | None = None
    """Format of the routed experts' weights where it differs from the rest (gpt-oss); None: the same."""

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.routed:
            raise ValueError(f"{self.active} active experts of {self.routed}: must be between 1 and all of them")

    @property
    def active_fraction(self) -> float:
        """Share of the routed experts one token visits."""
        return self.active / self.routed


@dataclass(frozen=True, slots=True)
class ModelArchitecture:
    """One model's shape. Widths are in numbers, not bytes; parameters are counts of numbers."""

    name: str
    """The public name, as a model hub has it."""
    layers: int
    hidden: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of a dense layer's feed-forward network."""
    vocab: int
    total_parameters: int
    max_context: int
    """Longest sequence in tokens the checkpoint was made for."""
    attention: Attention = Attention.GQA
    kv_lora_rank: int = 0
    """MLA only: width of the latent vector."""
    rope_head_dim: int = 0
    """MLA only: width of the shared rotary key kept beside the latent."""
    q_lora_rank: int = 0
    """MLA only: width of the query's low-rank step; 0: none."""
    gated: bool = True
    """Whether a feed-forward network has three matrices (SwiGLU) or two."""
    tied_embeddings: bool = False
    experts: Experts | None = None
    dtype: DType = DType.BF16
    """Native format of the checkpoint."""
    sliding_window: int = 0
    """Tokens a windowed layer looks back on; 0: every layer sees the whole context."""
    sliding_layers: int = 0
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("layers", "hidden", "attention_heads", "kv_heads", "head_dim")}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"model {self.name}: {name} is {count}; must be at least 1")
        if self.attention is Attention.MLA and not (self.kv_lora_rank and self.rope_head_dim):
            raise ValueError(f"model {self.name}: MLA needs kv_lora_rank and rope_head_dim")

    @property
    def routed_expert_parameters(self) -> int:
        """Parameters of all routed experts of all layers; 0 for a dense model."""
        if self.experts is None:
            return 0
        return self.experts.layers * self.experts.routed * self._feed_forward(self.experts.intermediate)

    @property
    def active_parameters(self) -> int:
        """Parameters one token meets: all but the routed experts it does not visit."""
        if self.experts is None:
            return self.total_parameters
        visited = round(self.routed_expert_parameters * self.experts.active_fraction)
        return self.total_parameters - self.routed_expert_parameters + visited

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token table alone: looked up, never multiplied."""
        return self.vocab * self.hidden

    @property
    def kv_values_per_token(self) -> int:
        """Numbers the KV cache keeps per token, over all layers, one copy."""
        if self.attention is Attention.MLA:
            return self.layers * (self.kv_lora_rank + self.rope_head_dim)
        return self.layers * 2 * self.kv_heads * self.head_dim

    def kv_bytes_per_token(self, dtype: DType | str | None = None) -> int:
        """Bytes of KV cache per token over all layers, one copy; `None`: 16-bit, vLLM's `auto` for these models.

        Windowed layers are counted whole: true up to the window, an upper bound beyond it.
        """
        return round(self.kv_values_per_token * DType.parse(dtype or DType.BF16).bytes_per_value)

    def kv_shards(self, tensor: int) -> int:
        """In how many parts `tensor` accelerators can cut the KV cache: by head, and a latent not at all."""
        return 1 if self.attention is Attention.MLA else min(tensor, self.kv_heads)

    def weights_bytes(self, dtype: DType | str | None = None) -> int:
        """Bytes of all weights in `dtype`; `None`: as the checkpoint has them."""
        return self.dense_weights_bytes(dtype) + self.expert_weights_bytes(dtype)

    def dense_weights_bytes(self, dtype: DType | str | None = None) -> int:
        """Bytes of every weight but the routed experts'."""
        size = DType.parse(dtype or self.dtype).bytes_per_value
        return round((self.total_parameters - self.routed_expert_parameters) * size)

    def expert_weights_bytes(self, dtype: DType | str | None = None) -> int:
        """Bytes of the routed experts' weights; 0 for a dense model."""
        native = self.experts.dtype if self.experts else None
        return round(self.routed_expert_parameters * DType.parse(dtype or native or self.dtype).bytes_per_value)

    def _feed_forward(self, width: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width


def count_parameters(model: ModelArchitecture) -> int:
    """Parameters that follow from the shape: matrices, not biases, norms and position tables (well under 1 %)."""
    embeddings = model.embedding_parameters * (1 if model.tied_embeddings else 2)
    return embeddings + model.layers * _attention_parameters(model) + _feed_forward_parameters(model)


def _attention_parameters(model: ModelArchitecture) -> int:
    heads, width = model.attention_heads, model.head_dim
    if model.attention is not Attention.MLA:
        return model.hidden * width * (2 * heads + 2 * model.kv_heads)
    query_width = heads * (width + model.rope_head_dim)
    rank = model.q_lora_rank
    query = model.hidden * rank + rank * query_width if rank else model.hidden * query_width
    latent = model.hidden * (model.kv_lora_rank + model.rope_head_dim) + model.kv_lora_rank * heads * 2 * width
    return query + latent + heads * width * model.hidden


def _feed_forward_parameters(model: ModelArchitecture) -> int:
    matrices = 3 if model.gated else 2
    experts = model.experts
    if experts is None:
        return model.layers * matrices * model.hidden * model.intermediate
    dense = (model.layers - experts.layers) * matrices * model.hidden * model.intermediate
    shared = experts.layers * experts.shared * matrices * model.hidden * experts.intermediate
    router = experts.layers * model.hidden * experts.routed
    return dense + shared + router + model.routed_expert_parameters
