"""Workers as pods: golden files for the whole, and the rules one by one.

`PENSTOCK_UPDATE_GOLDEN=1` rewrites the golden files; read the difference before you commit it.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.models import LatencyProfile, Parallelism, ProfileSource
from penstock.workers.decisions.adapters import (
    ADAPTERS,
    DRAIN_FILE,
    AdapterError,
    WorkerSpec,
    drain_script,
    kv_compatibility_hash,
    render,
)
from penstock.workers.decisions.adapters.arguments import OWNED, flags_of, merge
from penstock.workers.decisions.adapters.sources import resolve_source
from penstock.workers.shell.sidecar.options import parse_options as parse_sidecar_options
from penstock.workers.shell.simulated.options import parse_options

PROFILE = LatencyProfile((10.0, 0.05, 0.0), (8.0, 0.1, 0.0001), ProfileSource.CATALOGUE, "a test")
LLAMA = "meta-llama/Llama-3.1-70B-Instruct"


def spec(**changes) -> WorkerSpec:
    base = WorkerSpec(
        model_name=LLAMA,
        role="PrefillDecode",
        image="vllm/vllm-openai:v0.32.0",
        parallelism=Parallelism(tensor=4),
        drain_config_map="llama-drain",
        max_context_tokens=32768,
        accelerator="h100-80g",
        node_selector={"penstock.dev/accelerator": "h100-80g"},
        profile=PROFILE,
        kv_capacity_tokens=100_000,
    )
    return replace(base, **changes)


ONE = Parallelism()
CASES = {
    "vllm-serve": ("vLLM", spec(secret_name="hf-token", args=["--enforce-eager"])),
    "vllm-prefill": ("vLLM", spec(role="Prefill", block_size=64, max_num_seqs=64)),
    "vllm-decode": ("vLLM", spec(role="Decode", parallelism=Parallelism(tensor=2, pipeline=2), cache_claim="weights")),
    "vllm-claim": (
        "vLLM",
        spec(
            parallelism=ONE, model_uri="pvc://models/llama/70b", env=[{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]
        ),
    ),
    "vllm-image": (
        "vLLM",
        spec(parallelism=ONE, model_uri="oci://registry.example/llama:70b", image_pull_secrets=["pull"]),
    ),
    "vllm-decode-sidecar": (
        "vLLM",
        spec(role="Decode", sidecar_image="penstock/sidecar:0.1.0", prefill_service="prefill-0123456789abcdef"),
    ),
    "simulated-serve": ("Simulated", spec(image="penstock/simulated-engine:0.1.0", time_scale=0.1, startup_s=2)),
    "simulated-decode": (
        "Simulated",
        spec(image="penstock/simulated-engine:0.1.0", role="Decode", accelerator_resource=None, parallelism=ONE),
    ),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("role", ["Prefill", "Decode", "PrefillDecode"])
def test_decode_workers_alone_have_a_sidecar(adapter: str, role: str):
    image = "penstock/sidecar:1"
    pod = render(adapter, spec(role=role, sidecar_image=image))["spec"]
    assert [c["image"] for c in pod.get("initContainers", ())] == ([image] if role == "Decode" else [])
    assert "initContainers" not in render(adapter, spec(role=role))["spec"]


def test_the_sidecar_says_goodbye_last():
    """A native sidecar is ended after the engine, whose drain waits for what the sidecar still has."""
    template = render("vLLM", spec(role="Decode", sidecar_image="s:1", port=9000))
    (sidecar,) = template["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert [port["containerPort"] for port in sidecar["ports"]] == [9001, 9002]
    hook = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[-2:] == ["--sidecar-port", "9002"]


def test_the_sidecars_arguments_are_ones_it_takes():
    """What the pod says and what the process reads, held together."""
    worker = spec(role="Decode", sidecar_image="s:1", prefill_service="prefill-ab", kv_lease_s=12)
    (sidecar,) = render("vLLM", worker)["spec"]["initContainers"]
    options = parse_sidecar_options(sidecar["args"], {})
    assert (options.port, options.metrics_port, options.engine_port, options.kv_lease) == (8001, 8002, 8000, 12)
    assert options.prefill_service == ("prefill-ab", 8000)


def test_a_sidecar_image_is_no_part_of_kv_compatibility():
    assert kv_compatibility_hash(spec(role="Decode", sidecar_image="s:1")) == kv_compatibility_hash(
        spec(role="Prefill")
    )


def test_a_port_without_room_for_the_sidecar_is_refused():
    with pytest.raises(AdapterError, match="65534"):
        spec(role="Decode", sidecar_image="s:1", port=65534)
    assert spec(role="Decode", port=65534)


@pytest.mark.parametrize("case", CASES)
def test_the_whole_pod_is_as_agreed(case: str, golden: Path):
    adapter, worker = CASES[case]
    text = yaml.safe_dump(render(adapter, worker), sort_keys=False, width=120)
    file = golden / f"{case}.yaml"
    if os.environ.get("PENSTOCK_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("role", ["Prefill", "Decode", "PrefillDecode"])
def test_every_pod_meets_the_restricted_standard_and_drains(adapter: str, role: str):
    worker = spec(role=role, grace_s=300, shutdown_timeout_s=60, idle_s=7)
    pod = render(adapter, worker)["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert container["ports"][0] == {"name": "http", "containerPort": 8000, "protocol": "TCP"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    # 300 s of grace less 60 s of shutdown less 5 s of margin; blocks on lease outlast the pick's own silence.
    assert command[-2:] == ["--deadline-s", "235"]
    assert command[command.index("--idle-s") + 1] == ("7" if role == "PrefillDecode" else "30")
    assert pod["terminationGracePeriodSeconds"] == 300
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_accelerators_are_counted_from_the_parallelism(adapter: str):
    pod = render(adapter, spec(parallelism=Parallelism(tensor=2, pipeline=2)))
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "4"


def test_the_simulated_engine_accepts_what_its_adapter_renders():
    for case, (adapter, worker) in CASES.items():
        if adapter == "Simulated":
            container = render(adapter, worker)["spec"]["containers"][0]
            options = parse_options(container["args"], {})
            assert options.profile == worker.profile, case
            assert options.names == (LLAMA,)
            assert options.max_model_len == 32768
            assert options.num_blocks == 100_000 // 16
            assert (options.kv_transfer is not None) == (worker.role == "Decode")


def test_a_deployments_vllm_arguments_start_the_simulated_engine_as_well():
    args = ["--enforce-eager", "--gpu_memory_utilization", "0.9", "--max-model-len=8192", "--hf-overrides.rope", "x"]
    container = render("Simulated", spec(args=args))["spec"]["containers"][0]
    options = parse_options(container["args"], {})
    assert options.max_model_len == 8192
    assert set(options.ignored) == {"--enforce-eager", "--gpu-memory-utilization", "--hf-overrides.rope"}


@pytest.mark.parametrize(
    "args",
    [["--max-model-len", "8192"], ["--max-model-len=8192"], ["--max_model_len", "8192"], ["--max_model_len=8192"]],
)
def test_a_flag_of_the_users_replaces_ours_in_every_spelling(args):
    rendered = render("vLLM", spec(args=args))["spec"]["containers"][0]["args"]
    assert rendered[-len(args) :] == args
    assert "32768" not in rendered


def test_a_negated_flag_replaces_the_flag():
    rendered = render("vLLM", spec(args=["--no-enable-prompt-tokens-details"]))["spec"]["containers"][0]["args"]
    assert "--enable-prompt-tokens-details" not in rendered


def test_of_two_values_the_later_one_counts():
    assert flags_of(["--dtype", "auto", "--dtype=float16"]) == {"--dtype": "float16"}


words = st.sampled_from(["--a", "--b=1", "--no-c", "-tp", "1", "x", "--d_e", "--d-e=2", "-1"])


@given(st.lists(words, max_size=8))
def test_merging_keeps_the_users_words_and_drops_only_what_they_give(arguments):
    defaults = [["--a"], ["--b", "0"], ["--c"], ["--d-e", "0"], ["--z", "9"]]
    merged = merge(defaults, arguments)
    assert merged[len(merged) - len(arguments) :] == arguments
    kept = merged[: len(merged) - len(arguments)]
    assert [g[0] for g in defaults if g[0] in kept] == [g[0] for g in defaults if g[0] not in flags_of(arguments)]
    assert kept == [word for group in defaults if group[0] in kept for word in group]


@pytest.mark.parametrize("flag", OWNED)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_flags_we_own_are_refused_with_a_remedy(adapter: str, flag: str):
    with pytest.raises(AdapterError, match=flag) as caught:
        render(adapter, spec(args=["--enforce-eager", f"{flag}=x"]))
    assert OWNED[flag] in str(caught.value)


@pytest.mark.parametrize("spelling", ["-tp", "--tensor_parallel_size=2", "-dp=2"])
def test_owned_flags_are_known_by_their_other_names(spelling: str):
    with pytest.raises(AdapterError, match="parallelism"):
        render("vLLM", spec(args=[spelling, "2"]))


def test_transfer_settings_are_the_users_only_where_nothing_is_split():
    args = ["--kv-transfer-config", '{"kv_connector":"OffloadingConnector","kv_role":"kv_both"}']
    assert args[1] in render("vLLM", spec(args=args))["spec"]["containers"][0]["args"]
    with pytest.raises(AdapterError, match="--kv-transfer-config"):
        render("vLLM", spec(role="Decode", args=args))


def test_a_leading_value_is_no_argument():
    with pytest.raises(AdapterError, match="not a flag"):
        render("vLLM", spec(args=["some/model"]))


@pytest.mark.parametrize(
    ("uri", "model", "revision"),
    [
        (None, LLAMA, None),
        ("hf://org/name", "org/name", None),
        ("hf://org/name@abc", "org/name", "abc"),
        ("hf://org/name:abc", "org/name", "abc"),
        ("pvc://claim", "/mnt/models", None),
        ("pvc://claim/a//b/", "/mnt/models/a/b", None),
        ("oci://r.example:5000/a/b:tag", "/mnt/models", None),
        ("/models/here", "/models/here", None),
    ],
)
def test_sources(uri, model, revision):
    source = resolve_source(uri, LLAMA)
    assert (source.model, source.revision) == (model, revision)
    assert (source.volume is None) == (source.mount is None)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    "uri", ["s3://bucket/x", "llama", "hf://", "hf://a/b/c", "hf:///b", "pvc://", "pvc://c/../d", "oci://", "", "://x"]
)
def test_sources_nobody_can_load_are_refused_in_a_sentence(adapter: str, uri: str):
    with pytest.raises(AdapterError, match="model source"):
        render(adapter, spec(model_uri=uri))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name": ""}, "no name"),
        ({"image": ""}, "no image"),
        ({"role": "Both"}, "'Both'"),
        ({"grace_s": 20, "shutdown_timeout_s": 20}, "leaves no time"),
        ({"grace_s": 30, "shutdown_timeout_s": 20, "idle_s": 10}, "must be idle"),
        ({"time_scale": 0}, "time scale"),
    ],
)
def test_workers_that_cannot_be(changes, words):
    with pytest.raises(AdapterError, match=words):
        spec(**changes)


def test_the_simulated_engine_needs_a_profile():
    with pytest.raises(AdapterError, match="PerformanceProfile"):
        render("Simulated", spec(profile=None))


def test_an_unknown_adapter_names_the_known_ones():
    with pytest.raises(AdapterError, match="Simulated, vLLM"):
        render("TGI", spec())


def test_the_users_environment_replaces_ours_by_name():
    env = [{"name": "HF_HOME", "value": "/mine"}, {"name": "EXTRA", "value": "1"}]
    rendered = render("vLLM", spec(env=env))["spec"]["containers"][0]["env"]
    names = [entry["name"] for entry in rendered]
    assert len(names) == len(set(names))
    assert {"name": "HF_HOME", "value": "/mine"} in rendered
    assert names[-1] == "EXTRA"


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "vllm/vllm-openai:v0.33.0"},
        {"model_uri": "hf://other/model"},
        {"block_size": 32},
        {"args": ["--kv-cache-dtype", "fp8"]},
        {"args": ["--dtype=float16"]},
        {"env": [{"name": "VLLM_KV_CACHE_LAYOUT", "value": "NHD"}]},
        {"parallelism": Parallelism(tensor=4, pipeline=2)},
    ],
)
def test_what_changes_blocks_changes_the_hash(changes):
    assert kv_compatibility_hash(spec()) != kv_compatibility_hash(spec(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "Prefill"},
        {"args": ["--max-num-seqs", "8", "--enforce-eager"]},
        {"parallelism": Parallelism(tensor=2)},
        {"max_context_tokens": 4096},
        {"grace_s": 600},
        {"model_uri": f"hf://{LLAMA}"},
        {"node_selector": {}},
    ],
)
def test_what_leaves_blocks_alone_leaves_the_hash(changes):
    assert kv_compatibility_hash(spec()) == kv_compatibility_hash(spec(**changes))


def test_annotations_describe_the_worker():
    annotations = render("vLLM", spec())["metadata"]["annotations"]
    assert annotations["penstock.dev/model"] == LLAMA
    assert json.loads(annotations["penstock.dev/parallelism"]) == {"tensor": 4}
    assert annotations["penstock.dev/kv-hash"] == kv_compatibility_hash(spec())


def test_the_drain_script_is_one_file_of_standard_library():
    import ast
    import sys

    tree = ast.parse(drain_script(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
    assert DRAIN_FILE == "drain.py"
