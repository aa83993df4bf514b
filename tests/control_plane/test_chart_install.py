"""The chart on a real API server: it installs, grants just enough, upgrades its definitions, leaves nothing stuck."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from penstock.box.binaries import API_PROGRAMS, find_programs
from penstock.box.standalone import StandaloneControlPlane, standalone_control_plane

pytestmark = pytest.mark.control_plane

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "penstock"
NAMESPACE = "chart-system"
RELEASE = "penstock"
Done = subprocess.CompletedProcess[str]


class Cluster:
    """helm and kubectl against one API server."""

    def __init__(self, plane: StandaloneControlPlane, helm: Path) -> None:
        self.plane = plane
        self._helm = helm

    def kubectl(self, *arguments: str, stdin: str | None = None) -> Done:
        command = [str(self.plane.kubectl), f"--kubeconfig={self.plane.kubeconfig}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)

    def helm(self, *arguments: str) -> Done:
        command = [str(self._helm), f"--kubeconfig={self.plane.kubeconfig}", f"--namespace={NAMESPACE}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def must(self, done: Done) -> str:
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server of our own: installing definitions and taking them away would disturb other tests."""
    programs = find_programs(API_PROGRAMS | {"helm"})
    if programs is None:
        pytest.skip("the Kubernetes programs or helm are not in the cache: run `penstock binaries`")
    folder = tmp_path_factory.mktemp("chart")
    with standalone_control_plane(programs.folder_of(API_PROGRAMS), folder) as plane:
        yield Cluster(plane, programs.path("helm"))


@pytest.fixture(scope="module")
def notes(empty: Cluster) -> str:
    """What helm says after the one installation these tests share."""
    return empty.must(empty.helm("install", RELEASE, str(CHART), "--create-namespace"))


@pytest.fixture
def installed(empty: Cluster, notes: str) -> Cluster:
    """An API server with the chart installed; no controllers run, so no pods appear."""
    assert notes
    return empty


def test_notes_lead_to_the_first_token(notes: str) -> None:
    assert f"kubectl -n {NAMESPACE} port-forward service/penstock-router 8000:80" in notes
    assert "/v1/chat/completions" in notes
    assert 'Deployments that name no engine class get "vllm".' in notes


def test_the_manifest_in_the_notes_is_accepted(installed: Cluster, notes: str) -> None:
    manifest = notes.split("<<'YAML'\n")[1].split("   YAML")[0]
    installed.must(installed.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=manifest))


def test_classes_are_there_and_read_well(installed: Cluster) -> None:
    lines = installed.must(installed.kubectl("get", "engine")).splitlines()
    assert lines[0].split() == ["NAME", "ADAPTER", "DEFAULT", "IMAGE", "AGE"]
    assert [line.split()[:3] for line in lines[1:]] == [["simulated", "Simulated", "false"], ["vllm", "vLLM", "true"]]
    names = installed.must(installed.kubectl("get", "accel", "-o", "name")).split()
    assert "acceleratorclass.penstock.dev/h100-80g" in names


Permission = tuple[str, str, str, str]
"""Role, verb, resource, namespace."""

ALLOWED: list[Permission] = [
    ("operator", "watch", "modeldeployments.penstock.dev", "*"),
    ("operator", "patch", "modeldeployments.penstock.dev/status", "*"),
    ("operator", "patch", "workerpools.penstock.dev", "*"),
    ("operator", "patch", "workerpools.penstock.dev/scale", "*"),
    ("operator", "delete", "replicasets.apps", "*"),
    ("operator", "patch", "replicasets.apps/scale", "*"),
    ("operator", "patch", "configmaps", "*"),
    ("operator", "patch", "services", "*"),
    ("operator", "create", "events.events.k8s.io", "*"),
    ("operator", "list", "nodes", "*"),
    ("operator", "create", "leases.coordination.k8s.io", NAMESPACE),
    ("operator", "update", "leases.coordination.k8s.io/penstock-operator", NAMESPACE),
    ("router", "watch", "pods", "*"),
    ("router", "patch", "modeldeployments.penstock.dev/status", "*"),
    ("router", "watch", "workerpools.penstock.dev", "*"),
    ("autoscaler", "watch", "workerpools.penstock.dev", "*"),
    ("autoscaler", "list", "pods", "*"),
    ("autoscaler", "patch", "workerpools.penstock.dev/scale", "*"),
    ("autoscaler", "patch", "modeldeployments.penstock.dev/status", "*"),
    ("autoscaler", "create", "events.events.k8s.io", "*"),
    ("autoscaler", "watch", "acceleratorclasses.penstock.dev", "*"),
    ("autoscaler", "update", "leases.coordination.k8s.io/penstock-autoscaler", NAMESPACE),
]
REFUSED: list[Permission] = [
    ("operator", "patch", "modeldeployments.penstock.dev", "default"),
    ("operator", "delete", "modeldeployments.penstock.dev", "default"),
    ("operator", "get", "secrets", "default"),
    ("operator", "list", "configmaps", "default"),
    ("operator", "delete", "services", "default"),
    ("operator", "create", "pods", "default"),
    ("operator", "delete", "pods", "default"),
    ("operator", "delete", "nodes", "*"),
    ("operator", "create", "leases.coordination.k8s.io", "default"),
    ("operator", "update", "leases.coordination.k8s.io/another", NAMESPACE),
    ("operator", "patch", "engineclasses.penstock.dev", "*"),
    ("operator", "patch", "customresourcedefinitions.apiextensions.k8s.io", "*"),
    ("router", "delete", "pods", "default"),
    ("router", "patch", "modeldeployments.penstock.dev", "default"),
    ("router", "patch", "workerpools.penstock.dev", "default"),
    ("router", "list", "acceleratorclasses.penstock.dev", "default"),
    ("router", "get", "secrets", "default"),
    ("autoscaler", "patch", "workerpools.penstock.dev", "default"),
    ("autoscaler", "patch", "modeldeployments.penstock.dev", "default"),
    ("autoscaler", "delete", "pods", "default"),
    ("autoscaler", "list", "nodes", "*"),
    ("autoscaler", "update", "leases.coordination.k8s.io/penstock-operator", NAMESPACE),
    ("autoscaler", "get", "secrets", "default"),
]


