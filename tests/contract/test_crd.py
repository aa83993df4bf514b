"""The definitions as they ship: fresh, bounded, and small enough for every way of applying them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from penstock.api import KINDS, ApiModel, ModelDeploymentSpec, RolloutSpec
from penstock.api.crd import SchemaError, custom_resource_definition, structural
from pydantic import Field, StringConstraints

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT_WHOLE = "x-kubernetes-preserve-unknown-fields"


def test_generated_files_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "hack" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_file_is_named(tmp_path: Path) -> None:
    """The check can fail: a copy of the repository's parts with one definition changed."""
    for part in ("hack", "crds", "charts"):
        for file in (REPOSITORY / part).rglob("*"):
            if file.is_file() and file.suffix in {".py", ".yaml", ".json", ".md"}:
                copy = tmp_path / file.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    edited = tmp_path / "crds" / "workerpools.penstock.dev.yaml"
    edited.write_text(edited.read_text().replace("Workers wanted", "Workers hoped for"))
    (tmp_path / "crds" / "gone.penstock.dev.yaml").write_text("kind: CustomResourceDefinition\n")
    command = [sys.executable, str(tmp_path / "hack" / "generate_crds.py")]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "crds/workerpools.penstock.dev.yaml is stale; run `make generate`" in checked.stderr
    assert "crds/gone.penstock.dev.yaml is stale" in checked.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert "hoped for" not in edited.read_text()
    assert not (tmp_path / "crds" / "gone.penstock.dev.yaml").exists()


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_everything_is_bounded_and_typed(kind: Any) -> None:
    schema = custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in nodes(schema, kind.__name__):
        if path.count(".") == 1 and not path.endswith((".spec", ".status")):
            continue  # apiVersion, kind and metadata are the API server's
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        if node.get("type") == "string":
            assert node.keys() & {"maxLength", "enum"}, f"{path} has no maximum"
        if node.get("type") == "array":
            assert "maxItems" in node, f"{path} has no maximum"
            assert "x-kubernetes-list-type" in node or "command" in path or "args" in path, f"{path} has no list type"
        if isinstance(node.get("additionalProperties"), dict):
            assert "maxProperties" in node, f"{path} has no maximum"
        assert not node.keys() & {"$ref", "anyOf", "title", "$defs", "const"}, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_client_side_apply_can_carry_it(kind: Any) -> None:
    """kubectl keeps the applied object in an annotation, and annotations end at 256 KiB."""
    assert len(json.dumps(custom_resource_definition(kind))) < 128 * 1024


def test_no_definition_confuses_helm() -> None:
    """Helm would read two braces as a template, if the files were ever moved to templates/."""
    for file in (REPOSITORY / "crds").glob("*.yaml"):
        assert "{{" not in file.read_text(), file


def test_files_hold_what_the_models_say() -> None:
    for kind in KINDS:
        for folder in ("crds", "charts/penstock/crds"):
            file = REPOSITORY / folder / f"{kind.CRD.crd_name}.yaml"
            assert yaml.safe_load(file.read_text()) == custom_resource_definition(kind)


class Unbounded(ApiModel):
    """A model somebody forgot to bound."""

    text: str


class UnboundedList(ApiModel):
    """A list somebody forgot to bound."""

    names: list[Annotated[str, StringConstraints(max_length=3)]]


class Union(ApiModel):
    """A union that no structural schema can say."""

    either: Annotated[int, Field(ge=0)] | bool


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Unbounded, r"Unbounded\.text: a string needs max_length"),
        (UnboundedList, r"UnboundedList\.names: a list needs max_items"),
        (Union, "a structural schema has no unions"),
    ],
)
def test_what_the_server_would_refuse_is_refused_here(model: type[ApiModel], says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        structural(model)


def test_defaults_reach_into_what_is_left_out() -> None:
    schema = structural(ModelDeploymentSpec)
    assert schema["properties"]["rollout"]["default"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert schema["properties"]["autoscaling"]["default"] == {"mode": "Advise"}
    assert "default" not in schema["properties"]["engine"]
    assert "default" not in structural(RolloutSpec, defaults=False)["properties"]["maxSurge"]


def test_descriptions_are_one_line_and_fields_keep_their_names() -> None:
    schema = structural(ModelDeploymentSpec)
    assert schema["properties"]["podTemplate"]["properties"]["spec"][KEPT_WHOLE] is True
    assert schema["required"] == ["model", "objectives"]
    for path, node in nodes(schema, "spec"):
        assert "\n" not in node.get("description", ""), path
