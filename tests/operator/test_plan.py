"""What a spec resolves to, and the sentence for each way it can make no sense."""

import json

import pytest
from penstock.operator.decisions.pairs import check_pairs
from penstock.operator.decisions.plan import make_plan
from penstock.operator.decisions.refusal import Refusal


def plan(world, name="llama"):
    return make_plan(world.observe(name))


def refusal(world):
    with pytest.raises(Refusal) as caught:
        plan(world)
    return str(caught.value.reason), caught.value.message


def pools(**spec):
    return [{"name": "serve", "acceleratorClasses": ["a100-80g"], "replicas": {"min": 1}} | spec]


def test_no_default_engine_class(world):
    world.engine("simulated", default=False)
    world.deploy()
    reason, message = refusal(world)
    assert reason == "NoDefaultEngineClass" and "there are: simulated" in message


def test_two_default_engine_classes(world):
    world.engine("another")
    world.deploy()
    reason, message = refusal(world)
    assert reason == "AmbiguousEngineClass" and "another, simulated" in message


def test_unknown_policy(world):
    world.deploy(routing={"policy": "Fastest"})
    reason, message = refusal(world)
    assert reason == "UnknownRoutingPolicy" and "LeastLoaded" in message


def test_unknown_accelerator_class(world):
    world.deploy(pools=pools(acceleratorClasses=["a100-80g", "b300"]))
    reason, message = refusal(world)
    assert reason == "UnknownAcceleratorClass" and "'b300'" in message and "a100-80g" in message


def test_device_class(world):
    world.accelerator("dra", resourceName=None, deviceClassName="gpu.nvidia.com")
    world.deploy(pools=pools(acceleratorClasses=["dra"]))
    assert refusal(world)[0] == "DeviceClassUnavailable"


def split(**decode):
    return [pools(name="p", role="Prefill")[0], pools(name="d", role="Decode", **decode)[0]]


@pytest.mark.parametrize("spec", [{"disaggregation": "Always", "pools": []}, {"pools": split()}])
def test_prefill_and_decode_pools_are_rendered_as_two_halves_of_one_transfer(world, spec):
    world.deploy(**spec)
    made = plan(world)
    check_pairs(made.pools)
    roles = {}
    for pool in made.pools:
        arguments = pool.template.body["spec"]["containers"][0]["args"]
        config = json.loads(arguments[arguments.index("--kv-transfer-config") + 1])
        roles[str(pool.role)] = config["kv_role"], config["kv_load_failure_policy"]
    assert roles == {"Prefill": ("kv_producer", "recompute"), "Decode": ("kv_consumer", "recompute")}
    assert len({pool.template.kv_hash for pool in made.pools}) == 1


def test_pools_that_cannot_exchange_kv_are_refused(world):
    world.accelerator("h100-80g")
    variants = [{"name": "h100", "acceleratorClasses": ["h100-80g"], "image": "penstock/simulated-engine:2"}]
    world.engine(variants=variants)
    world.deploy(pools=split(acceleratorClasses=["h100-80g"]))
    with pytest.raises(Refusal) as caught:
        check_pairs(plan(world).pools)
    assert str(caught.value.reason) == "NoCompatiblePair" and "image" in caught.value.message
    world.deploy(pools=split(acceleratorClasses=["a100-80g"]))
    check_pairs(plan(world).pools)


def test_unknown_model_names_near_ones_and_the_ways_out(world):
    world.deploy(model={"name": "meta-llama/Llama-3.1-8B-Instrct"})
    reason, message = refusal(world)
    assert reason == "UnknownModel"
    assert "meta-llama/Llama-3.1-8B-Instruct" in message and "model.architecture.name" in message


def test_a_policy_is_known_when_it_ships_or_the_routers_have_it_from_a_file(world):
    world.deploy(routing={"policy": "Mine"})
    reason, message = refusal(world)
    assert reason == "UnknownRoutingPolicy" and "KVAware" in message and "Yours" not in message
    world.more_policies = frozenset({"Yours", "KVAware"})
    assert refusal(world)[1].count("KVAware") == 1 and "Yours" in refusal(world)[1]
    world.more_policies = frozenset({"Mine"})
    assert plan(world).pools


