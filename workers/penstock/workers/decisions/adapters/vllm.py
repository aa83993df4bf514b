"""vLLM as a pod: arguments, environment, volumes of a real engine.

Checked by golden files; flags and their forms are those of vLLM 0.32.
"""

from typing import Any

from penstock.workers.decisions.adapters.arguments import OWNED, merge, refuse_owned
from penstock.workers.decisions.adapters.pod import (
    KV_TRANSFER_PORT,
    EngineContainer,
    kv_events_config,
    kv_transfer_config,
    pod_env,
    pod_template,
)
from penstock.workers.decisions.adapters.sources import Source, resolve_source
from penstock.workers.decisions.adapters.spec import WorkerSpec

CACHE = "/cache"
SECRET_KEY = "HF_TOKEN"  # noqa: S105 - the name of a key, not a secret

TRANSFER_OWNED = {"--kv-transfer-config": "a Prefill or Decode pool's transfer is set up by the operator"}


def render_vllm(spec: WorkerSpec) -> dict[str, Any]:
    """The pod template of a vLLM worker; raises `AdapterError` for arguments or sources it must refuse."""
    refuse_owned(spec.args, {**OWNED, **TRANSFER_OWNED} if spec.transfers_kv else OWNED)
    source = resolve_source(spec.model_uri, spec.model_name)
    volumes, mounts = _storage(spec, source)
    engine = EngineContainer(
        command=("vllm", "serve"),
        args=[source.model, *merge(_defaults(spec, source), spec.args)],
        env=_environment(spec),
        probe_period_s=10,
        volumes=volumes,
        mounts=mounts,
    )
    return pod_template(spec, engine)


def _defaults(spec: WorkerSpec, source: Source) -> list[list[str]]:
    """Our arguments, one group per flag."""
    groups = [["--served-model-name", spec.model_name], ["--port", str(spec.port)]]
    if source.revision:
        groups.append(["--revision", source.revision])
    groups += _parallelism(spec)
    if spec.max_context_tokens:
        groups.append(["--max-model-len", str(spec.max_context_tokens)])
    if spec.max_num_seqs:
        groups.append(["--max-num-seqs", str(spec.max_num_seqs)])
    if spec.block_size:
        groups.append(["--block-size", str(spec.block_size)])
    # The router recomputes block hashes; vLLM's default algorithm hashes a Python pickle and cannot be matched.
    groups.append(["--prefix-caching-hash-algo", "sha256_cbor"])
    groups.append(["--enable-prompt-tokens-details"])
    groups.append(["--shutdown-timeout", str(round(spec.shutdown_timeout_s))])
    groups.append(["--kv-events-config", kv_events_config(spec)])
    if spec.transfers_kv:
        groups.append(["--kv-transfer-config", kv_transfer_config(spec)])
    return groups


def _parallelism(spec: WorkerSpec) -> list[list[str]]:
    sizes = {
        "--tensor-parallel-size": spec.parallelism.tensor,
        "--pipeline-parallel-size": spec.parallelism.pipeline,
        "--data-parallel-size": spec.parallelism.data,
    }
    groups = [[flag, str(size)] for flag, size in sizes.items() if size > 1 or flag == "--tensor-parallel-size"]
    return [*groups, ["--enable-expert-parallel"]] if spec.parallelism.expert > 1 else groups


def _environment(spec: WorkerSpec) -> list[dict[str, Any]]:
    env = [
        *pod_env(),
        # The user id has no entry in the image's passwd: give the libraries that ask for a name and a home both.
        {"name": "HOME", "value": CACHE},
        {"name": "USER", "value": "penstock"},
        {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        {"name": "VLLM_CACHE_ROOT", "value": f"{CACHE}/vllm"},
        {"name": "TRITON_CACHE_DIR", "value": f"{CACHE}/triton"},
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
    ]
    if spec.secret_name:
        reference = {"name": spec.secret_name, "key": SECRET_KEY}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    if spec.transfers_kv:
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        env.append({"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": address})
        env.append({"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(KV_TRANSFER_PORT)})
    return env


def _storage(spec: WorkerSpec, source: Source) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts: the caches, the weights where they are mounted, shared memory between GPU processes."""
    cache: dict[str, Any] = {"name": "cache", "emptyDir": {}}
    if spec.cache_claim:
        cache = {"name": "cache", "persistentVolumeClaim": {"claimName": spec.cache_claim}}
    volumes = [cache]
    mounts: list[dict[str, Any]] = [{"name": "cache", "mountPath": CACHE}]
    if source.volume and source.mount:
        volumes.append(source.volume)
        mounts.append(source.mount)
    if spec.parallelism.accelerators > 1:
        # A runtime gives /dev/shm 64 MiB, too little for NCCL and vLLM's message queues between ranks.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - the container's own
    return volumes, mounts
