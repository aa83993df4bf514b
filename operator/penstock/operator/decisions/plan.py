"""From a ModelDeployment to its WorkerPools: names resolved, fit checked, templates made, numbers shared out.

Everything that can make no sense is refused here, with a reason and a remedy, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from penstock.api import (
    AcceleratorClass,
    Disaggregation,
    EngineClass,
    ModelDeploymentSpec,
    PoolSpec,
    Reason,
    Role,
    RolloutSpec,
)
from penstock.core.models import ModelArchitecture, Parallelism
from penstock.operator.decisions.bounds import Share, shares
from penstock.operator.decisions.choice import choose, largest_node
from penstock.operator.decisions.engines import engine_on, resolve_engine
from penstock.operator.decisions.memory import architecture_of, demand_of, fit_of, unknown_model
from penstock.operator.decisions.naming import ANNOTATION_INPUTS, DEFAULT_POOL, worker_pool_name
from penstock.operator.decisions.observed import Observed, Pool
from penstock.operator.decisions.profiles import Profile, resolve
from penstock.operator.decisions.refusal import Refusal, names
from penstock.operator.decisions.speeds import Speed, speed_of
from penstock.operator.decisions.templates import Inputs, Template, inputs_hash, make_template
from penstock.router.decisions.policies import POLICIES

_ONE_POOL = {DEFAULT_POOL: Role.PREFILL_DECODE}
_SPLIT_POOLS = {"prefill": Role.PREFILL, "decode": Role.DECODE}
"""Pools made where the spec lists none, by name; the second where it says disaggregation Always."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One WorkerPool as it is to be."""

    name: str
    pool: str
    role: Role
    accelerator: str
    template: Template
    share: Share
    rollout: RolloutSpec
    profile: Profile
    price: Decimal | None
    """Money per accelerator and hour."""
    accelerators_per_worker: int
    """Devices a worker holds: none on a class of type CPU."""
    priced_units: int
    """What `price` counts, in one worker: its accelerators, or the sockets of a CPU class."""
    why: str
    speed: Speed

    @property
    def cost_per_worker(self) -> Decimal | None:
        """Money per hour of one worker."""
        return None if self.price is None else self.price * self.priced_units


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything resolved. `notes` say what was listed but not used, and why."""

    engine_class: EngineClass
    pools: tuple[PoolPlan, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Shape:
    """A pool of the spec with everything but its accelerator class settled."""

    name: str
    role: Role
    classes: Sequence[str]
    parallelism: Parallelism
    least: int
    most: int
    why: str


def make_plan(seen: Observed) -> Plan:
    """The plan of an observed deployment. Raises `Refusal` where its spec makes no sense in this cluster."""
    spec = _readable(seen)
    _check_name(seen)
    _check_policy(seen, spec)
    engine = resolve_engine(spec, seen.cluster.engines)
    model = architecture_of(spec)
    pools: list[PoolPlan] = []
    notes: list[str] = []
    for shape in _shapes(seen, spec, engine, model):
        made, left_out = _pool_plans(seen, spec, engine, model, shape)
        pools += made
        notes += left_out
    return Plan(engine, tuple(pools), tuple(notes))


def _readable(seen: Observed) -> ModelDeploymentSpec:
    if seen.deployment.spec is None:
        raise Refusal(
            Reason.INVALID_SPEC,
            f"this release cannot read the object: {seen.deployment.unreadable}; apply it again in the present form",
        )
    return seen.deployment.spec


def _check_name(seen: Observed) -> None:
    older = [r for r in seen.rivals if not r.meta.deleting and r.seniority < seen.deployment.seniority]
    if older:
        first = min(older, key=lambda rival: rival.seniority)
        raise Refusal(
            Reason.NAME_TAKEN,
            f"model.name {seen.deployment.served_name!r} is already served by ModelDeployment "
            f"{'/'.join(first.key)}, which is older; choose another name, or delete that one",
        )


def _check_policy(seen: Observed, spec: ModelDeploymentSpec) -> None:
    there = (*POLICIES, *sorted(seen.more_policies - POLICIES.keys()))
    if spec.routing.policy not in there:
        raise Refusal(
            Reason.UNKNOWN_ROUTING_POLICY,
            f"routing.policy {spec.routing.policy!r} names no policy of the router; there are: {names(there)}",
        )


def _shapes(
    seen: Observed, spec: ModelDeploymentSpec, engine: EngineClass, model: ModelArchitecture | None
) -> list[_Shape]:
    if spec.pools:
        return [_listed(pool) for pool in spec.pools]
    if model is None:
        raise unknown_model(spec)
    demand = demand_of(spec, (*engine.spec.args, *spec.engine.args))
    chosen = choose(model, demand, seen.cluster.accelerators, seen.cluster.nodes, _running(seen.pools))
    roles = _SPLIT_POOLS if spec.disaggregation == Disaggregation.ALWAYS else _ONE_POOL
    return [_Shape(name, role, (chosen.name,), chosen.parallelism, 1, 1, chosen.why) for name, role in roles.items()]


def _listed(pool: PoolSpec) -> _Shape:
    degrees = Parallelism(**pool.parallelism.model_dump())
    return _Shape(pool.name, pool.role, pool.accelerator_classes, degrees, pool.replicas.min, pool.replicas.upper, "")


def _running(pools: Sequence[Pool]) -> tuple[str, Parallelism] | None:
    """Where a pool we made ourselves runs already, and with which parallelism."""
    for pool in pools:
        if pool.pool_name in (_ONE_POOL | _SPLIT_POOLS) and not pool.meta.deleting:
            return pool.accelerator, Parallelism(**(pool.spec.get("parallelism") or {}))
    return None


def _pool_plans(
    seen: Observed,
    spec: ModelDeploymentSpec,
    engine: EngineClass,
    model: ModelArchitecture | None,
    shape: _Shape,
) -> tuple[list[PoolPlan], list[str]]:
    """The WorkerPools of one pool: one for each listed class that can hold the model."""
    usable: list[tuple[AcceleratorClass, Inputs, str]] = []
    misfits: list[Refusal] = []
    for name in shape.classes:
        accelerator = _accelerator(seen.cluster.accelerators, name, shape.name)
        try:
            usable.append((accelerator, *_fitting(seen, spec, engine, model, shape, accelerator)))
        except Refusal as refusal:
            misfits.append(refusal)
    if not usable:
        raise misfits[0]
    stored = {pool.meta.name: pool for pool in seen.pools if not pool.meta.deleting}
    rows = [worker_pool_name(seen.deployment.meta.name, shape.name, a.metadata.name) for a, _, _ in usable]
    numbers = shares(shape.least, shape.most, [stored[row].replicas if row in stored else None for row in rows])
    plans = [
        PoolPlan(
            name=row,
            pool=shape.name,
            role=shape.role,
            accelerator=accelerator.metadata.name,
            template=_template(inputs, stored.get(row)),
            share=share,
            rollout=spec.rollout,
            profile=inputs.profile,
            price=accelerator.spec.price,
            accelerators_per_worker=shape.parallelism.accelerators if accelerator.spec.type == "GPU" else 0,
            priced_units=shape.parallelism.accelerators,
            why=shape.why or why,
            speed=speed_of(inputs),
        )
        for row, share, (accelerator, inputs, why) in zip(rows, numbers, usable, strict=True)
    ]
    return plans, [misfit.message for misfit in misfits]


def _accelerator(known: Mapping[str, AcceleratorClass], name: str, pool: str) -> AcceleratorClass:
    if name not in known:
        raise Refusal(
            Reason.UNKNOWN_ACCELERATOR_CLASS,
            f"pools[{pool}].acceleratorClasses: {name!r} names no AcceleratorClass; there are: {names(known)}",
        )
    return known[name]


def _fitting(
    seen: Observed,
    spec: ModelDeploymentSpec,
    engine_class: EngineClass,
    model: ModelArchitecture | None,
    shape: _Shape,
    accelerator: AcceleratorClass,
) -> tuple[Inputs, str]:
    """What a worker on this class is made from, and why it fits. Raises `Refusal` where it does not."""
    name = accelerator.metadata.name
    if accelerator.spec.device_class_name is not None:
        raise Refusal(
            Reason.DEVICE_CLASS_UNAVAILABLE,
            f"accelerator class {name} is reached by deviceClassName (dynamic resource allocation), which this release "
            "does not use yet; give the class a resourceName",
        )
    _check_node_size(seen, shape, accelerator)
    engine = engine_on(spec, engine_class, name)
    profile = resolve(
        spec.model.name,
        model,
        accelerator,
        shape.parallelism,
        engine_class.metadata.name,
        seen.cluster.profiles,
    )
    capacity, why = _capacity(spec, model, accelerator, shape.parallelism, engine.args, profile)
    inputs = Inputs(
        deployment=seen.deployment.meta.name,
        spec=spec,
        engine_class=engine_class,
        engine=engine,
        accelerator=accelerator,
        role=shape.role,
        parallelism=shape.parallelism,
        profile=profile,
        kv_capacity_tokens=capacity,
        sidecar_image=seen.sidecar_image,
    )
    return inputs, why


def _check_node_size(seen: Observed, shape: _Shape, accelerator: AcceleratorClass) -> None:
    largest = largest_node(accelerator, seen.cluster.nodes)
    needed, name = shape.parallelism.accelerators, accelerator.metadata.name
    if largest is not None and needed > largest and accelerator.spec.capacity.source == "Nodes":
        raise Refusal(
            Reason.PARALLELISM_UNAVAILABLE,
            f"pool {shape.name}: a worker needs {needed} x {name}, but the largest node has {largest}, and workers do "
            "not span nodes yet; lower parallelism, or use a class with larger nodes",
        )


def _capacity(
    spec: ModelDeploymentSpec,
    model: ModelArchitecture | None,
    accelerator: AcceleratorClass,
    parallelism: Parallelism,
    arguments: tuple[str, ...],
    profile: Profile,
) -> tuple[int | None, str]:
    """KV capacity in tokens and why the model fits; a measured profile knows better than our arithmetic."""
    if profile.kv_capacity_tokens is not None:
        return profile.kv_capacity_tokens, f"profile {profile.name} measured {profile.kv_capacity_tokens:,} KV tokens"
    if model is None:
        raise unknown_model(spec)
    fit = fit_of(model, accelerator, parallelism, demand_of(spec, arguments))
    if not fit.fits:
        raise Refusal(Reason.MODEL_DOES_NOT_FIT, fit.reason)
    return fit.kv_capacity_tokens, fit.reason


def _template(inputs: Inputs, stored: Pool | None) -> Template:
    """The stored template while its inputs are unchanged, else a fresh one."""
    if stored is not None and stored.spec.get("template"):
        made_from = stored.meta.annotations.get(ANNOTATION_INPUTS)
        if made_from is not None and made_from == inputs_hash(inputs):
            kv_hash = str(stored.spec.get("kvHash", ""))
            return Template(made_from, stored.spec["template"], stored.revision, kv_hash, inputs.parallelism)
    return make_template(inputs)
