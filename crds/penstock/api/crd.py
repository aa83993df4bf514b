"""From a pydantic model to the structural schema of a CustomResourceDefinition.

pydantic speaks JSON Schema with references, unions with null and titles; the API server wants one closed tree
in which every list, map and string has a maximum (it prices CEL rules by the worst case). This module does the
translation and refuses what could not be priced, so that the mistake shows here and not at `kubectl apply`.
"""

from typing import Any

from penstock.api.base import GROUP, VERSION, ApiModel, ApiObject, Column, KindInfo
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import core_schema

Schema = dict[str, Any]

_DROPPED = frozenset({"title", "$defs", "definitions"})
_OPEN = "x-kubernetes-preserve-unknown-fields"
_RULES = "x-kubernetes-validations"


class SchemaError(ValueError):
    """A model cannot become a structural schema; the message names the field."""


class _WithFactories(GenerateJsonSchema):
    """Shows the default of a nested model, so that its own defaults apply when the user leaves it out."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory: Any = schema.get("default_factory")
        if factory is not None and isinstance(factory, type) and issubclass(factory, ApiModel):
            return _without_empty(factory().to_dict())
        return schema.get("default", NoDefault)


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """An empty list or map says no more than a missing one."""
    return {key: value for key, value in values.items() if value not in ([], {})}


def structural(model: type[ApiModel], *, defaults: bool = True) -> Schema:
    """Structural schema of a model; without `defaults` for status, which nobody fills by halves.

    Raises `SchemaError` where a list, map or string has no maximum.
    """
    raw = model.model_json_schema(schema_generator=_WithFactories)
    schema = _convert(raw, raw.get("$defs", {}), defaults)
    _check_bounds(schema, model.__name__)
    return schema


def custom_resource_definition(kind: type[ApiObject]) -> dict[str, Any]:
    """The whole CustomResourceDefinition of a kind."""
    info = kind.CRD
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": info.crd_name, "labels": {"app.kubernetes.io/part-of": "penstock"}},
        "spec": {
            "group": GROUP,
            "names": _names(kind.__name__, info),
            "scope": "Namespaced" if info.namespaced else "Cluster",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(column) for column in info.columns],
                    "schema": {"openAPIV3Schema": _object_schema(kind)},
                    "subresources": _subresources(kind, info),
                }
            ],
        },
    }


def _names(kind: str, info: KindInfo) -> dict[str, Any]:
    return {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": info.plural,
        "singular": info.singular,
        "shortNames": list(info.short_names),
        "categories": ["penstock"],
    }


def _column(column: Column) -> dict[str, Any]:
    out: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.description:
        out["description"] = column.description
    if column.priority:
        out["priority"] = column.priority
    return out


def has_status(kind: type[ApiObject]) -> bool:
    """Whether anybody tells what was seen of such an object; classes only say what they are."""
    return "status" in kind.model_fields


def _subresources(kind: type[ApiObject], info: KindInfo) -> dict[str, Any]:
    out: dict[str, Any] = {"status": {}} if has_status(kind) else {}
    if info.scale is not None:
        out["scale"] = {
            "specReplicasPath": info.scale.spec_replicas,
            "statusReplicasPath": info.scale.status_replicas,
            "labelSelectorPath": info.scale.selector,
        }
    return out


def _object_schema(kind: type[ApiObject]) -> Schema:
    """The root: the API server owns metadata, so only spec and status come from the model."""
    schema: Schema = {
        "description": _one_line(kind.__doc__ or ""),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema: penstock.dev/v1alpha1."},
            "kind": {"type": "string", "description": f"Always {kind.__name__}."},
            "metadata": {"type": "object"},
            "spec": structural(_model_of(kind, "spec")),
        },
    }
    if has_status(kind):
        schema["properties"]["status"] = structural(_model_of(kind, "status"), defaults=False)
    if kind.CRD.name_rules:
        schema[_RULES] = [rule.as_schema() for rule in kind.CRD.name_rules]
    return schema


def _model_of(kind: type[ApiObject], field: str) -> type[ApiModel]:
    annotation = kind.model_fields[field].annotation
    if not (isinstance(annotation, type) and issubclass(annotation, ApiModel)):
        raise SchemaError(f"{kind.__name__}.{field} is not a model of the API")
    return annotation


def _convert(node: Schema, defs: dict[str, Schema], defaults: bool) -> Schema:
    """One node of the tree, with references put in place and nulls left out."""
    node = _without_null(_resolved(node, defs), defs)
    out: Schema = {}
    for key, value in node.items():
        if key in _DROPPED or (key == "additionalProperties" and value is False):
            continue
        if key == "properties":
            out[key] = {name: _convert(child, defs, defaults) for name, child in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = _convert(value, defs, defaults)
        elif key == "const":
            out["enum"] = [value]
        elif key == "description":
            out[key] = _one_line(value)
        elif key == "default":
            if defaults and value is not None:
                out[key] = value
        else:
            out[key] = value
    return _without_idle_default(out)


def _resolved(node: Schema, defs: dict[str, Schema]) -> Schema:
    """The node with its reference (if any) in place; what stands beside the reference wins, rules add up."""
    if "$ref" not in node:
        return node
    target = _resolved(defs[node["$ref"].rsplit("/", 1)[-1]], defs)
    beside = {key: value for key, value in node.items() if key != "$ref"}
    merged = {**target, **beside}
    if _RULES in target and _RULES in beside:
        merged[_RULES] = [*target[_RULES], *beside[_RULES]]
    return merged


def _without_null(node: Schema, defs: dict[str, Schema]) -> Schema:
    """`X or null` is an optional X to Kubernetes."""
    if "anyOf" not in node:
        return node
    choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
    if len(choices) != 1:
        raise SchemaError(f"a structural schema has no unions: {node}")
    beside = {key: value for key, value in node.items() if key != "anyOf"}
    return _resolved({**_resolved(choices[0], defs), **beside}, defs)


def _without_idle_default(node: Schema) -> Schema:
    """`default: {}` says nothing."""
    for child in node.get("properties", {}).values():
        if child.get("default") == {}:
            del child["default"]
    return node


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check_bounds(node: Schema, path: str) -> None:
    """Raise where the API server could not price a rule, or a user could store without limit."""
    kind = node.get("type")
    if kind == "string" and not {"maxLength", "enum"} & node.keys():
        raise SchemaError(f"{path}: a string needs max_length")
    if kind == "array" and "maxItems" not in node:
        raise SchemaError(f"{path}: a list needs max_items")
    if "additionalProperties" in node and "maxProperties" not in node:
        raise SchemaError(f"{path}: a map needs maxProperties")
    if kind == "object" and not {"properties", "additionalProperties", _OPEN} & node.keys():
        raise SchemaError(f"{path}: an object needs fields, or must say that it keeps unknown ones")
    for name, child in node.get("properties", {}).items():
        _check_bounds(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            _check_bounds(node[key], f"{path}[]")
