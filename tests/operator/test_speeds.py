"""What a WorkerPool says of its workers' speed is what the operator resolved, and rolls nothing when it changes."""

from penstock.api import WorkerPoolSpec
from penstock.core.models import Parallelism, resolve_profile

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def spec(world):
    (pool,) = world.of("WorkerPool")
    return WorkerPoolSpec.read(pool["spec"])


def measured(world, base="30"):
    world.create(
        "PerformanceProfile",
        "measured",
        {
            "spec": {
                "modelName": LLAMA,
                "acceleratorClassName": "a100-80g",
                "source": "Benchmark",
                "prefill": {"base": base, "perToken": "0.25"},
                "decode": {"base": "15", "perSequence": "0.5"},
                "provenance": "measured here",
            }
        },
    )


def test_the_catalogue_speaks_where_nobody_measured(world):
    world.deploy()
    world.reconcile()
    speed = spec(world).speed
    profile = resolve_profile(LLAMA, "a100-80g", Parallelism())
    assert speed.source == str(profile.source)
    assert max(abs(a - max(0, b)) for a, b in zip(speed.prefill.values, profile.prefill, strict=True)) < 1e-11
    assert max(abs(a - max(0, b)) for a, b in zip(speed.decode.values, profile.decode, strict=True)) < 1e-11
    assert speed.price_per_hour == "2.5" and float(speed.transfer_per_token) > 0


def test_a_measured_profile_comes_first_and_the_engines_clock_counts(world):
    world.engine("simulated", simulation={"timeScale": "0.2"})
    measured(world)
    world.deploy()
    world.reconcile()
    speed = spec(world).speed
    assert (speed.source, speed.prefill.values) == ("Benchmark", (6.0, 0.05, 0.0))
    assert speed.decode.values == (3.0, 0.1, 0.0)


def test_a_new_figure_of_a_real_engine_changes_the_pool_and_rolls_nothing(world):
    world.engine("simulated", adapter="vLLM", image="vllm/vllm-openai:v0.11.0")
    measured(world)
    world.deploy()
    world.settle()
    before = spec(world)
    world.objects["PerformanceProfile", "measured"]["spec"]["prefill"]["base"] = "31"
    world.settle()
    after = spec(world)
    assert (before.speed.prefill.base, after.speed.prefill.base) == ("30", "31")
    assert after.revision == before.revision and len(world.of("ReplicaSet")) == 1


def test_two_workers_accelerators_cost_twice(world):
    world.deploy(
        pools=[
            {
                "name": "serve",
                "acceleratorClasses": ["a100-80g"],
                "parallelism": {"tensor": 2},
                "replicas": {"min": 1},
            }
        ]
    )
    world.reconcile()
    assert spec(world).speed.price_per_hour == "5"
