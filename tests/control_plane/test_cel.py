"""Every rule of the API, tried on a real API server: what it accepts, what it refuses, and the sentence it says."""

from __future__ import annotations

import base64
import copy
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from penstock.api import (
    KINDS,
    ApiObject,
    ModelDeployment,
    parse_decimal,
    parse_duration,
    parse_percent,
    parse_quantity,
)
from penstock.api.crd import custom_resource_definition
from penstock.box.standalone import StandaloneControlPlane

pytestmark = pytest.mark.control_plane

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "cel_rows.yaml").read_text())
ROWS: list[dict[str, Any]] = TABLE["rows"]
BY_KIND: dict[str, type[ApiObject]] = {kind.__name__: kind for kind in KINDS}
GROUP_PATH = "/apis/penstock.dev/v1alpha1"


def merged(base: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): null removes a field, a list replaces a list."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


def rules_of(schema: Any) -> Iterator[dict[str, str]]:
    """Every rule in a schema."""
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", [])
        for child in schema.values():
            yield from rules_of(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from rules_of(child)


def messages() -> set[str]:
    """The sentence of every rule of every kind."""
    return {rule["message"] for kind in KINDS for rule in rules_of(custom_resource_definition(kind))}


def row_id(row: dict[str, Any]) -> str:
    return f"{row['kind']}: {row.get('rule', row.get('says'))}"[:70]


class Api:
    """The few calls these tests need, over one connection."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def path(self, thing: dict[str, Any], name: bool = False) -> str:
        info = BY_KIND[thing["kind"]].CRD
        folder = f"/namespaces/{thing['metadata']['namespace']}" if info.namespaced else ""
        return f"{GROUP_PATH}{folder}/{info.plural}" + (f"/{thing['metadata']['name']}" if name else "")

    def create(self, thing: dict[str, Any], *, dry_run: bool = True) -> httpx.Response:
        return self.client.post(self.path(thing), json=thing, params={"dryRun": "All"} if dry_run else {})

    def replace(self, thing: dict[str, Any], stored: dict[str, Any]) -> httpx.Response:
        version = {"metadata": {"resourceVersion": stored["metadata"]["resourceVersion"]}}
        return self.client.put(self.path(thing, name=True), json=merged(thing, version), params={"dryRun": "All"})

    def delete(self, thing: dict[str, Any]) -> None:
        self.client.delete(self.path(thing, name=True)).raise_for_status()


def kubectl(
    plane: StandaloneControlPlane, *arguments: str, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [str(plane.kubectl), f"--kubeconfig={plane.kubeconfig}", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def crds(control_plane: StandaloneControlPlane) -> StandaloneControlPlane:
    """The API server with our definitions in place and served."""
    applied = kubectl(control_plane, "apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
    assert applied.returncode == 0, applied.stderr
    names = [f"crd/{kind.CRD.crd_name}" for kind in KINDS]
    waited = kubectl(control_plane, "wait", "--for=condition=Established", "--timeout=30s", *names)
    assert waited.returncode == 0, waited.stderr
    return control_plane


@pytest.fixture(scope="module")
def api(crds: StandaloneControlPlane) -> Iterator[Api]:
    """A client with the administrator's certificate."""
    config = yaml.safe_load(crds.kubeconfig.read_text())
    user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
    with httpx.Client(base_url=crds.url, verify=_trust(user, cluster, crds.kubeconfig.parent), timeout=30) as client:
        _until_served(client)
        yield Api(client)


def _trust(user: dict[str, str], cluster: dict[str, str], folder: Path) -> ssl.SSLContext:
    def file(holder: dict[str, str], key: str, name: str) -> str:
        if key in holder:
            return holder[key]
        path = folder / name
        path.write_bytes(base64.b64decode(holder[f"{key}-data"]))
        return str(path)

    context = ssl.create_default_context(cafile=file(cluster, "certificate-authority", "cel-ca.crt"))
    context.load_cert_chain(file(user, "client-certificate", "cel.crt"), file(user, "client-key", "cel.key"))
    return context


def _until_served(client: httpx.Client) -> None:
    """A definition is established a moment before every kind answers."""
    for _ in range(100):
        if all(client.get(f"{GROUP_PATH}/{kind.CRD.plural}").status_code == 200 for kind in KINDS):
            return
        time.sleep(0.1)
    pytest.fail("the API server does not serve our kinds")


def test_every_rule_has_a_row_and_every_row_a_rule() -> None:
    sentences = messages()
    untested = [text for text in sentences if not any(text.startswith(row["rule"]) for row in ROWS)]
    assert not untested, f"rules without a row: {untested}"
    orphans = [row["rule"] for row in ROWS if not any(text.startswith(row["rule"]) for text in sentences)]
    assert not orphans, f"rows of rules that do not exist: {orphans}"
    assert len(sentences) >= 20


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_a_rule_accepts_and_refuses(api: Api, row: dict[str, Any]) -> None:
    base = TABLE["bases"][row["kind"]]
    if "before" in row:
        stored = api.create(merged(base, row["before"]), dry_run=False)
        assert stored.status_code == 201, stored.text
        try:
            accepted = api.replace(merged(merged(base, row["before"]), row["accept"]), stored.json())
            refused = api.replace(merged(merged(base, row["before"]), row["refuse"]), stored.json())
        finally:
            api.delete(base)
    else:
        accepted = api.create(merged(base, row["accept"]))
        refused = api.create(merged(base, row["refuse"]))
    assert accepted.is_success, accepted.json()["message"]
    assert refused.status_code == 422, refused.text
    message = refused.json()["message"]
    assert row.get("says", row["rule"]) in message
    assert "type conversion error" not in message, "another rule stumbles over what this one refuses"


@pytest.mark.parametrize("row", TABLE["schema"], ids=row_id)
def test_the_schema_refuses(api: Api, row: dict[str, Any]) -> None:
    refused = api.create(merged(TABLE["bases"][row["kind"]], row["refuse"]))
    assert refused.status_code == 422, refused.text
    assert row["says"] in refused.json()["message"]


@pytest.mark.parametrize("kind", TABLE["bases"], ids=str)
def test_our_models_read_what_the_server_stores(api: Api, kind: str) -> None:
    """Defaults of schema and model agree: reading the stored object changes nothing."""
    base = TABLE["bases"][kind]
    stored = api.create(base).json()
    model = BY_KIND[kind]
    assert model.read(stored).to_dict()["spec"] == model.read(base).to_dict()["spec"]


STRINGS: list[tuple[str, str, dict[str, Any], Callable[[str], object]]] = [
    (kind, text, patch, reader)
    for kind, reader, texts, patch_of in (
        (
            "ModelDeployment",
            parse_duration,
            (
                "1ms",
                "1h1m1s1ms",
                "99999h",
                "0s",
                "1d",
                "1.5s",
                "-1s",
                "+1s",
                " 1s",
                "1s ",
                "1s\n",
                "1us",
                "100000s",
                "5",
                "",
            ),
            lambda text: {"spec": {"objectives": {"ttft": text, "tpot": "1ms"}}},
        ),
        (
            "ModelDeployment",
            parse_percent,
            ("1%", "100%", "99.999%", "0%", "100.5%", "99.9999%", "95", "1e1%", "%", "\u0661%"),
            lambda text: {"spec": {"objectives": {"attainment": text}}},
        ),
        (
            "AcceleratorClass",
            parse_quantity,
            ("1", "79.3Gi", "1k", "1Ki", "0", "0Gi", "80GB", "1e3", "-1Gi", "1m", "1 Gi", "+1Gi", ".5Gi", ""),
            lambda text: {"spec": {"memory": text}},
        ),
        (
            "AcceleratorClass",
            parse_decimal,
            ("1", "0.000001", "999999999.5", "0", "0.0", "-1", "1e3", ".5", "5.", "NaN", "Infinity", "1,5", ""),
            lambda text: {"spec": {"pricePerHour": text}},
        ),
    )
    for text in texts
    for patch in (patch_of(text),)
]


@pytest.mark.parametrize(("kind", "text", "patch", "reader"), STRINGS, ids=lambda value: repr(value)[:24])
def test_server_and_readers_agree_on_strings(
    api: Api, kind: str, text: str, patch: dict[str, Any], reader: Callable[[str], object]
) -> None:
    """What the server lets in can be read, and is above zero; what it refuses we would refuse too."""
    try:
        number = reader(text)
    except ValueError:
        number = 0
    assert api.create(merged(TABLE["bases"][kind], patch)).is_success == (number > 0)  # type: ignore[operator]


EXAMPLES = sorted((REPOSITORY / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_example_is_accepted(crds: StandaloneControlPlane, path: Path) -> None:
    done = kubectl(crds, "create", "--dry-run=server", "--validate=strict", "-f", str(path))
    assert done.returncode == 0, done.stderr


DESIGN_EXAMPLE = """
apiVersion: penstock.dev/v1alpha1
kind: ModelDeployment
metadata: {name: llama-70b, namespace: default}
spec:
  model:
    name: meta-llama/Llama-3.1-70B-Instruct
    source: {uri: hf://meta-llama/Llama-3.1-70B-Instruct, secretRef: {name: hf-token}}
    maxContextTokens: 32768
  engine: {className: vllm, args: [--enforce-eager]}
  objectives: {ttft: 500ms, tpot: 40ms, attainment: "95%", window: 5m}
  disaggregation: Auto
  pools:
  - {name: prefill, role: Prefill, acceleratorClasses: [h100-80g], parallelism: {tensor: 4}, replicas: {min: 0, max: 8}}
  - {name: decode, role: Decode, acceleratorClasses: [a100-80g, h100-80g], parallelism: {tensor: 4},
     replicas: {min: 0, max: 16}}
  routing: {policy: KVAware}
  autoscaling: {mode: Auto, budget: {costPerHour: "400", maxAccelerators: 64}, scaleToZeroAfter: 15m}
  podTemplate: {spec: {tolerations: [], runtimeClassName: nvidia}}
"""


def test_the_full_example_is_accepted_both_ways_of_applying(crds: StandaloneControlPlane) -> None:
    for way in (["--server-side"], []):
        done = kubectl(crds, "apply", "--dry-run=server", "--validate=strict", *way, "-f", "-", stdin=DESIGN_EXAMPLE)
        assert done.returncode == 0, done.stderr
    spec = ModelDeployment.read(yaml.safe_load(DESIGN_EXAMPLE)).spec
    assert [pool.parallelism.accelerators for pool in spec.pools] == [4, 4]


def test_scaling_holds_the_bounds(crds: StandaloneControlPlane, api: Api) -> None:
    pool = TABLE["bases"]["WorkerPool"]
    assert api.create(pool, dry_run=False).status_code == 201
    name = pool["metadata"]["name"]
    try:
        beyond = kubectl(crds, "scale", "wpool", name, "--replicas=9")
        assert beyond.returncode != 0
        assert "replicas 9 is outside 1..4; scale within these bounds" in beyond.stderr
        assert kubectl(crds, "scale", "wpool", name, "--replicas=0").returncode != 0
        assert kubectl(crds, "scale", "wpool", name, "--replicas=3").returncode == 0
        scale = api.client.get(f"{api.path(pool, name=True)}/scale").json()
        assert scale["spec"]["replicas"] == 3
    finally:
        api.delete(pool)


def test_the_scale_subresource_shows_count_and_selector(api: Api) -> None:
    """What an HPA reads."""
    pool = TABLE["bases"]["WorkerPool"]
    assert api.create(pool, dry_run=False).status_code == 201
    try:
        status = {"status": {"replicas": 2, "selector": "penstock.dev/pool=serve"}}
        patched = api.client.patch(
            f"{api.path(pool, name=True)}/status",
            json=status,
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert patched.is_success, patched.text
        scale = api.client.get(f"{api.path(pool, name=True)}/scale").json()
        assert scale["status"] == {"replicas": 2, "selector": "penstock.dev/pool=serve"}
    finally:
        api.delete(pool)


def test_server_side_apply_merges_by_key(api: Api) -> None:
    """Two writers own two conditions, and two pools, of one object."""
    thing = TABLE["bases"]["ModelDeployment"]
    assert api.create(thing, dry_run=False).status_code == 201

    def apply(manager: str, patch: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        body = {"apiVersion": thing["apiVersion"], "kind": thing["kind"], "metadata": thing["metadata"], **patch}
        answer = api.client.patch(
            api.path(thing, name=True) + subresource,
            content=yaml.safe_dump(body),
            params={"fieldManager": manager},
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert answer.is_success, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def condition(kind: str) -> dict[str, Any]:
        when = "2026-01-01T00:00:00Z"
        one = {"type": kind, "status": "True", "reason": "Tried", "message": "", "lastTransitionTime": when}
        return {"status": {"conditions": [one]}}

    try:
        apply("penstock-operator", condition("Accepted"), "/status")
        both = apply("penstock-router", condition("RouterReady"), "/status")
        assert {each["type"] for each in both["status"]["conditions"]} == {"Accepted", "RouterReady"}
        gone = apply("penstock-router", {}, "/status")
        assert [each["type"] for each in gone["status"]["conditions"]] == ["Accepted"]
        more = {"spec": {"pools": [{"name": "more", "acceleratorClasses": ["l4-24g"]}]}}
        assert [pool["name"] for pool in apply("other", more)["spec"]["pools"]] == ["serve", "more"]
    finally:
        api.delete(thing)


def test_columns_answer_whether_it_is_well(crds: StandaloneControlPlane, api: Api) -> None:
    thing = TABLE["bases"]["ModelDeployment"]
    assert api.create(thing, dry_run=False).status_code == 201
    when = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "False", "reason": "WorkersStarting", "message": "", "lastTransitionTime": when}
    status = {"workers": "1/2", "plan": {"costPerHour": "7.34"}, "conditions": [ready]}
    try:
        api.client.patch(
            f"{api.path(thing, name=True)}/status",
            json={"status": status},
            headers={"Content-Type": "application/merge-patch+json"},
        ).raise_for_status()
        header, row = kubectl(crds, "get", "mdep", "row").stdout.splitlines()
        assert header.split() == ["NAME", "MODEL", "WORKERS", "READY", "REASON", "COST/H", "AGE"]
        assert row.split()[:6] == ["row", "meta-llama/Llama-3.1-8B-Instruct", "1/2", "False", "WorkersStarting", "7.34"]
    finally:
        api.delete(thing)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("mdep.spec.objectives.ttft", "Time to the first token"),
        ("wpool.spec.replicas", "only the scale subresource writes it"),
        ("accel.spec.memory", "Memory of one accelerator in bytes"),
        ("engine.spec.terminationGracePeriod", "SIGKILL"),
        ("prof.spec.decode.perSequence", "Milliseconds per running sequence"),
    ],
)
def test_explain_describes_fields(crds: StandaloneControlPlane, path: str, says: str) -> None:
    for _ in range(50):  # the schema is published a moment after the kind is served
        done = kubectl(crds, "explain", path)
        if says in " ".join(done.stdout.split()):
            return
        time.sleep(0.2)
    pytest.fail(done.stdout + done.stderr)
