"""The simulated engine as a pod: vLLM's flags where vLLM has them, ours for profile and clock.

A deployment written for vLLM runs on it unchanged: the same arguments are accepted, the same ones refused.
"""

import json
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
from penstock.workers.decisions.adapters.sources import resolve_source
from penstock.workers.decisions.adapters.spec import AdapterError, WorkerSpec
from penstock.workers.decisions.adapters.vllm import TRANSFER_OWNED

DEFAULT_BLOCK_SIZE = 16


def render_simulated(spec: WorkerSpec) -> dict[str, Any]:
    """The pod template of a simulated worker; refuses what the vLLM adapter would, so that nothing surprises later."""
    refuse_owned(spec.args, {**OWNED, **TRANSFER_OWNED} if spec.transfers_kv else OWNED)
    resolve_source(spec.model_uri, spec.model_name)
    engine = EngineContainer(
        command=("python", "-m", "penstock.workers.simulated"),
        args=merge(_defaults(spec), spec.args),
        env=_environment(spec),
        probe_period_s=1,
        requests={"cpu": "50m", "memory": "96Mi"},
        limits={"memory": "512Mi"},
        read_only_root=True,
    )
    return pod_template(spec, engine)


def _defaults(spec: WorkerSpec) -> list[list[str]]:
    groups = [["--served-model-name", spec.model_name], ["--port", str(spec.port)]]
    groups += _shape(spec)
    groups.append(["--profile", json.dumps(_profile(spec), sort_keys=True, separators=(",", ":"))])
    groups.append(["--time-scale", f"{spec.time_scale:g}"])
    groups.append(["--startup-seconds", f"{spec.startup_s:g}"])
    groups.append(["--enable-prompt-tokens-details"])
    groups.append(["--shutdown-timeout", f"{spec.shutdown_timeout_s:g}"])
    groups.append(["--kv-events-config", kv_events_config(spec)])
    if spec.transfers_kv:
        groups.append(["--kv-transfer-config", kv_transfer_config(spec)])
    return groups


def _shape(spec: WorkerSpec) -> list[list[str]]:
    """Context, batch and KV memory: what the fit said the accelerator holds."""
    block = spec.block_size or DEFAULT_BLOCK_SIZE
    groups = [["--block-size", str(block)]]
    if spec.max_context_tokens:
        groups.append(["--max-model-len", str(spec.max_context_tokens)])
    if spec.max_num_seqs:
        groups.append(["--max-num-seqs", str(spec.max_num_seqs)])
    if spec.kv_capacity_tokens:
        groups.append(["--num-gpu-blocks-override", str(max(1, spec.kv_capacity_tokens // block))])
    return groups


def _profile(spec: WorkerSpec) -> Any:
    if spec.profile is None:
        raise AdapterError(
            f"the simulated engine needs a latency profile of {spec.model_name} on {spec.accelerator or 'its class'}; "
            "create a PerformanceProfile, or use a model and accelerator class of the catalogue"
        )
    return spec.profile.to_dict()


def _environment(spec: WorkerSpec) -> list[dict[str, Any]]:
    env = pod_env()
    if spec.transfers_kv:
        env.append({"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(KV_TRANSFER_PORT)})
    return env
