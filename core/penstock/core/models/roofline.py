"""Latency from first principles, for pairs of model and accelerator nobody has published or measured.

A pass over few tokens waits for memory (every weight read once), over many tokens for the matrix units; attention adds
its own work, tensor parallelism two all-reduces a layer. Peaks are never reached: `Efficiency` holds the sustained
shares. They were set from Vidur's operator profiles, which are independent of them in the accelerator (7B and 70B on
A100, H100, A40: 0.66 to 0.72 of dense peak on long prompts, 0.69 to 0.74 of bandwidth below 64 tokens).

Pipeline stages of one pass run one after the other, so `pipeline` cuts memory, not time: several passes in flight are
not modelled and such a worker is predicted slower than it is. A worker with `data` ranks is timed per rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.models.architecture import Attention, ModelArchitecture
from penstock.core.models.dtypes import DType
from penstock.core.models.hardware import Accelerator, LinkKind
from penstock.core.models.latency import LatencyProfile, ProfileSource
from penstock.core.models.parallelism import Parallelism

__all__ = ["Efficiency", "all_reduce_ms", "attention_ms", "kv_read_ms", "roofline_profile"]

_CHORD = 256  # Sequences over which decode is made a straight line: vLLM's usual max_num_seqs.
_SCHEDULER_MS = 0.008  # Host work per sequence and pass: sampling, block table, detokenising.
_PASS_MS = 1.0  # Host work per pass: scheduling, input tensors, graph launch.
_REDUCE_MS = {LinkKind.NVLINK: 0.015, LinkKind.INFINITY_FABRIC: 0.02, LinkKind.PCIE: 0.03, LinkKind.UPI: 0.05}


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the peaks that real kernels sustain."""

    compute: float = 0.65
    """Matrix products over long prompts."""
    attention: float = 0.50
    """Prefill attention kernels."""
    bandwidth: float = 0.75
    """Reading weights and KV cache."""
    link: float = 0.75
    """All-reduce against the link's one-way rate."""

    @classmethod
    def of(cls, accelerator: Accelerator) -> Efficiency:
        """What this kind of accelerator sustains; AMD and CPU matrix units sustain less of their peak."""
        if accelerator.is_cpu:
            return cls(compute=0.30, attention=0.20, bandwidth=0.60, link=0.60)
        if accelerator.vendor == "amd":
            return cls(compute=0.45, attention=0.35, bandwidth=0.65, link=0.65)
        return cls()


def roofline_profile(
    model: ModelArchitecture,
    accelerator: Accelerator,
    parallelism: Parallelism | None = None,
    dtype: DType | str | None = None,
    kv_dtype: DType | str | None = None,
    efficiency: Efficiency | None = None,
) -> LatencyProfile:
    """Predicted latency; `dtype` of the weights and `kv_dtype` of the cache default to the checkpoint's and 16 bit."""
    degrees = parallelism or Parallelism()
    share = efficiency or Efficiency.of(accelerator)
    reduce_fixed, reduce_token = all_reduce_ms(model, accelerator, degrees.tensor, share)
    compute = _matrix_ms_per_token(model, accelerator, degrees, DType.parse(dtype or model.dtype), share)
    dense, experts = _weights_read_ms(model, accelerator, degrees, dtype, share)
    fraction = model.experts.active_fraction if model.experts else 0.0
    floor = _PASS_MS + dense + reduce_fixed
    return LatencyProfile(
        prefill=(
            _PASS_MS + reduce_fixed,
            compute + reduce_token,
            attention_ms(model, accelerator, degrees.tensor, share),
        ),
        decode=(
            floor,
            _decode_slope(floor + experts, _PASS_MS + reduce_fixed, compute) + reduce_token + _SCHEDULER_MS,
            kv_read_ms(model, accelerator, degrees.tensor, kv_dtype, share),
        ),
        source=ProfileSource.ROOFLINE,
        provenance=f"roofline: {accelerator.name}, {degrees}, sustained compute {share.compute:.0%}, "
        f"bandwidth {share.bandwidth:.0%}",
        experts=(experts, min(1.0, fraction * degrees.data)),
    )


