"""Rolls of pools that belong together: some pair can exchange KV at every step, and every roll ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def split(prefills, decodes):
    return [
        {"name": "p", "role": "Prefill", "acceleratorClasses": ["a100-80g"], "replicas": {"min": prefills, "max": 8}},
        {"name": "d", "role": "Decode", "acceleratorClasses": ["a100-80g"], "replicas": {"min": decodes, "max": 8}},
    ]


def ready_by_hash(world):
    """KV hash to the roles that have a ready worker of it."""
    found = {}
    for pod in world.pods(ready=True):
        hash_ = pod["metadata"]["annotations"]["penstock.dev/kv-hash"]
        found.setdefault(hash_, set()).add(pod["metadata"]["labels"]["penstock.dev/role"])
    return found


def has_pair(world):
    return {"Prefill", "Decode"} in ready_by_hash(world).values()


def hashes(world):
    return {p["metadata"]["annotations"]["penstock.dev/kv-hash"] for p in world.pods()}


@pytest.mark.parametrize(
    ("sizes", "rollout"),
    [((1, 1), {"maxSurge": 1, "maxUnavailable": 0}), ((2, 3), {"maxSurge": 0, "maxUnavailable": 1})],
)
def test_a_change_of_kv_compatibility_leaves_a_pair_at_every_step(world, sizes, rollout):
    world.deploy(pools=split(*sizes), rollout=rollout)
    world.settle()
    before = hashes(world)
    world.change(engine={"args": ["--block-size=32"]})
    for _ in range(40):
        world.reconcile()
        world.cluster_step()
        assert has_pair(world), "prefill of one hash, decode of another: nobody can hand over anything"
    assert len(hashes(world)) == 1 and hashes(world) != before
    assert len(world.pods(ready=True)) == sum(sizes)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rollout=st.sampled_from([(1, 0), (0, 1), (1, 1), (2, 0), (0, 3)]),
    slow=st.lists(st.booleans(), max_size=30),
)
def test_pairs_survive_workers_that_come_up_when_they_please(furnish, sizes, rollout, slow):
    surge, unavailable = rollout
    world = furnish()
    world.deploy(pools=split(*sizes), rollout={"maxSurge": surge, "maxUnavailable": unavailable})
    world.settle()
    world.change(engine={"args": ["--block-size=32"]})
    keeps = all(size + surge > 1 for size in sizes)
    for ready in slow:
        world.reconcile()
        world.cluster_step(ready=ready)
        assert has_pair(world) or not keeps
    world.settle()
    assert len(hashes(world)) == 1 and len(world.pods(ready=True)) == sum(sizes)


def test_a_side_scaled_to_zero_holds_nobody_up(world):
    world.deploy(pools=split(0, 2))
    world.settle()
    world.change(engine={"args": ["--block-size=32"]})
    world.settle()
    assert len(hashes(world)) == 1 and len(world.pods(ready=True)) == 2


def test_old_decode_workers_keep_an_old_prefill_worker_while_they_serve(world):
    world.deploy(pools=split(2, 3), rollout={"maxSurge": 0, "maxUnavailable": 1})
    world.settle()
    (old,) = hashes(world)
    world.change(engine={"args": ["--block-size=32"]})
    for _ in range(40):
        world.reconcile()
        world.cluster_step()
        roles = ready_by_hash(world).get(old, set())
        assert "Decode" not in roles or "Prefill" in roles