def review(role: str, verb: str, resource: str, namespace: str) -> dict[str, Any]:
    """The question whether a role may do something, as an object; `*` asks about the whole cluster."""
    full, _, part = resource.partition("/")
    name, _, group = full.partition(".")
    asked = {"verb": verb, "resource": name, "group": group, "namespace": "" if namespace == "*" else namespace}
    asked["subresource" if part in ("status", "scale") else "name"] = part
    spec = {"user": f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{role}", "resourceAttributes": asked}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


@pytest.fixture(scope="module")
def answers(empty: Cluster, notes: str) -> dict[Permission, bool]:
    """What the API server says to every question of the two tables, asked at once."""
    assert notes
    questions = [*ALLOWED, *REFUSED]
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": [review(*each) for each in questions]})
    show = "jsonpath={.status.allowed} "
    said = empty.must(empty.kubectl("create", "-f", "-", "-o", show, stdin=body)).split()
    return {each: answer == "true" for each, answer in zip(questions, said, strict=True)}


@pytest.mark.parametrize("permission", ALLOWED, ids=" ".join)
def test_a_role_may_do_its_work(answers: dict[Permission, bool], permission: Permission) -> None:
    assert answers[permission]


@pytest.mark.parametrize("permission", REFUSED, ids=" ".join)
def test_a_role_may_do_no_more(answers: dict[Permission, bool], permission: Permission) -> None:
    assert not answers[permission]


def test_the_clusters_own_roles_learn_our_kinds(installed: Cluster) -> None:
    labels = json.loads(installed.must(installed.kubectl("get", "clusterrole", "-o", "json")))["items"]
    ours = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in labels}
    assert ours[f"{RELEASE}:{NAMESPACE}:edit"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert ours[f"{RELEASE}:{NAMESPACE}:view"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"


@pytest.mark.parametrize("role", ["operator", "router", "autoscaler"])
def test_pods_pass_restricted_pod_security(installed: Cluster, role: str) -> None:
    installed.kubectl("create", "namespace", "restricted")
    label = "pod-security.kubernetes.io/enforce=restricted"
    installed.must(installed.kubectl("label", "--overwrite", "namespace", "restricted", label))
    account = f"{RELEASE}-{role}"
    installed.kubectl("-n", "restricted", "create", "serviceaccount", account)
    found = json.loads(
        installed.must(installed.kubectl("-n", NAMESPACE, "get", "deployment", f"{RELEASE}-{role}", "-o", "json"))
    )
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role, "namespace": "restricted"}}
    pod["spec"] = found["spec"]["template"]["spec"]
    create = ("create", "--dry-run=server", "-f", "-")
    installed.must(installed.kubectl(*create, stdin=json.dumps(pod)))
    loose = copy.deepcopy(pod)
    loose["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True  # type: ignore[index]
    refused = installed.kubectl(*create, stdin=json.dumps(loose))
    assert "violates PodSecurity" in refused.stderr


def test_installing_again_changes_nothing_that_rolls(installed: Cluster) -> None:
    """An upgrade to the same chart leaves every pod template as it is."""

    def generations() -> dict[str, int]:
        answer = installed.must(installed.kubectl("-n", NAMESPACE, "get", "deployments", "-o", "json"))
        return {each["metadata"]["name"]: each["metadata"]["generation"] for each in json.loads(answer)["items"]}

    before = generations()
    installed.must(installed.helm("upgrade", "--install", RELEASE, str(CHART), "--no-hooks"))
    assert generations() == before


@contextmanager
def service_account(installed: Cluster, name: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that acts as a service account, with its token in a folder."""
    token = installed.must(installed.kubectl("-n", NAMESPACE, "create", "token", name))
    config = yaml.safe_load(installed.plane.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    inline = cluster.get("certificate-authority-data")
    authority = base64.b64decode(inline) if inline else Path(cluster["certificate-authority"]).read_bytes()
    (folder / "token").write_text(token)
    (folder / "ca.crt").write_bytes(authority)
    yield {**os.environ, "KUBERNETES_URL": installed.plane.url, "SERVICE_ACCOUNT_FOLDER": str(folder)}


def hook_objects(installed: Cluster) -> list[dict[str, Any]]:
    text = installed.must(installed.helm("template", RELEASE, str(CHART), "--kube-version=1.34.0"))
    found = [each for each in yaml.safe_load_all(text) if each]
    return [each for each in found if "helm.sh/hook" in each["metadata"].get("annotations", {})]


def test_an_upgrade_brings_the_definitions_up_to_date(installed: Cluster, tmp_path: Path) -> None:
    """The Job's own script, as the Job's own service account, on definitions of an older release."""
    hooks = {each["kind"]: each for each in hook_objects(installed)}
    assert {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Job"} == set(hooks)
    identity = [hooks[kind] for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")]
    installed.must(installed.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(identity)))
    definitions = tmp_path / "crds"
    definitions.mkdir()
    for name, text in hooks["ConfigMap"]["data"].items():
        (definitions / name).write_text(text)
    crd = "crd/modeldeployments.penstock.dev"
    schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
    forgotten = {"rule": "self.model.name != 'forgotten'", "message": "a rule that this release dropped"}
    older = [
        {"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"},
        {"op": "add", "path": f"{schema}/properties/forgotten", "value": {"type": "boolean"}},
        {"op": "add", "path": f"{schema}/x-kubernetes-validations/0", "value": forgotten},
        {"op": "add", "path": "/metadata/labels/example.org~1kept", "value": "yes"},
    ]
    # Helm created the definition, so to the server these fields are Helm's, and a mere apply would keep them.
    patch = ("--type=json", "--field-manager=helm", "-p", json.dumps(older))
    installed.must(installed.kubectl("patch", crd, *patch))
    installed.must(installed.kubectl("delete", "crd/performanceprofiles.penstock.dev", "--timeout=90s"))
    account = hooks["ServiceAccount"]["metadata"]["name"]
    command = [sys.executable, str(definitions / "upgrade_crds.py"), str(definitions)]
    with service_account(installed, account, tmp_path) as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "modeldeployments.penstock.dev is up to date" in done.stdout
    now = json.loads(installed.must(installed.kubectl("get", crd, "-o", "json")))
    shipped = yaml.safe_load((CHART / "crds" / "modeldeployments.penstock.dev.yaml").read_text())["spec"]["versions"][0]
    served = now["spec"]["versions"][0]
    assert served["additionalPrinterColumns"] == shipped["additionalPrinterColumns"]
    assert served["schema"] == shipped["schema"], "an older release's field or rule lingers"
    assert now["metadata"]["labels"]["example.org/kept"] == "yes"
    installed.must(installed.kubectl("wait", "crd/performanceprofiles.penstock.dev", "--for=condition=Established"))


def test_the_upgrade_says_what_the_server_said(installed: Cluster, tmp_path: Path) -> None:
    """An account without the permission: a sentence and exit status 1, not a stack trace or a silent success."""
    definition = CHART / "crds" / "workerpools.penstock.dev.yaml"
    (tmp_path / definition.name).write_text(definition.read_text())
    command = [sys.executable, str(CHART / "files" / "upgrade_crds.py"), str(tmp_path)]
    with service_account(installed, f"{RELEASE}-router", tmp_path) as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "403" in done.stderr
    assert "cannot get resource" in done.stderr
    assert "Traceback" not in done.stderr


def test_uninstalling_first_blocks_nothing(installed: Cluster) -> None:
    """The operator is gone, its objects are not: each can still be deleted, and the user's objects were kept."""
    example = str(REPOSITORY / "examples" / "quickstart")
    installed.must(installed.kubectl("apply", "-f", example))
    installed.must(installed.helm("uninstall", RELEASE, "--no-hooks"))
    left = installed.must(installed.kubectl("get", "modeldeployments", "-A", "-o", "name")).split()
    assert left == ["modeldeployment.penstock.dev/llama-8b"]
    assert installed.must(installed.kubectl("get", "engine", "-o", "name")) == ""
    installed.must(installed.kubectl("delete", "-f", example, "--timeout=90s"))
    names = [f"crd/{file.stem}" for file in (CHART / "crds").glob("*.yaml")]
    installed.must(installed.kubectl("delete", *names, "--timeout=90s"))