def test_unknown_architecture(world):
    world.deploy(model={"name": "ours", "architecture": {"name": "llama-3.1-9b"}})
    assert refusal(world)[0] == "UnknownModel"


def test_a_profile_stands_in_for_the_catalogue(world):
    world.deploy(model={"name": "ours"})
    profile = {
        "modelName": "ours",
        "acceleratorClassName": "a100-80g",
        "source": "Benchmark",
        "provenance": "our own cluster",
        "prefill": {"base": "10", "perToken": "0.05"},
        "decode": {"base": "12", "perSequence": "0.1"},
    }
    world.create("PerformanceProfile", "ours-a100", {"spec": profile})
    assert refusal(world)[0] == "UnknownModel", "without kvCapacityTokens nobody knows whether it fits"
    world.create("PerformanceProfile", "ours-a100", {"spec": profile | {"kvCapacityTokens": 300000}})
    (pool,) = plan(world).pools
    assert pool.profile.name == "ours-a100" and pool.profile.source == "Benchmark"
    arguments = pool.template.body["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--num-gpu-blocks-override") + 1] == str(300000 // 16)


def test_a_model_that_fits_no_class_is_told_what_would_do(world):
    world.deploy(model={"name": "meta-llama/Llama-3.1-70B-Instruct", "maxContextTokens": 8192})
    reason, message = refusal(world)
    assert reason == "ModelDoesNotFit" and "use tensor: " in message
    world.deploy(
        model={"name": "meta-llama/Llama-3.1-70B-Instruct", "maxContextTokens": 8192},
        pools=pools(parallelism={"tensor": 4}),
    )
    assert plan(world).pools[0].accelerators_per_worker == 4


def test_engine_arguments_count_when_memory_is_computed(world):
    model = {"name": "Qwen/Qwen2.5-32B-Instruct", "maxContextTokens": 32768}
    world.accelerator("small", memory="40Gi")
    world.deploy(model=model, pools=pools(acceleratorClasses=["small"]))
    assert refusal(world)[0] == "ModelDoesNotFit"
    world.deploy(
        model=model,
        pools=pools(acceleratorClasses=["small"]),
        engine={"args": ["--quantization=fp8", "--max-model-len=4096", "--kv-cache-dtype", "fp8"]},
    )
    assert plan(world).pools


def test_a_class_that_does_not_fit_is_left_out_while_another_does(world):
    world.accelerator("l4-24g", memory="24Gi")
    world.deploy(pools=pools(acceleratorClasses=["l4-24g", "a100-80g"]))
    made = plan(world)
    assert [pool.accelerator for pool in made.pools] == ["a100-80g"]
    assert "l4-24g" in made.notes[0]


def test_a_worker_larger_than_any_node(world):
    world.deploy(pools=pools(parallelism={"tensor": 16}))
    reason, message = refusal(world)
    assert reason == "ParallelismUnavailable" and "the largest node has 8" in message


def test_engine_arguments_that_are_ours(world):
    world.deploy(engine={"args": ["--port=9000"]})
    reason, message = refusal(world)
    assert reason == "InvalidEngineArgs" and "--port" in message


def test_an_object_this_release_cannot_read(world):
    world.deploy(routing={"policy": ["a", "b"]})
    reason, message = refusal(world)
    assert reason == "InvalidSpec" and "spec.routing.policy" in message


def test_one_pool_on_the_cheapest_class_at_hand_where_none_is_listed(world):
    world.accelerator("h100-80g", pricePerHour="4.00", memoryBandwidth="3350G")
    world.accelerator("l40s-48g", pricePerHour="1.00", memory="48Gi", memoryBandwidth="864G")
    world.node("node-3", "h100-80g")
    world.deploy(pools=[], model={"name": "meta-llama/Llama-3.1-8B-Instruct", "maxContextTokens": 16384})
    (pool,) = plan(world).pools
    assert (pool.pool, pool.accelerator) == ("serve", "a100-80g"), "l40s is cheaper, but no node has it"
    assert "next: 1 x h100-80g at 4.00/h" in pool.why


def test_the_choice_takes_as_many_accelerators_as_the_model_needs(world):
    world.deploy(pools=[], model={"name": "meta-llama/Llama-3.1-70B-Instruct", "maxContextTokens": 8192})
    (pool,) = plan(world).pools
    assert pool.accelerators_per_worker in (2, 4)
    assert pool.template.body["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == str(
        pool.accelerators_per_worker
    )


def test_the_choice_sticks_when_prices_move(world):
    world.deploy(pools=[])
    world.settle()
    world.accelerator("h100-80g", pricePerHour="0.10")
    world.node("node-3", "h100-80g")
    (pool,) = plan(world).pools
    assert pool.accelerator == "a100-80g" and "already runs there" in pool.why


def test_a_processor_serves_only_where_nothing_else_does(world):
    cpu = {"type": "CPU", "resourceName": None, "nodeSelector": {}, "memory": "256Gi", "pricePerHour": "0.01"}
    world.accelerator("cpu", **cpu)
    world.deploy(pools=[])
    assert plan(world).pools[0].accelerator == "a100-80g"
    del world.objects["AcceleratorClass", "a100-80g"]
    (pool,) = plan(world).pools
    assert (pool.accelerator, pool.accelerators_per_worker) == ("cpu", 0)
    assert str(pool.cost_per_worker) == "0.01", "a worker on cores has its price, though it holds no device"


def test_no_accelerator_class_at_all(world):
    del world.objects["AcceleratorClass", "a100-80g"]
    world.deploy(pools=[])
    assert refusal(world)[0] == "NoAcceleratorClass"


def test_engine_class_variant_and_deployment_are_laid_over_each_other(world):
    world.engine(
        args=["--max-num-seqs=8"],
        env=[{"name": "A", "value": "class"}, {"name": "B", "value": "class"}],
        podTemplate={"spec": {"tolerations": [{"key": "gpu"}], "priorityClassName": "low"}},
        variants=[
            {
                "name": "ampere",
                "acceleratorClasses": ["a100-80g"],
                "image": "penstock/simulated-engine:ampere",
                "env": [{"name": "B", "value": "variant"}],
                "podTemplate": {"spec": {"priorityClassName": "middle"}},
            }
        ],
    )
    world.deploy(
        engine={"env": [{"name": "C", "value": "own"}]},
        podTemplate={
            "metadata": {"labels": {"team": "chat"}},
            "spec": {
                "tolerations": [{"key": "spot"}],
                "containers": [{"name": "engine", "resources": {"requests": {"cpu": "2"}}}],
            },
        },
    )
    template = plan(world).pools[0].template.body
    (engine,) = template["spec"]["containers"]
    env = {entry["name"]: entry.get("value") for entry in engine["env"]}
    assert (env["A"], env["B"], env["C"]) == ("class", "variant", "own")
    assert engine["image"] == "penstock/simulated-engine:ampere"
    assert template["spec"]["priorityClassName"] == "middle"
    assert template["spec"]["tolerations"] == [{"key": "gpu"}, {"key": "spot"}]
    assert template["metadata"]["labels"] == {"team": "chat"}
    assert engine["resources"]["requests"]["cpu"] == "2"
    assert engine["ports"][0]["containerPort"] == 8000
    assert template["spec"]["automountServiceAccountToken"] is False


def test_the_range_is_shared_by_the_classes_of_a_pool(world):
    world.accelerator("h100-80g")
    world.deploy(pools=pools(acceleratorClasses=["a100-80g", "h100-80g"], replicas={"min": 2, "max": 5}))
    world.settle()
    world.scale_by_user("llama-serve-h100-80g", 3)
    world.settle()
    bounds = {p.accelerator: (p.share.replicas, p.share.least, p.share.most) for p in plan(world).pools}
    assert bounds == {"a100-80g": (2, 0, 2), "h100-80g": (3, 0, 3)}
