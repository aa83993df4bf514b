"""Which workers can exchange KV blocks: those whose compatibility hashes are equal.

Two engines can hand blocks to each other when model, weights' revision, cache type, block size, block layout and
engine version agree. Role, memory share, batch limits and tensor parallelism do not matter: vLLM's NIXL connector
re-slices heads between different tensor sizes; pipeline and context parallelism place layers and tokens elsewhere, so
they do.
"""

import hashlib
import json

from penstock.workers.decisions.adapters.arguments import flags_of
from penstock.workers.decisions.adapters.spec import WorkerSpec

KV_FLAGS = (
    "--dtype",
    "--kv-cache-dtype",
    "--block-size",
    "--quantization",
    "--attention-backend",
    "--attention-config",
    "--decode-context-parallel-size",
    "--prefill-context-parallel-size",
    "--hf-overrides",
    "--enable-lora",
    "--kv-transfer-config",
)
"""Engine flags that change what a KV block holds or how it is laid out."""

KV_ENVIRONMENT = ("VLLM_KV_CACHE_LAYOUT", "VLLM_ATTENTION_BACKEND", "VLLM_MLA_DISABLE")


def kv_compatibility_hash(spec: WorkerSpec) -> str:
    """16 hex digits, equal for workers that may form a prefill/decode pair."""
    flags = flags_of(spec.args)
    environment = {entry["name"]: entry.get("value") for entry in spec.env if entry["name"] in KV_ENVIRONMENT}
    identity = {
        "model": spec.model_uri or f"hf://{spec.model_name}",
        "image": spec.image,
        "block_size": spec.block_size,
        "pipeline": spec.parallelism.pipeline,
        "flags": {name: flags[name] for name in KV_FLAGS if name in flags},
        "environment": environment,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
