"""The shape of any model from its Hugging Face `config.json`, for models the catalogue does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penstock.core.models.architecture import Attention, Experts, ModelArchitecture, count_parameters
from penstock.core.models.dtypes import DType

__all__ = ["architecture_from_config"]

# One meaning, several spellings: Llama family, OPT, BLOOM, GPT-2 lineage.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_KV_HEADS = ("num_key_value_heads", "multi_query_group_num", "n_head_kv")
_WIDTH = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "n_ctx")
_ROUTED = ("num_local_experts", "n_routed_experts", "num_experts")
_ACTIVE = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token")
_TWO_MATRICES = frozenset({"opt", "bloom", "gpt2", "gpt_neox", "gptj", "falcon", "gpt_bigcode", "starcoder2"})
_TIED_UNLESS_SAID = frozenset({"opt", "bloom", "gpt2", "gemma", "gemma2", "gemma3", "gemma3_text", "falcon"})


def architecture_from_config(config: Mapping[str, Any], name: str = "") -> ModelArchitecture:
    """The architecture that a `config.json` describes; parameters are counted from its shape (norms and biases aside).

    A multimodal model is read as its language part. Raises ValueError that names the key that is missing or wrong.
    """
    text = config.get("text_config")
    fields: Mapping[str, Any] = {**config, **text} if isinstance(text, Mapping) else config
    label = name or str(config.get("_name_or_path") or config.get("model_type") or "unnamed model")
    return _counted(_shape(_Keys(fields, label), label))


class _Keys:
    """Typed reads of a config with errors that name the model and the key."""

    def __init__(self, fields: Mapping[str, Any], label: str) -> None:
        self.fields, self.label = fields, label
        self.kind = str(fields.get("model_type", ""))

    def number(self, *keys: str) -> int:
        found = self.optional(*keys)
        if found is None:
            raise ValueError(f"config of {self.label}: {' or '.join(keys)} is missing")
        return found

    def optional(self, *keys: str) -> int | None:
        for key in keys:
            value = self.fields.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"config of {self.label}: {key} is {value!r}; must be a whole number")
            return value
        return None


def _shape(keys: _Keys, label: str) -> ModelArchitecture:
    layers, hidden, heads = keys.number(*_LAYERS), keys.number(*_HIDDEN), keys.number(*_HEADS)
    if heads == 0 or layers == 0 or hidden == 0:
        raise ValueError(f"config of {label}: layers, hidden size and heads must be above 0")
    latent = keys.optional("kv_lora_rank") or 0
    kv_heads = _kv_heads(keys, heads)
    return ModelArchitecture(
        name=label,
        layers=layers,
        hidden=hidden,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=keys.optional("qk_nope_head_dim", "head_dim") or hidden // heads,
        intermediate=keys.optional(*_WIDTH) or 4 * hidden,
        vocab=keys.number("vocab_size"),
        total_parameters=0,
        max_context=keys.optional(*_CONTEXT) or 2048,
        attention=Attention.MLA if latent else Attention.MHA if kv_heads == heads else Attention.GQA,
        kv_lora_rank=latent,
        rope_head_dim=(keys.optional("qk_rope_head_dim") or 0) if latent else 0,
        q_lora_rank=keys.optional("q_lora_rank") or 0,
        gated=keys.kind not in _TWO_MATRICES,
        tied_embeddings=bool(keys.fields.get("tie_word_embeddings", keys.kind in _TIED_UNLESS_SAID)),
        experts=_experts(keys, layers),
        dtype=_dtype(keys),
        sliding_window=_window(keys, layers)[0],
        sliding_layers=_window(keys, layers)[1],
    )


def _counted(shape: ModelArchitecture) -> ModelArchitecture:
    return replace(shape, total_parameters=count_parameters(shape))


def _kv_heads(keys: _Keys, heads: int) -> int:
    if keys.fields.get("multi_query") is True and not keys.fields.get("new_decoder_architecture"):
        return 1
    return keys.optional(*_KV_HEADS) or heads


def _experts(keys: _Keys, layers: int) -> Experts | None:
    routed = keys.optional(*_ROUTED) or 0
    if routed < 2:
        return None
    dense_first = keys.optional("first_k_dense_replace") or 0
    every = keys.optional("moe_layer_freq", "decoder_sparse_step") or 1
    return Experts(
        routed=routed,
        active=keys.number(*_ACTIVE),
        layers=-(-(layers - dense_first) // every),
        intermediate=keys.number("moe_intermediate_size", "expert_intermediate_size", *_WIDTH),
        shared=keys.optional("n_shared_experts") or 0,
        dtype=DType.MXFP4 if _quantised(keys) == "mxfp4" else None,
    )


def _quantised(keys: _Keys) -> str:
    section = keys.fields.get("quantization_config")
    return str(section.get("quant_method", "")) if isinstance(section, Mapping) else ""


def _dtype(keys: _Keys) -> DType:
    method = _quantised(keys)
    if method and method != "mxfp4":
        bits = keys.fields["quantization_config"].get("bits")
        return {8: DType.INT8, 4: DType.INT4}.get(bits) or DType.parse(method)
    try:
        return DType.parse(str(keys.fields.get("torch_dtype") or keys.fields.get("dtype") or "bfloat16"))
    except ValueError as error:
        raise ValueError(f"config of {keys.label}: {error}") from None


def _window(keys: _Keys, layers: int) -> tuple[int, int]:
    """(window, how many layers have it): told layer by layer, as a pattern, or for all."""
    window = keys.optional("sliding_window") or 0
    kinds = keys.fields.get("layer_types")
    if not window or keys.fields.get("use_sliding_window") is False:
        return 0, 0
    if isinstance(kinds, (list, tuple)):
        windowed = sum(kind == "sliding_attention" for kind in kinds)
    elif pattern := keys.optional("sliding_window_pattern"):
        windowed = layers - layers // pattern
    else:
        windowed = layers // 2 if keys.kind == "gemma2" else layers
    return (window, windowed) if windowed else (0, 0)
