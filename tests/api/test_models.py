"""The models: exact where we write, tolerant where we read, and the same defaults everywhere."""

from typing import Any

import pytest
from penstock.api import (
    KINDS,
    AcceleratorClassSpec,
    AutoscalingMode,
    Budget,
    EngineClass,
    EngineClassSpec,
    EngineVariant,
    ModelDeployment,
    ParallelismSpec,
    PerformanceProfile,
    ReplicaRange,
    Role,
    RolloutSpec,
    WorkerPool,
)
from penstock.api.base import ApiModel
from pydantic import ValidationError

SMALL: dict[str, Any] = {
    "metadata": {"name": "a", "namespace": "chat", "generation": 3, "managedFields": [{"manager": "kubectl"}]},
    "spec": {
        "model": {"name": "m"},
        "objectives": {"ttft": "500ms", "tpot": "40ms"},
        "pools": [{"name": "serve", "acceleratorClasses": ["h100-80g"]}],
    },
}


def test_the_smallest_object_has_the_documented_defaults() -> None:
    spec = ModelDeployment.read(SMALL).spec
    assert spec.objectives.attainment_share == 0.95
    assert spec.objectives.window_seconds == 300
    assert (spec.objectives.ttft_seconds, spec.objectives.tpot_seconds) == (0.5, 0.04)
    assert spec.autoscaling.mode is AutoscalingMode.ADVISE
    assert spec.pools[0].role is Role.PREFILL_DECODE
    assert (spec.pools[0].replicas.min, spec.pools[0].replicas.upper) == (1, 1)
    assert spec.routing.policy == "KVAware"


def test_reading_ignores_what_another_release_wrote() -> None:
    newer = {**SMALL, "spec": {**SMALL["spec"], "galaxy": 42, "routing": {"policy": "Random", "tuning": {}}}}
    read = ModelDeployment.read(newer)
    assert read.spec.routing.policy == "Random"
    assert read.metadata.generation == 3


def test_writing_refuses_a_field_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="tensors"):
        ParallelismSpec(tensors=4)  # type: ignore[call-arg]


def test_reading_a_wrong_value_names_the_field() -> None:
    wrong = {**SMALL, "spec": {**SMALL["spec"], "objectives": {"ttft": "fast", "tpot": "40ms"}}}
    with pytest.raises(ValueError, match=r"spec\.objectives\.ttft"):
        ModelDeployment.read(wrong)


def test_objects_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelDeployment.read(SMALL).spec.model.name = "other"  # type: ignore[misc]


def test_what_is_written_can_be_read_back() -> None:
    read = ModelDeployment.read(SMALL)
    assert ModelDeployment.read(read.to_dict()) == read
    assert read.to_dict()["spec"]["pools"][0]["acceleratorClasses"] == ["h100-80g"]


@pytest.mark.parametrize(("low", "high", "upper"), [(0, None, 1), (2, None, 2), (0, 8, 8)])
def test_a_missing_maximum_fixes_the_size(low: int, high: int | None, upper: int) -> None:
    assert ReplicaRange(min=low, max=high).upper == upper


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "expected"),
    [(1, 0, 4, (1, 0)), (0, 1, 4, (0, 1)), ("25%", "25%", 10, (3, 2)), ("0%", "10%", 4, (0, 1)), (0, "50%", 0, (0, 1))],
)
def test_a_roll_can_always_move(
    surge: int | str, unavailable: int | str, replicas: int, expected: tuple[int, int]
) -> None:
    rollout = RolloutSpec(max_surge=surge, max_unavailable=unavailable)
    assert (rollout.surge(replicas), rollout.unavailable(replicas)) == expected


def test_accelerators_of_a_worker() -> None:
    assert ParallelismSpec(tensor=4, pipeline=2, data=2, expert=8).accelerators == 16


def test_an_accelerator_class_gives_numbers() -> None:
    spec = AcceleratorClassSpec(memory="79.1Gi", memory_bandwidth="3350G", price_per_hour="7.516")
    assert spec.memory_bytes == round(79.1 * 2**30)
    assert spec.memory_bandwidth_bytes == 3.35e12
    assert str(spec.price) == "7.516"
    assert spec.provision_seconds == 0


def test_the_variant_of_an_accelerator_class() -> None:
    amd = EngineVariant(name="amd", accelerator_classes=["mi300x-192g"], image="rocm:1")
    spec = EngineClassSpec(adapter="vLLM", image="cuda:1", variants=[amd])
    assert spec.variant_for("mi300x-192g") is amd
    assert spec.variant_for("h100-80g") is None


def test_budget_as_numbers() -> None:
    assert Budget(cost_per_hour="12.5").cost == 12.5
    assert Budget(max_accelerators=4).cost is None


def test_profiles_give_coefficients_in_milliseconds() -> None:
    spec = {
        "modelName": "m",
        "acceleratorClassName": "h100-80g",
        "source": "Online",
        "prefill": {"base": "5.25", "perToken": "0.031"},
        "decode": {"base": "6.5", "perSequence": "0.02", "perContextToken": "0.0001"},
    }
    profile = PerformanceProfile.read({"metadata": {"name": "p"}, "spec": spec})
    assert profile.spec.prefill.values == (5.25, 0.031, 0.0)
    assert profile.spec.decode.values == (6.5, 0.02, 0.0001)


def test_every_field_of_every_kind_is_described() -> None:
    """A field without a docstring would be blank in `kubectl explain`."""
    seen: set[type[ApiModel]] = set()

    def blank(model: type[ApiModel]) -> list[str]:
        if model in seen:
            return []
        seen.add(model)
        schema = model.model_json_schema()
        found = [f"{model.__name__}.{name}" for name, info in model.model_fields.items() if not info.description]
        for name, definition in schema.get("$defs", {}).items():
            found += [
                f"{name}.{field}"
                for field, info in definition.get("properties", {}).items()
                if not info.get("description") and "$ref" not in info
            ]
        return found

    described_by_kubernetes = {"ObjectMeta", "OwnerReference"}
    for kind in KINDS:
        for part in {"spec", "status"} & kind.model_fields.keys():
            model = kind.model_fields[part].annotation
            assert isinstance(model, type)
            assert issubclass(model, ApiModel)
            missing = [each for each in blank(model) if each.split(".")[0] not in described_by_kubernetes]
            assert not missing, missing


def test_short_names_are_the_documented_ones() -> None:
    assert [kind.CRD.short_names[0] for kind in KINDS] == ["mdep", "wpool", "accel", "engine", "prof"]
    assert [kind.CRD.namespaced for kind in KINDS] == [True, True, False, False, False]
    assert WorkerPool.CRD.scale is not None
    assert EngineClass.CRD.scale is None
