"""What every kind of our API is made of.

Two needs meet here. Objects we *write* must be exact: an unknown field in our own code is a bug, so models
forbid extras. Objects we *read* may come from a newer or older release, so `read` ignores what it does not
know. Docstrings under fields become the descriptions that `kubectl explain` shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from penstock.api.quantities import (
    DECIMAL_PATTERN,
    DURATION_PATTERN,
    PERCENT_PATTERN,
    QUANTITY_PATTERN,
    WHOLE_PERCENT_PATTERN,
)
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "penstock.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["penstock.dev/v1alpha1"] = "penstock.dev/v1alpha1"

LABEL_DEPLOYMENT = f"{GROUP}/deployment"
LABEL_POOL = f"{GROUP}/pool"
LABEL_ROLE = f"{GROUP}/role"
LABEL_ACCELERATOR = f"{GROUP}/accelerator"
LABEL_REVISION = f"{GROUP}/revision"
ANNOTATION_MODEL = f"{GROUP}/model"
ANNOTATION_PARALLELISM = f"{GROUP}/parallelism"
ANNOTATION_KV_HASH = f"{GROUP}/kv-hash"

DNS_LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule: what must hold, and the sentence (field and remedy) shown when it does not.

    `message_expression` is CEL too; it may quote the object's values, and `message` stands in when it fails.
    """

    expression: str
    message: str
    message_expression: str | None = None

    def as_schema(self) -> dict[str, str]:
        """The item of `x-kubernetes-validations`."""
        schema = {"rule": self.expression, "message": self.message}
        if self.message_expression is not None:
            schema["messageExpression"] = self.message_expression
        return schema


def rules(*given: Rule) -> dict[str, Any]:
    """Schema extension that carries CEL rules; for `json_schema_extra` of a model or of a field."""
    return {"x-kubernetes-validations": [rule.as_schema() for rule in given]}


def map_list(*keys: str, max_items: int) -> dict[str, Any]:
    """Schema extension of a list whose items are known by `keys`: server-side apply merges it item by item."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys), "maxItems": max_items}


def set_list(*, max_items: int, min_items: int = 0) -> dict[str, Any]:
    """Schema extension of a list without duplicates."""
    bounds = {"minItems": min_items} if min_items else {}
    return {"x-kubernetes-list-type": "set", "maxItems": max_items, **bounds}


def atomic_list(*, max_items: int) -> dict[str, Any]:
    """Schema extension of a list that is replaced as a whole."""
    return {"x-kubernetes-list-type": "atomic", "maxItems": max_items}


def cel_string(text: str) -> str:
    """CEL literal of a text (a regular expression, mostly)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _text(pattern: str, max_length: int, example_rule: Rule) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "maxLength": max_length, **rules(example_rule)}


def once_durations(*fields: str, rule: str) -> str:
    """A CEL rule over durations that keeps quiet where one of `fields` is none: the field's own rule says so, once."""
    matches = " && ".join(f"self.{field}.matches({cel_string(DURATION_PATTERN)})" for field in fields)
    return f"!({matches}) || {rule}"


# The API server checks a pattern and a rule both: the pattern is for tools, the rule's sentence is for people.
Duration = Annotated[
    str,
    StringConstraints(pattern=DURATION_PATTERN),
    WithJsonSchema(
        _text(
            DURATION_PATTERN,
            28,
            Rule(
                f"self.matches({cel_string(DURATION_PATTERN)}) && duration(self) > duration('0s')",
                "a duration must be positive and look like 500ms, 40s or 1h30m",
            ),
        )
    ),
]
"""Positive span of time as a string; `quantities.parse_duration` gives seconds."""

Percent = Annotated[
    str,
    StringConstraints(pattern=PERCENT_PATTERN),
    WithJsonSchema(
        _text(
            PERCENT_PATTERN,
            7,
            Rule(
                f"self.matches({cel_string(PERCENT_PATTERN)}) && double(self.replace('%', '')) >= 1.0",
                'a percentage must lie in 1%..100%, for example "95%"',
            ),
        )
    ),
]
"""Share of a whole as a string; `quantities.parse_percent` gives 0..1."""

