"""The chart as text: what helm renders, what it refuses, and whether the roles understand their flags."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from penstock.api import AcceleratorClass, EngineClass
from penstock.box.binaries import find_programs

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "penstock"
ROLES = ("operator", "router", "autoscaler")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def helm() -> Path:
    """The pinned helm."""
    programs = find_programs(frozenset({"helm"}))
    if programs is None:
        pytest.skip("helm is not in the cache: run `penstock binaries`")
    return programs.path("helm")


def template(helm: Path, *settings: str, release: str = "penstock") -> Done:
    command = [str(helm), "template", release, str(CHART), "--namespace=penstock-system", "--kube-version=1.34.0"]
    return subprocess.run([*command, *settings], capture_output=True, text=True, timeout=60, check=False)


@functools.cache
def rendered(helm: Path, *settings: str, release: str = "penstock") -> list[dict[str, Any]]:
    """What helm renders; a second question about the same settings costs nothing, so nobody may change it."""
    done = template(helm, *settings, release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Objects of one kind by name; two of the same name would be an error of the chart."""
    found = [each for each in objects if each["kind"] == kind]
    named = {each["metadata"]["name"]: each for each in found}
    assert len(named) == len(found)
    return named


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def test_lint_finds_nothing(helm: Path) -> None:
    command = [str(helm), "lint", "--strict", "--kube-version=1.34.0", str(CHART)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_roles_are_the_documented_ones(helm: Path) -> None:
    deployments = of_kind(rendered(helm), "Deployment")
    assert set(deployments) == {f"penstock-{role}" for role in ROLES}
    for role in ROLES:
        shape = container(deployments[f"penstock-{role}"])
        assert shape["image"] == f"penstock/{role}:0.1.0"
        assert shape["command"] == ["python", "-m", f"penstock.{role}"]
        ports = {port["name"]: port["containerPort"] for port in shape["ports"]}
        assert (ports["health"], ports["metrics"], ports.get("http")) == (
            8081,
            9090,
            8000 if role == "router" else None,
        )


def test_names_follow_the_release(helm: Path) -> None:
    objects = rendered(helm, release="blue")
    assert "blue-router" in of_kind(objects, "Service")
    assert set(of_kind(objects, "Deployment")) == {f"blue-{role}" for role in ROLES}


def test_the_service_leads_to_the_gateway(helm: Path) -> None:
    objects = rendered(helm)
    service = of_kind(objects, "Service")["penstock-router"]["spec"]
    ports = {port["name"]: (port["port"], port["targetPort"]) for port in service["ports"]}
    assert ports == {"http": (80, "http"), "metrics": (9090, "metrics"), "grpc": (9000, "grpc")}
    labels = of_kind(objects, "Deployment")["penstock-router"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("port", "endpoint"),
    [(80, "http://blue-router.penstock-system.svc/v1"), (8080, "http://blue-router.penstock-system.svc:8080/v1")],
)
def test_status_will_name_the_gateway(helm: Path, port: int, endpoint: str) -> None:
    objects = rendered(helm, "--set", f"router.service.port={port}", release="blue")
    assert f"--endpoint={endpoint}" in container(of_kind(objects, "Deployment")["blue-operator"])["args"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_understands_every_flag_it_is_given(helm: Path, role: str) -> None:
    shape = container(of_kind(rendered(helm), "Deployment")[f"penstock-{role}"])
    command = [sys.executable, *shape["command"][1:], "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    unknown = [arg for arg in shape["args"] if arg.split("=")[0] not in shown.stdout]
    assert not unknown


@pytest.mark.parametrize("role", [*ROLES, "crds-upgrade"])
def test_pods_keep_the_restricted_standard(helm: Path, role: str) -> None:
    kind = "Job" if role == "crds-upgrade" else "Deployment"
    pod = of_kind(rendered(helm), kind)[f"penstock-{role}"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False, "a Service's name must not set one of our variables"
    for each in pod["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"].keys() >= {"cpu", "memory"}


def grpc_port(objects: list[dict[str, Any]]) -> list[int]:
    """Ports of the router's Service that lead to gRPC."""
    ports = of_kind(objects, "Service")["penstock-router"]["spec"]["ports"]
    return [port["port"] for port in ports if port["targetPort"] == "grpc"]


def test_picks_over_grpc_are_inside_the_cluster_unless_tokens_guard_them(helm: Path) -> None:
    balancer = "--set=router.service.type=LoadBalancer"
    assert grpc_port(rendered(helm)) == [9000]
    assert grpc_port(rendered(helm, balancer)) == []
    assert grpc_port(rendered(helm, balancer, "--set=router.grpc.tokenSecret=callers")) == [9000]
    closed = rendered(helm, "--set=router.grpc.enabled=false")
    assert grpc_port(closed) == []
    assert "--grpc-port=9000" not in container(of_kind(closed, "Deployment")["penstock-router"])["args"]
    policies = of_kind(rendered(helm, "--set=networkPolicy.enabled=true"), "NetworkPolicy")
    allowed = [rule["ports"][0]["port"] for rule in policies["penstock-router"]["spec"]["ingress"]]
    assert allowed == ["http", "grpc", "metrics"]


def test_secrets_of_the_grpc_port_are_mounted_where_the_router_looks(helm: Path) -> None:
    chosen = ("--set=router.grpc.tlsSecret=cert", "--set=router.grpc.tokenSecret=callers")
    router = of_kind(rendered(helm, *chosen, "--set=router.grpc.clientAuthentication=true"), "Deployment")
    pod = router["penstock-router"]["spec"]["template"]["spec"]
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    mounts = {m["mountPath"]: secrets[m["name"]] for m in pod["containers"][0]["volumeMounts"] if m["name"] in secrets}
    assert mounts == {"/etc/penstock/grpc-tls": "cert", "/etc/penstock/grpc-tokens": "callers"}
    flags = dict(a.removeprefix("--").split("=", 1) for a in pod["containers"][0]["args"] if a.startswith("--grpc-"))
    files = {name: flags[name].rpartition("/") for name in flags if name != "grpc-port"}
    assert {name: mounts[folder] for name, (folder, _, _) in files.items()} == {
        "grpc-tls-cert": "cert",
        "grpc-tls-key": "cert",
        "grpc-client-ca": "cert",
        "grpc-token-file": "callers",
    }
    refused = template(helm, "--set=router.grpc.clientAuthentication=true")
    assert "tlsSecret" in refused.stderr


def test_engine_classes_have_one_default(helm: Path) -> None:
    for default in ("vllm", "simulated", ""):
        classes = of_kind(rendered(helm, "--set", f"engines.default={default}"), "EngineClass")
        assert set(classes) == {"vllm", "simulated"}
        specs = {name: EngineClass.read(each).spec for name, each in classes.items()}
        assert [name for name, spec in specs.items() if spec.default] == ([default] if default else [])
        assert specs["simulated"].simulation is not None


def test_the_box_speeds_the_simulated_engine_up(helm: Path) -> None:
    """Numbers and strings both do: `--set` makes a number of 0.1."""
    for way in ("--set-string", "--set-json"):
        value = '"0.1"' if way == "--set-json" else "0.1"
        classes = of_kind(rendered(helm, way, f"engines.simulated.timeScale={value}"), "EngineClass")
        simulation = EngineClass.read(classes["simulated"]).spec.simulation
        assert simulation is not None
        assert simulation.time_scale_factor == 0.1


def test_accelerator_classes_come_from_the_catalogue(helm: Path) -> None:
    classes = {
        name: AcceleratorClass.read(each).spec for name, each in of_kind(rendered(helm), "AcceleratorClass").items()
    }
    assert {"a100-80g", "h100-80g", "h200-141g", "mi300x-192g", "cpu"} <= set(classes)
    assert classes["h100-80g"].node_selector == {"penstock.dev/accelerator": "h100-80g"}
    assert classes["h100-80g"].resource_name == "nvidia.com/gpu"
    assert classes["mi300x-192g"].resource_name == "amd.com/gpu"
    cpu = classes["cpu"]
    assert (cpu.type, cpu.resource_name, cpu.node_selector) == ("CPU", None, {})


def test_accelerator_classes_can_be_chosen_and_overridden(helm: Path) -> None:
    selector = '{"nvidia.com/gpu.product":"NVIDIA-H100-80GB-HBM3"}'
    override = f'acceleratorClasses.overrides={{"h100-80g":{{"pricePerHour":"2.10","nodeSelector":{selector}}}}}'
    objects = rendered(helm, "--set", "acceleratorClasses.only={h100-80g}", "--set-json", override)
    (spec,) = [AcceleratorClass.read(each).spec for each in of_kind(objects, "AcceleratorClass").values()]
    assert str(spec.price) == "2.10"
    assert spec.node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert spec.memory_bandwidth_bytes == 3.35e12
    assert not of_kind(rendered(helm, "--set", "acceleratorClasses.enabled=false"), "AcceleratorClass")


def test_named_namespaces_mean_roles_in_exactly_those(helm: Path) -> None:
    objects = rendered(helm, "--set", "watchNamespaces={chat,code}")
    roles = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in objects if each["kind"] == "Role"}
    for role in ROLES:
        assert {("chat", f"penstock:penstock-system:{role}"), ("code", f"penstock:penstock-system:{role}")} <= roles
    wide = of_kind(objects, "ClusterRole")
    assert not {f"penstock:penstock-system:{role}" for role in ROLES} & set(wide)
    reads = wide["penstock:penstock-system:operator:cluster"]["rules"]
    assert not {"pods", "configmaps", "secrets"} & {name for rule in reads for name in rule["resources"]}
    for name in ROLES:
        args = container(of_kind(objects, "Deployment")[f"penstock-{name}"])["args"]
        assert "--watch-namespaces=chat,code" in args


def test_the_operator_is_told_the_sidecars_image(helm: Path) -> None:
    def told(*settings: str) -> list[str]:
        deployment = of_kind(rendered(helm, *settings), "Deployment")["penstock-operator"]
        return [flag for flag in container(deployment)["args"] if flag.startswith("--sidecar-image")]

    assert told("--set", "image.registry=mirror.example.org/team,image.tag=1.2.3") == [
        "--sidecar-image=mirror.example.org/team/penstock/sidecar:1.2.3"
    ]
    assert told("--set", "sidecar.enabled=false") == ["--sidecar-image="]


def test_policy_files_are_mounted_named_to_the_router_and_known_to_the_operator(helm: Path) -> None:
    source = "class Mine:\n    name = 'Mine'  # {{ no template }}\n"
    objects = rendered(helm, "--set-json", f"router.policyFiles={json.dumps({'Mine': source})}")
    assert of_kind(objects, "ConfigMap")["penstock-router-policies"]["data"] == {"Mine.py": source}
    deployments = of_kind(objects, "Deployment")
    router, plain = deployments["penstock-router"], of_kind(rendered(helm), "Deployment")["penstock-router"]
    assert "--policy-file=Mine=/etc/penstock/policies/Mine.py" in container(router)["args"]
    assert {"name": "policies", "mountPath": "/etc/penstock/policies", "readOnly": True} in container(router)[
        "volumeMounts"
    ]
    assert "--routing-policies=Mine" in container(deployments["penstock-operator"])["args"]
    assert "penstock.dev/policy-files" in router["spec"]["template"]["metadata"]["annotations"]
    assert not any(flag.startswith("--policy-file") for flag in container(plain)["args"])
    assert "penstock-router-policies" not in of_kind(rendered(helm), "ConfigMap")


def test_planners_of_ones_own_go_into_the_autoscaler(helm: Path) -> None:
    files = json.dumps({"Mine": "class Mine: ..."})
    objects = rendered(helm, "--set-json", f"autoscaler.policyFiles={files}", "--set", "autoscaler.planner=Mine")
    args = container(of_kind(objects, "Deployment")["penstock-autoscaler"])["args"]
    assert {"--planner=Mine", "--policy-file=/etc/penstock/policies/Mine.py"} <= set(args)
    assert of_kind(objects, "ConfigMap")["penstock-autoscaler-policies"]["data"] == {"Mine.py": "class Mine: ..."}
    plain = container(of_kind(rendered(helm), "Deployment")["penstock-autoscaler"])["args"]
    assert {"--planner=TargetTracking", "--policy-file="} <= set(plain)


def test_nobody_may_touch_secrets_or_everything(helm: Path) -> None:
    for each in rendered(helm):
        for rule in each.get("rules", ()):
            assert "secrets" not in rule["resources"], each["metadata"]["name"]
            assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"], each["metadata"]["name"]


def test_opt_ins_stay_out_until_asked_for(helm: Path) -> None:
    plain = {each["kind"] for each in rendered(helm)}
    assert not plain & {"NetworkPolicy", "PodMonitor", "PodDisruptionBudget"}
    every = ["networkPolicy.enabled=true", "podMonitor.enabled=true", "router.replicas=2"]
    asked = rendered(helm, *(part for setting in every for part in ("--set", setting)))
    assert set(of_kind(asked, "NetworkPolicy")) == {f"penstock-{role}" for role in ROLES}
    assert set(of_kind(asked, "PodMonitor")) == {"penstock", "penstock-workers"}
    assert set(of_kind(asked, "PodDisruptionBudget")) == {"penstock-router"}


def test_a_mirror_is_one_value(helm: Path) -> None:
    objects = rendered(helm, "--set", "image.registry=mirror.example.org/team/,image.tag=1.2.3")
    images = {container(each)["image"] for each in of_kind(objects, "Deployment").values()}
    assert images == {f"mirror.example.org/team/penstock/{role}:1.2.3" for role in ROLES}
    simulated = EngineClass.read(of_kind(objects, "EngineClass")["simulated"])
    assert simulated.spec.image == "mirror.example.org/team/penstock/simulated-engine:1.2.3"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("operator.replica=2", "replica"),
        ("routers.replicas=2", "routers"),
        ("operator.replicas=many", "replicas"),
        ("operator.replicas=-1", "replicas"),
        ("engines.default=sglang", "default"),
        ("engines.simulated.startup=2 days", "startup"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("watchNamespaces={Chat}", "watchNamespaces"),
        ("router.maxBodyBytes=10", "maxBodyBytes"),
        ("acceleratorClasses.only={h1000}", '"h1000" is not in the catalogue; it has a100-40g'),
        ("acceleratorClasses.overrides.tpu.memory=1Gi", '"tpu" is not in the catalogue'),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Path, setting: str, says: str) -> None:
    done = template(helm, "--set", setting)
    assert done.returncode != 0
    assert says in done.stderr
