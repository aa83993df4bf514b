"""The simulated engine's command line: vLLM's flags where vLLM has them, and our own for profile, clock and faults.

Flags of vLLM's that have no meaning here are accepted and named in the log, so that a deployment's arguments work on
both engines; a flag that neither knows is an error, as it is with vLLM.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.core.models import LatencyProfile
from penstock.core.wire import WireError
from penstock.workers.decisions.simulated.faults import Faults, parse_faults

VERSION = "0.32.0"
"""The vLLM whose surface this is."""

LONGEST_CONTEXT = 131_072

NIXL = ("NixlConnector", "NixlPullConnector")
"""KV connectors that are simulated; another one is accepted without effect."""

WITHOUT_EFFECT = (
    "--attention-backend",
    "--async-scheduling",
    "--chat-template",
    "--compilation-config",
    "--config-format",
    "--cuda-graph-sizes",
    "--data-parallel-size",
    "--disable-log-requests",
    "--disable-log-stats",
    "--distributed-executor-backend",
    "--download-dir",
    "--dtype",
    "--enable-auto-tool-choice",
    "--enable-chunked-prefill",
    "--enable-expert-parallel",
    "--enable-log-requests",
    "--enable-sleep-mode",
    "--enforce-eager",
    "--generation-config",
    "--gpu-memory-utilization",
    "--hf-overrides",
    "--kv-cache-dtype",
    "--kv-cache-memory-bytes",
    "--limit-mm-per-prompt",
    "--load-format",
    "--max-cpu-loras",
    "--max-lora-rank",
    "--max-seq-len-to-capture",
    "--mm-processor-kwargs",
    "--model",
    "--override-generation-config",
    "--pipeline-parallel-size",
    "--quantization",
    "--reasoning-parser",
    "--revision",
    "--safetensors-load-strategy",
    "--scheduling-policy",
    "--speculative-config",
    "--swap-space",
    "--tensor-parallel-size",
    "--tokenizer",
    "--tool-call-parser",
    "--trust-remote-code",
    "--uvicorn-log-level",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A parsed command line. Times in seconds."""

    names: tuple[str, ...]
    host: str
    port: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    prefix_caching: bool
    profile: LatencyProfile
    time_scale: float
    startup_s: float
    shutdown_timeout_s: float
    keep_alive_s: float
    default_max_tokens: int
    mean_output_tokens: float
    prompt_tokens_details: bool
    force_include_usage: bool
    enable_lora: bool
    max_loras: int
    runtime_lora: bool
    dev_mode: bool
    kv_events: Mapping[str, Any] | None
    kv_transfer: Mapping[str, Any] | None
    kv_bytes_per_token: int
    link_bytes_per_s: float
    side_channel_host: str
    side_channel_port: int
    enable_faults: bool
    faults: Faults
    log_level: str
    ignored: tuple[str, ...]
    """Flags that were accepted without effect."""


