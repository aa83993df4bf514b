"""Engines as pod templates: the adapter registry and the types the operator fills in.

An adapter is a function from a `WorkerSpec` to a pod template (a plain dict, as it would stand under a
ReplicaSet's `spec.template`). The name of an adapter is the value of `EngineClass.spec.adapter`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from penstock.workers.decisions.adapters.compatibility import kv_compatibility_hash
from penstock.workers.decisions.adapters.goodbye import DRAIN_FILE, drain_script
from penstock.workers.decisions.adapters.simulated import render_simulated
from penstock.workers.decisions.adapters.spec import AdapterError, WorkerSpec
from penstock.workers.decisions.adapters.vllm import render_vllm

Render = Callable[[WorkerSpec], dict[str, Any]]

ADAPTERS: Mapping[str, Render] = MappingProxyType({"vLLM": render_vllm, "Simulated": render_simulated})


def render(adapter: str, spec: WorkerSpec) -> dict[str, Any]:
    """The pod template of `spec` as the named adapter makes it.

    Raises `AdapterError` with a sentence for an unknown adapter and for anything in `spec` the adapter refuses.
    """
    try:
        chosen = ADAPTERS[adapter]
    except KeyError:
        known = ", ".join(sorted(ADAPTERS))
        raise AdapterError(f"engine adapter {adapter!r} is not known; use one of {known}") from None
    return chosen(spec)


__all__ = [
    "ADAPTERS",
    "DRAIN_FILE",
    "AdapterError",
    "Render",
    "WorkerSpec",
    "drain_script",
    "kv_compatibility_hash",
    "render",
    "render_simulated",
    "render_vllm",
]
