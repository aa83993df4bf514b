"""What one worker of a WorkerPool can do and costs, from the objects that say so.

The operator's own resolution of engine, profile and memory is used, so that the autoscaler sizes with the figures that
status shows. A simulated engine runs its profile times its time scale, and so do we.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from penstock.api import AcceleratorClass, ApiObject, EngineClass, ModelDeploymentSpec, PerformanceProfile
from penstock.autoscaler.decisions.capacity import WorkerModel
from penstock.autoscaler.shell.objects import Object, Pool
from penstock.core.models import Parallelism
from penstock.operator.decisions.engines import Engine, engine_on, resolve_engine
from penstock.operator.decisions.memory import architecture_of, demand_of, fit_of
from penstock.operator.decisions.profiles import resolve
from penstock.operator.decisions.refusal import Refusal
from penstock.workers.decisions.adapters.arguments import flags_of
from pydantic import ValidationError

_Kind = TypeVar("_Kind", bound=ApiObject)

_MAX_SEQUENCES = 256
"""vLLM's own `--max-num-seqs`."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The cluster-scoped objects that can be read; one that cannot is as good as missing."""

    accelerators: Mapping[str, AcceleratorClass] = field(default_factory=dict)
    engines: Mapping[str, EngineClass] = field(default_factory=dict)
    profiles: tuple[PerformanceProfile, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One worker of a pool. Money per hour, seconds."""

    worker: WorkerModel | None
    cost_per_hour: float | None
    startup_s: float
    provision_s: float


def read_classes(accelerators: Iterable[Object], engines: Iterable[Object], profiles: Iterable[Object]) -> Classes:
    """The objects as stored, read."""
    known = [_read(AcceleratorClass, item) for item in accelerators]
    run = [_read(EngineClass, item) for item in engines]
    measured = [_read(PerformanceProfile, item) for item in profiles]
    return Classes(
        {each.metadata.name: each for each in known if each is not None},
        {each.metadata.name: each for each in run if each is not None},
        tuple(each for each in measured if each is not None),
    )


def _read(kind: type[_Kind], item: Object) -> _Kind | None:
    try:
        return kind.read(item)
    except ValidationError:
        return None


def pool_facts(spec: ModelDeploymentSpec, pool: Pool, classes: Classes) -> PoolFacts:
    """What one worker of `pool` can do, as far as objects say."""
    accelerator = classes.accelerators.get(pool.key.accelerator)
    if accelerator is None:
        return PoolFacts(None, None, 0.0, 0.0)
    degrees = Parallelism(**(pool.spec.get("parallelism") or {}))
    price = accelerator.spec.price
    cost = None if price is None else float(price) * int(pool.spec.get("acceleratorsPerWorker", 1))
    try:
        engine = resolve_engine(spec, classes.engines)
        worker = _worker(spec, engine, engine_on(spec, engine, pool.key.accelerator), accelerator, degrees, classes)
    except Refusal:
        return PoolFacts(None, cost, 0.0, accelerator.spec.provision_seconds)
    simulation = engine.spec.simulation
    startup = simulation.startup_seconds if simulation else 0.0
    return PoolFacts(worker, cost, startup, accelerator.spec.provision_seconds)


def _worker(
    spec: ModelDeploymentSpec,
    engine_class: EngineClass,
    engine: Engine,
    accelerator: AcceleratorClass,
    degrees: Parallelism,
    classes: Classes,
) -> WorkerModel | None:
    model = architecture_of(spec)
    profile = resolve(spec.model.name, model, accelerator, degrees, engine_class.metadata.name, classes.profiles)
    if profile.latency is None:
        return None
    simulation = engine_class.spec.simulation
    scale = simulation.time_scale_factor if simulation else 1.0
    capacity = profile.kv_capacity_tokens
    if capacity is None and model is not None:
        capacity = fit_of(model, accelerator, degrees, demand_of(spec, engine.args)).kv_capacity_tokens or None
    return WorkerModel(profile.latency.scaled(scale, scale), capacity, _sequences(engine.args))


def _sequences(arguments: tuple[str, ...]) -> int:
    text = flags_of(arguments).get("--max-num-seqs") or ""
    return int(text) if text.isdigit() and int(text) > 0 else _MAX_SEQUENCES
