"""The engine arguments that Penstock writes itself, and the rule that refuses them elsewhere.

A second `--port` would silently win or lose by its place in the list; a second `--tensor-parallel-size` would
make the pool's accelerators a lie. So the API refuses them and says which field says the same.
"""

from typing import Annotated

from penstock.api.base import Rule, atomic_list, rules
from pydantic import Field, StringConstraints

OWNED_FLAGS: dict[str, str] = {
    "host": "nothing: a worker listens on its pod address",
    "port": "EngineClass.spec.port",
    "uds": "nothing: a worker listens on its pod address",
    "model": "model.source",
    "served-model-name": "model.name",
    "tensor-parallel-size": "pools[].parallelism.tensor",
    "pipeline-parallel-size": "pools[].parallelism.pipeline",
    "data-parallel-size": "pools[].parallelism.data",
    "enable-expert-parallel": "pools[].parallelism.expert",
    "kv-transfer-config": "pools[].role",
    "kv-events-config": "nothing: the router needs its events in its own form",
    "shutdown-timeout": "EngineClass.spec.shutdownTimeout",
}
"""Flag (without dashes) and the field that says the same."""

_SHORT = ("tp", "pp", "dp", "ep")


def owned_flag_pattern() -> str:
    """Regular expression (RE2) of an argument that spells an owned flag; `_` counts as `-`, as vLLM reads it.

    A dot stands for either, because the API server prices a rule by the length of its expression.
    """
    long = "|".join(flag.replace("-", ".") for flag in OWNED_FLAGS)
    return f"^(--({long})|-({'|'.join(_SHORT)}))(=.*)?$"


OWNED_ARGS_RULE = Rule(
    f"self.all(arg, !arg.matches('{owned_flag_pattern()}'))",
    "args may not set "
    + ", ".join(f"--{flag}" for flag in OWNED_FLAGS)
    + ": Penstock writes them; remove the argument and use the field that says it (model.name, model.source,"
    " pools[].parallelism, pools[].role, port and shutdownTimeout of the EngineClass)",
)

EngineArg = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
EngineArgs = Annotated[
    list[EngineArg], Field(json_schema_extra={**atomic_list(max_items=64), **rules(OWNED_ARGS_RULE)})
]
"""Arguments of the engine, without those we write."""
VariantArgs = Annotated[
    list[EngineArg], Field(json_schema_extra={**atomic_list(max_items=32), **rules(OWNED_ARGS_RULE)})
]
"""The same for a variant; fewer, because variants multiply what the rule may cost."""
