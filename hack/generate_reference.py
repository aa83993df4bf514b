"""Write the reference page of the API, from the same models as the definitions (part of `make generate`)."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generated import ROOT, run
from penstock.api import KINDS, ApiObject, ConditionType, Reason
from penstock.api.crd import custom_resource_definition

PAGE = ROOT / "docs" / "reference" / "api.md"
_INTRODUCTION = """# The API

Generated from `crds/penstock/api` by `make generate`. `kubectl explain` shows the same texts. A duration is written
like `500ms`, `40s` or `1h30m`; a percentage like `"95%"`; a quantity like `80Gi`; a decimal like `"0.35"`."""


def rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    """One table row per field, parents before children; what stands inside a pod template is Kubernetes' own."""
    required = set(schema.get("required", ()))
    for name, child in schema.get("properties", {}).items():
        here, default = f"{path}.{name}", _default(child, name in required)
        yield f"| `{here}` | {_type(child)} | {default} | {_cell(child.get('description', ''))} |"
        if name != "podTemplate":
            yield from rows(child.get("items", {}), f"{here}[]")
            yield from rows(child, here)


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "count or percentage"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return "map of strings"
    return str(schema.get("type", "any"))


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "**required**"
    default = schema.get("default")
    return "" if default is None or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def sentences(schema: Any) -> Iterator[str]:
    """What every rule in a schema says."""
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", ()):
            yield str(rule["message"])
        for child in schema.values():
            yield from sentences(child)


def section(kind: type[ApiObject]) -> Iterator[str]:
    """The part of the page about one kind."""
    definition = custom_resource_definition(kind)
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    scope = "namespaced" if kind.CRD.namespaced else "cluster"
    yield from ("", f"## {kind.__name__}", "", schema["description"], "")
    yield from (f"Short name `{kind.CRD.short_names[0]}`; {scope}.", "")
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for part in ("spec", "status"):
        if part not in schema["properties"]:
            continue
        yield from rows(schema["properties"][part], part)
    said = dict.fromkeys(sentences(schema))
    if said:
        yield from ("", "Refused by the API server, in these words:", "")
        yield from (f"- {text}" for text in said)


def page() -> str:
    """The whole page."""
    lines = [_INTRODUCTION]
    for kind in KINDS:
        lines += section(kind)
    for title, words in (("Conditions", ConditionType), ("Reasons", Reason)):
        lines += ["", f"## {title}", "", "| word | meaning |", "|---|---|"]
        lines += dict.fromkeys(f"| `{word.value}` | {word.meaning} |" for word in words)
    return "\n".join(lines) + "\n"


def render() -> dict[Path, str]:
    """Path and content of the page."""
    return {PAGE: page()}


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    return run("Write the reference page of the API.", render(), (), arguments)


if __name__ == "__main__":
    sys.exit(main())