Quantity = Annotated[
    str,
    StringConstraints(pattern=QUANTITY_PATTERN),
    WithJsonSchema(
        _text(
            QUANTITY_PATTERN,
            28,
            Rule(
                "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
                "a quantity must be positive and look like 80Gi, 3350G or 989T",
            ),
        )
    ),
]
"""Kubernetes quantity as a string; `quantities.parse_quantity` gives the number."""

PositiveDecimal = Annotated[
    str,
    StringConstraints(pattern=DECIMAL_PATTERN),
    WithJsonSchema(
        _text(
            DECIMAL_PATTERN,
            22,
            Rule(
                f"self.matches({cel_string(DECIMAL_PATTERN)}) && double(self) > 0.0",
                'a decimal must be above 0 and be quoted, for example "400" or "0.35"',
            ),
        )
    ),
]
"""Decimal above zero as a string; `quantities.parse_decimal` gives it exactly."""

Coefficient = Annotated[
    str,
    StringConstraints(pattern=DECIMAL_PATTERN),
    WithJsonSchema({"type": "string", "pattern": DECIMAL_PATTERN, "maxLength": 22}),
]
"""Decimal of zero or more as a string."""

CountOrPercent = Annotated[
    int | Annotated[str, StringConstraints(pattern=WHOLE_PERCENT_PATTERN)],
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": WHOLE_PERCENT_PATTERN, "maxLength": 4}),
]
"""A count or a percentage of the replicas; `quantities.resolve_share` gives the count."""

Name = Annotated[str, StringConstraints(pattern=DNS_LABEL_PATTERN, min_length=1, max_length=40)]
"""Name of an object of ours that becomes part of other names: a DNS label of at most 40 characters."""

ObjectName = Annotated[str, StringConstraints(pattern=DNS_NAME_PATTERN, min_length=1, max_length=253)]
"""Name of any Kubernetes object."""

Text = Annotated[str, StringConstraints(max_length=4096)]
"""Free text, bounded."""

Labels = Annotated[
    dict[str, str],
    WithJsonSchema(
        {"type": "object", "maxProperties": 32, "additionalProperties": {"type": "string", "maxLength": 63}},
    ),
]
"""Labels or a node selector."""


class ApiModel(BaseModel):
    """Base of everything in the API: frozen, camelCase outside, snake_case inside."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Parse what the API server stores; fields of another release are ignored.

        Raises `pydantic.ValidationError` (a `ValueError`) where a known field has a wrong value.
        """
        return cls.model_validate(stored, extra="ignore")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form with the API's field names; what is None is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class OwnerReference(ApiModel):
    """Object this one belongs to; the garbage collector follows it."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(ApiModel):
    """The part of Kubernetes object metadata that we read and write."""

    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: list[OwnerReference] = Field(default_factory=list)


class Condition(ApiModel):
    """One aspect of the object's state, in the standard form of Kubernetes conditions."""

    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=64)]
    """Aspect, in CamelCase; `Ready` sums all others up."""
    status: Literal["True", "False", "Unknown"]
    """Whether the aspect holds."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=128)]
    """Why, as one CamelCase word for programs."""
    message: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Why, as a sentence for people: what happened, to which object, what to do."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """`metadata.generation` that this condition was computed from."""
    last_transition_time: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64})]
    """When `status` last changed."""


class ApiObject(ApiModel):
    """A whole object of one kind; `CRD` tells the generator how the kind is declared."""

    CRD: ClassVar["KindInfo"]

    api_version: Literal["penstock.dev/v1alpha1"] = API_VERSION
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`; priority 1 shows with `-o wide` only."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the scale subresource finds its numbers."""

    spec_replicas: str = ".spec.replicas"
    status_replicas: str = ".status.replicas"
    selector: str = ".status.selector"


@dataclass(frozen=True, slots=True)
class KindInfo:
    """Names, scope and subresources of a kind."""

    plural: str
    singular: str
    short_names: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]
    scale: Scale | None = None
    name_rules: tuple[Rule, ...] = ()

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


def short_name_rule(kind: str, limit: int = 40) -> Rule:
    """Names of ours become parts of labels and of other names, so they are short DNS labels."""
    return Rule(
        f"self.metadata.name.size() <= {limit} && self.metadata.name.matches({cel_string(DNS_LABEL_PATTERN)})",
        f"metadata.name of this {kind} must be a DNS label of at most {limit} characters (lower case letters, digits"
        " and '-', no dots), because it becomes part of labels and of other names; choose a shorter name",
    )