def parse_options(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Options:
    """Read the command line and its environment; ends the process with a sentence where either is wrong."""
    env = os.environ if environment is None else environment
    parser = _parser(env)
    words = [_dashed(word) for word in arguments]
    given, unknown = parser.parse_known_args(words)
    ignored, strange = _sort_unknown(unknown)
    if strange:
        parser.error(f"neither vLLM {VERSION} nor the simulated engine knows {' '.join(strange)}")
    try:
        profile = LatencyProfile.from_dict(json.loads(given.profile))
        faults = parse_faults(given.fault)
    except (ValueError, WireError) as error:
        parser.error(str(error))
    for name in ("time_scale", "link_gigabytes_per_second"):
        if not getattr(given, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    capacity = given.num_gpu_blocks_override * given.block_size
    if given.max_model_len is None:
        given.max_model_len = min(capacity, LONGEST_CONTEXT)
    for name in ("max_num_seqs", "block_size", "num_gpu_blocks_override", "max_num_batched_tokens", "max_model_len"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if capacity < given.max_model_len:
        # vLLM refuses to start likewise: one request of full length would never fit.
        parser.error(
            f"the KV cache holds {capacity} tokens, fewer than one request of --max-model-len {given.max_model_len}; "
            "lower --max-model-len or raise --num-gpu-blocks-override"
        )
    transfer = _config(parser, "--kv-transfer-config", given.kv_transfer_config)
    if transfer is not None and transfer.get("kv_connector") not in NIXL:
        ignored.append(f"--kv-transfer-config {transfer.get('kv_connector')}")
        transfer = None
    return Options(
        names=tuple(given.served_model_name),
        host=given.host,
        port=given.port,
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        block_size=given.block_size,
        num_blocks=given.num_gpu_blocks_override,
        prefix_caching=given.enable_prefix_caching,
        profile=profile,
        time_scale=given.time_scale,
        startup_s=given.startup_seconds,
        shutdown_timeout_s=given.shutdown_timeout,
        keep_alive_s=float(env.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5")),
        default_max_tokens=given.default_max_tokens,
        mean_output_tokens=given.mean_output_tokens,
        prompt_tokens_details=given.enable_prompt_tokens_details,
        force_include_usage=given.enable_force_include_usage,
        enable_lora=given.enable_lora,
        max_loras=given.max_loras,
        runtime_lora=given.enable_lora and env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in ("1", "true"),
        dev_mode=env.get("VLLM_SERVER_DEV_MODE", "0") == "1",
        kv_events=_config(parser, "--kv-events-config", given.kv_events_config),
        kv_transfer=transfer,
        kv_bytes_per_token=given.kv_bytes_per_token,
        link_bytes_per_s=given.link_gigabytes_per_second * 1e9,
        side_channel_host=env.get("VLLM_NIXL_SIDE_CHANNEL_HOST") or env.get("VLLM_HOST_IP") or "127.0.0.1",
        side_channel_port=int(env.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "5600")),
        enable_faults=given.enable_faults,
        faults=faults,
        log_level=given.log_level,
        ignored=tuple(ignored),
    )


def _dashed(word: str) -> str:
    """vLLM takes underscores for dashes in flag names."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _sort_unknown(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words argparse left over: vLLM flags without effect (their values dropped), and the rest."""
    ignored: list[str] = []
    strange: list[str] = []
    after_ignored = False
    for word in words:
        if not word.startswith("-"):
            if not after_ignored:
                strange.append(word)
            continue
        name = word.split("=", 1)[0].split(".", 1)[0].replace("--no-", "--", 1)
        after_ignored = name in WITHOUT_EFFECT
        (ignored if after_ignored else strange).append(word)
    return ignored, strange


def _config(parser: argparse.ArgumentParser, flag: str, text: str | None) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        parser.error(f"{flag} is not JSON: {error}")
    if not isinstance(value, dict):
        parser.error(f"{flag} must be a JSON object")
    return value


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock.workers.simulated",
        description="A vLLM-compatible engine that computes nothing and takes as long as the real one would.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    flag = argparse.BooleanOptionalAction
    add("--served-model-name", nargs="+", required=True, help="names clients may ask for; the first is the main one")
    add("--host", default="0.0.0.0")
    add("--port", type=int, default=8000)
    add("--max-model-len", type=int, help="tokens of context; by default what the KV cache holds, at most 131072")
    add("--max-num-seqs", type=int, default=256)
    add("--max-num-batched-tokens", type=int, default=8192, help="token budget of one iteration")
    add("--block-size", type=int, default=16)
    add("--num-gpu-blocks-override", type=int, default=16384, help="KV blocks there are")
    add("--enable-prefix-caching", action=flag, default=True)
    add("--prefix-caching-hash-algo", choices=["sha256_cbor"], default="sha256_cbor")
    add("--enable-prompt-tokens-details", action=flag, default=False)
    add("--enable-force-include-usage", action=flag, default=False)
    add("--enable-lora", action=flag, default=False)
    add("--max-loras", type=int, default=1)
    add("--shutdown-timeout", type=float, default=0.0, help="seconds running requests have after SIGTERM")
    add("--kv-events-config", help="JSON, as vLLM's")
    add("--kv-transfer-config", help="JSON, as vLLM's; NixlConnector only")
    ours = parser.add_argument_group("simulation")
    add = ours.add_argument
    add("--profile", required=True, help="latency profile as JSON: prefill and decode as [a, b, c] in ms")
    add("--time-scale", type=float, default=1.0, help="iterations take this share of the profile's time")
    add("--startup-seconds", type=float, default=0.0, help="seconds until the engine listens, not scaled")
    add("--default-max-tokens", type=int, default=256, help="length of a chat reply that names no limit")
    add("--mean-output-tokens", type=float, default=0.0, help="mean length the model ends at; 0: its limit")
    add("--kv-bytes-per-token", type=int, default=131072, help="what a transfer moves for each token")
    add("--link-gigabytes-per-second", type=float, default=25.0, help="what a transfer is moved over")
    add("--enable-faults", action=flag, default=env.get("PENSTOCK_ENABLE_FAULTS", "") in ("1", "true"))
    add("--fault", default=env.get("PENSTOCK_FAULT", ""), help="faults from the start, such as slow=2,drop-events=0.1")
    add("--log-level", default=env.get("PENSTOCK_LOG_LEVEL", "info"), choices=["debug", "info", "warning", "error"])
    return parser