def all_reduce_ms(
    model: ModelArchitecture, accelerator: Accelerator, tensor: int, share: Efficiency | None = None
) -> tuple[float, float]:
    """(ms per pass, ms per token) of two ring all-reduces a layer: each token's vector crosses 2(t-1)/t times."""
    if tensor == 1:
        return 0.0, 0.0
    share = share or Efficiency.of(accelerator)
    moved = 2 * model.layers * model.hidden * 2 * 2 * (tensor - 1) / tensor
    rate = accelerator.link.bytes_per_second * share.link
    return 2 * model.layers * _REDUCE_MS[accelerator.link.kind], moved / rate * 1e3


def attention_ms(
    model: ModelArchitecture, accelerator: Accelerator, tensor: int, share: Efficiency | None = None
) -> float:
    """ms per squared prompt token of causal attention: two products over half the square, heads cut by `tensor`.

    Windowed layers do not grow with the square and are left out; their linear work is small beside the matrices'.
    """
    share = share or Efficiency.of(accelerator)
    width = 2 * model.head_dim + (model.rope_head_dim if model.attention is Attention.MLA else 0)
    flops = (model.layers - model.sliding_layers) * model.attention_heads * width
    return flops / (tensor * accelerator.bf16_flops * share.attention) * 1e3


def kv_read_ms(
    model: ModelArchitecture,
    accelerator: Accelerator,
    tensor: int,
    kv_dtype: DType | str | None = None,
    share: Efficiency | None = None,
) -> float:
    """ms per token of context of one decode step: its KV read once, or for MLA the work on the latent if longer."""
    share = share or Efficiency.of(accelerator)
    full_layers = 1 - model.sliding_layers / model.layers
    size = model.kv_bytes_per_token(kv_dtype) * full_layers / model.kv_shards(tensor)
    reading = size / (accelerator.memory_bandwidth * share.bandwidth) * 1e3
    if model.attention is not Attention.MLA:
        return reading
    # Absorbed form: each head scores the latent and its rotary part, then sums the latent.
    flops = model.layers * model.attention_heads * 2 * (2 * model.kv_lora_rank + model.rope_head_dim)
    return max(reading, flops / (tensor * accelerator.bf16_flops * share.attention) * 1e3)


def _matrix_ms_per_token(
    model: ModelArchitecture, accelerator: Accelerator, degrees: Parallelism, dtype: DType, share: Efficiency
) -> float:
    fast = accelerator.fp8_flops if dtype.is_eight_bit_float and accelerator.fp8_flops else accelerator.bf16_flops
    # The vocabulary head runs for the last token of a prompt only, the token table is no product at all.
    tables = model.embedding_parameters * (1 if model.tied_embeddings else 2)
    return 2 * (model.active_parameters - tables) / (degrees.tensor * fast * share.compute) * 1e3


def _weights_read_ms(
    model: ModelArchitecture,
    accelerator: Accelerator,
    degrees: Parallelism,
    dtype: DType | str | None,
    share: Efficiency,
) -> tuple[float, float]:
    rate = accelerator.memory_bandwidth * share.bandwidth
    size = DType.parse(dtype or model.dtype).bytes_per_value
    looked_up = 0 if model.tied_embeddings else round(model.embedding_parameters * size)
    dense = (model.dense_weights_bytes(dtype) - looked_up) / degrees.tensor
    return dense / rate * 1e3, model.expert_weights_bytes(dtype) / degrees.expert_shards / rate * 1e3


def _decode_slope(floor: float, overhead: float, compute: float) -> float:
    """ms per sequence: the chord, over `_CHORD` sequences, of the higher of reading the weights and multiplying."""
    return max(0.0, overhead + compute * _CHORD - floor) / _CHORD
