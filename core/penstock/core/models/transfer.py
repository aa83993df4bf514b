"""How long KV cache takes from one worker to another."""

from __future__ import annotations

from penstock.core.models.architecture import ModelArchitecture
from penstock.core.models.hardware import Accelerator
from penstock.core.models.parallelism import Parallelism
from penstock.core.models.roofline import Efficiency

__all__ = ["transfer_ms_per_token"]


def transfer_ms_per_token(model: ModelArchitecture, hardware: Accelerator, degrees: Parallelism) -> float:
    """ms to receive one token's KV cache, each accelerator its shard over its own link at the link's sustained rate."""
    shard = model.kv_bytes_per_token() / model.kv_shards(degrees.tensor) / degrees.pipeline
    return shard / (hardware.link.bytes_per_second * Efficiency.of(hardware).link) * 1e3
