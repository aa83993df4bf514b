"""Which EngineClass a deployment runs on, and what that class means on one accelerator class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.api import EngineClass, ModelDeploymentSpec, Reason
from penstock.api.pods import EnvVar
from penstock.operator.decisions.refusal import Refusal, names


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine on one accelerator class, with the deployment's own wishes laid over it."""

    image: str
    args: tuple[str, ...]
    """The class's, the variant's and the deployment's, in that order: a later flag wins."""
    env: tuple[Mapping[str, Any], ...]
    pod_templates: tuple[Mapping[str, Any], ...]
    """To be merged over the adapter's pod, in this order."""


def resolve_engine(spec: ModelDeploymentSpec, engines: Mapping[str, EngineClass]) -> EngineClass:
    """The class the deployment names, or the one marked default. Raises `Refusal`."""
    wanted = spec.engine.class_name
    if wanted is None:
        return _default(engines)
    if wanted in engines:
        return engines[wanted]
    near = difflib.get_close_matches(wanted, engines, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise Refusal(
        Reason.UNKNOWN_ENGINE_CLASS,
        f"engine.className {wanted!r} names no EngineClass; {hint}there are: {names(engines)}",
    )


def engine_on(spec: ModelDeploymentSpec, engine: EngineClass, accelerator: str) -> Engine:
    """The engine as it runs on `accelerator`: class, then its variant for that class, then the deployment."""
    base, variant, own = engine.spec, engine.spec.variant_for(accelerator), spec.engine
    templates = (base.pod_template, variant.pod_template if variant else None, spec.pod_template)
    return Engine(
        image=own.image or (variant.image if variant and variant.image else base.image),
        args=(*base.args, *(variant.args if variant else ()), *own.args),
        env=_environment(base.env, variant.env if variant else (), own.env),
        pod_templates=tuple(template for template in templates if template),
    )


def _default(engines: Mapping[str, EngineClass]) -> EngineClass:
    defaults = [engine for _, engine in sorted(engines.items()) if engine.spec.default]
    if len(defaults) == 1:
        return defaults[0]
    if not defaults:
        raise Refusal(
            Reason.NO_DEFAULT_ENGINE_CLASS,
            "engine.className is not given and no EngineClass has default: true; name a class or mark one; "
            f"there are: {names(engines)}",
        )
    marked = names(engine.metadata.name for engine in defaults)
    raise Refusal(
        Reason.AMBIGUOUS_ENGINE_CLASS,
        f"engine.className is not given and several EngineClasses are marked default ({marked}); "
        "name a class, or leave one mark",
    )


def _environment(*layers: Sequence[EnvVar]) -> tuple[Mapping[str, Any], ...]:
    by_name = {entry.name: entry.to_dict() for layer in layers for entry in layer}
    return tuple(by_name.values())
