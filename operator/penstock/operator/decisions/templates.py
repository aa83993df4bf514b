"""The pod template of a pool: rendered by the engine's adapter, then merged with the platform's and the user's.

A template is rendered only when its inputs changed. The WorkerPool keeps the hash of what its template was made from:
an operator that renders differently after an upgrade finds the hash unchanged and leaves every worker alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.api import AcceleratorClass, EngineClass, ModelDeploymentSpec, Reason, Role
from penstock.core.models import Parallelism
from penstock.operator.decisions.engines import Engine
from penstock.operator.decisions.merge import merged
from penstock.operator.decisions.naming import digest, drain_config_map_name, prefill_service_name, revision_of
from penstock.operator.decisions.profiles import Profile
from penstock.operator.decisions.refusal import Refusal
from penstock.workers.decisions.adapters import AdapterError, WorkerSpec, kv_compatibility_hash, render


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything one pool's template is made from."""

    deployment: str
    spec: ModelDeploymentSpec
    engine_class: EngineClass
    engine: Engine
    accelerator: AcceleratorClass
    role: Role
    parallelism: Parallelism
    profile: Profile
    kv_capacity_tokens: int | None
    sidecar_image: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """A pod template with the names it goes by."""

    inputs_hash: str
    body: Mapping[str, Any]
    revision: str
    kv_hash: str
    parallelism: Parallelism


def inputs_hash(inputs: Inputs) -> str:
    """Hash of what the user and the platform gave. Defaults are left out, so that a new field of ours changes nothing.

    The sidecar's image is left out, being of our release: a `helm upgrade` rolls no worker.
    Figures of the catalogue and the roofline are left out as well: they are ours, and mending one rolls no worker.
    """
    spec, engine = inputs.spec, inputs.engine_class.spec
    variant = engine.variant_for(inputs.accelerator.metadata.name)
    given = {
        "model": _given(spec.model),
        "engine": _given(spec.engine, exclude={"class_name"}),
        "podTemplate": spec.pod_template,
        "role": str(inputs.role),
        "parallelism": inputs.parallelism.to_dict(),
        "class": _given(engine, exclude={"default", "variants"}),
        "variant": _given(variant, exclude={"accelerator_classes", "name"}) if variant else None,
        "accelerator": _given(
            inputs.accelerator.spec, include={"type", "node_selector", "resource_name", "device_class_name"}
        ),
    }
    if engine.adapter == "Simulated" and inputs.profile.stored is not None:
        given["profile"] = _given(inputs.profile.stored.spec, exclude={"provenance"})
    return digest(given)[:32]


def make_template(inputs: Inputs) -> Template:
    """Render and merge. Raises `Refusal` where the adapter or the merged pod says no."""
    worker = _worker(inputs)
    try:
        kv_hash = kv_compatibility_hash(worker)
        worker = replace(worker, prefill_service=prefill_service_name(inputs.deployment, kv_hash))
        template: Any = render(str(inputs.engine_class.spec.adapter), worker)
    except AdapterError as error:
        raise Refusal(Reason.INVALID_ENGINE_ARGS, str(error)) from error
    for over in inputs.engine.pod_templates:
        template = merged(template, over)
    return Template(inputs_hash(inputs), template, revision_of(template), kv_hash, inputs.parallelism)


def _worker(inputs: Inputs) -> WorkerSpec:
    spec, engine, source = inputs.spec, inputs.engine_class.spec, inputs.spec.model.source
    simulation = engine.simulation
    try:
        return WorkerSpec(
            model_name=spec.model.name,
            role=str(inputs.role),
            image=inputs.engine.image,
            parallelism=inputs.parallelism,
            drain_config_map=drain_config_map_name(inputs.deployment),
            model_uri=source.uri if source else None,
            secret_name=source.secret_ref.name if source and source.secret_ref else None,
            max_context_tokens=spec.model.max_context_tokens,
            accelerator=inputs.accelerator.metadata.name,
            accelerator_resource=inputs.accelerator.spec.resource_name,
            node_selector=inputs.accelerator.spec.node_selector,
            image_pull_policy=engine.image_pull_policy,
            image_pull_secrets=tuple(reference.name for reference in engine.image_pull_secrets),
            command=tuple(engine.command),
            args=inputs.engine.args,
            env=inputs.engine.env,
            port=engine.port,
            shutdown_timeout_s=engine.shutdown_seconds,
            grace_s=engine.grace_seconds,
            startup_timeout_s=engine.startup_timeout_seconds,
            profile=inputs.profile.latency,
            kv_capacity_tokens=inputs.kv_capacity_tokens,
            time_scale=simulation.time_scale_factor if simulation else 1.0,
            startup_s=simulation.startup_seconds if simulation else 0.0,
            sidecar_image=inputs.sidecar_image,
        )
    except AdapterError as error:
        raise Refusal(Reason.INVALID_ENGINE_ARGS, str(error)) from error


def _given(model: Any, **chosen: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True, **chosen)
