"""The engine arguments that Penstock writes itself, and the rule that refuses them elsewhere.

A second `--port` would silently win or lose by its place in the list; a second `--tensor-parallel-size` would
make the pool's accelerators a lie. So the API refuses them and says which field says the same.
"""

from typing import Annotated

from penstock.api.base import Rule, atomic_list, rules
from pydantic import Field, StringConstraints

OWNED_FLAGS: dict[str, str] = {
    "model": "model.source.uri",
    "revision": "model.source.uri (hf://ORG/NAME@REVISION)",
    "served-model-name": "model.name",
    "tensor-parallel-size": "pools[].parallelism.tensor",
    "pipeline-parallel-size": "pools[].parallelism.pipeline",
    "data-parallel-size": "pools[].parallelism.data",
    "shutdown-timeout": "shutdownTimeout of the EngineClass",
    "host": "",
    "port": "port of the EngineClass",
    "uds": "",
    "root-path": "",
    "ssl-keyfile": "",
    "ssl-certfile": "",
    "api-key": "",
    "kv-events-config": "",
}
"""Flag (without dashes) and the field that says the same; empty where a worker's address and protocol are ours."""

_SHORT = ("tp", "pp", "dp")


def owned_flag_pattern() -> str:
    """Regular expression (RE2) of an argument that spells an owned flag; `_` counts as `-`, as vLLM reads it.

    A dot stands for either, because the API server prices a rule by the length of its expression.
    """
    long = "|".join(flag.replace("-", ".") for flag in OWNED_FLAGS)
    return f"^(--({long})|-({'|'.join(_SHORT)}))([=.].*)?$"


def _sentence() -> str:
    with_field = "; ".join(f"--{flag} is {field}" for flag, field in OWNED_FLAGS.items() if field)
    without = ", ".join(f"--{flag}" for flag, field in OWNED_FLAGS.items() if not field)
    return (
        f"args may not hold a flag that Penstock writes; remove it and use the field that says it: {with_field};"
        f" {without} cannot be changed, because the router and the probes rely on them"
    )


OWNED_ARGS_RULE = Rule(f"self.all(arg, !arg.matches('{owned_flag_pattern()}'))", _sentence())

EngineArg = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
EngineArgs = Annotated[
    list[EngineArg], Field(json_schema_extra={**atomic_list(max_items=64), **rules(OWNED_ARGS_RULE)})
]
"""Arguments of the engine, without those we write."""
VariantArgs = Annotated[
    list[EngineArg], Field(json_schema_extra={**atomic_list(max_items=32), **rules(OWNED_ARGS_RULE)})
]
"""The same for a variant; fewer, because variants multiply what the rule may cost."""
