"""The pod template a user or a platform team may merge over ours.

A pod's full schema would make our CRDs larger than client-side apply can carry, so unknown fields are kept as
they are and the API server checks the rendered pod itself, in a dry run. Only the fields that our rules speak
about are declared.
"""

from typing import Annotated, Any

from penstock.api.base import DNS_LABEL_PATTERN, ApiModel, Rule, rules
from pydantic import ConfigDict, StringConstraints, WithJsonSchema

_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

_ENGINE_CONTAINER = Rule(
    "self.name != 'engine' || !(has(self.command) || has(self.args) || has(self.image))",
    "podTemplate may not set command, args or image of the container 'engine'; use engine.image and engine.args"
    " (or command, args and image of the EngineClass)",
)

_CONTAINER = {
    **_OPEN,
    "description": "Container; the one named `engine` is merged over ours, any other runs beside it.",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": 63, "pattern": DNS_LABEL_PATTERN},
        "image": {"type": "string", "maxLength": 512},
        "command": {"type": "array", "maxItems": 128, "items": {"type": "string", "maxLength": 32768}},
        "args": {"type": "array", "maxItems": 128, "items": {"type": "string", "maxLength": 32768}},
    },
    **rules(_ENGINE_CONTAINER),
}

POD_RULES = (
    Rule(
        "!has(self.hostNetwork) || !self.hostNetwork",
        "podTemplate.spec.hostNetwork must be left out: a worker is reached at its own pod address, and two workers"
        " of one node would fight for the port",
    ),
    Rule(
        "!has(self.restartPolicy) || self.restartPolicy == 'Always'",
        "podTemplate.spec.restartPolicy must be Always or left out: workers are restarted, not run to completion",
    ),
    Rule(
        "!has(self.terminationGracePeriodSeconds)",
        "podTemplate.spec.terminationGracePeriodSeconds is derived; set terminationGracePeriod of the EngineClass"
        " so that the drain knows its limit",
    ),
)

_METADATA_RULE = Rule(
    "!has(self.labels) || self.labels.all(key, !key.startsWith('penstock.dev/'))",
    "podTemplate.metadata.labels may not use the prefix penstock.dev/, which says what a pod is to us; choose"
    " another prefix",
)

_METADATA = {
    "type": "object",
    "properties": {
        "labels": {
            "type": "object",
            "maxProperties": 32,
            "additionalProperties": {"type": "string", "maxLength": 63},
        },
        "annotations": {
            "type": "object",
            "maxProperties": 64,
            "additionalProperties": {"type": "string", "maxLength": 16384},
        },
    },
    **rules(_METADATA_RULE),
}

_SPEC = {
    **_OPEN,
    "properties": {
        "hostNetwork": {"type": "boolean"},
        "restartPolicy": {"type": "string", "maxLength": 16},
        "terminationGracePeriodSeconds": {"type": "integer", "format": "int64"},
        "containers": {
            "type": "array",
            "maxItems": 16,
            "items": _CONTAINER,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    },
    **rules(*POD_RULES),
}

PodTemplate = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "properties": {"metadata": _METADATA, "spec": _SPEC}}),
]
"""Labels, annotations and pod spec that are merged over ours; lists merge by name."""

RenderedPodTemplate = Annotated[dict[str, Any], WithJsonSchema(_OPEN)]
"""A whole pod template, as written by the operator."""

EnvName = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", min_length=1, max_length=128)]


class EnvVar(ApiModel):
    """One environment variable of the engine's container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!(has(self.value) && has(self.valueFrom))",
                "an env item has value or valueFrom, not both; remove one",
            )
        )
    )

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=32768)] | None = None
    """Its value."""
    value_from: Annotated[dict[str, Any], WithJsonSchema(_OPEN)] | None = None
    """Where the value comes from (a Secret, a ConfigMap, a field), as in a pod."""


class LocalReference(ApiModel):
    """Name of an object in the same namespace."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
    """Name of the object."""
