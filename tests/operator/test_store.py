"""Whatever order events, answers and lists arrive in, the newest state counts and the right deployments are woken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.operator.shell.store import DEPLOYMENTS, ENGINES, NODES, PODS, POOLS, Store


def pod(name="w-1", version=1, deployment="llama", ready=True, beat=0):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "chat",
            "uid": name,
            "resourceVersion": str(version),
            "labels": {"penstock.dev/deployment": deployment},
        },
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": str(ready), "lastProbeTime": str(beat)}],
        },
    }


def deployment(name="llama", version=1, served="m"):
    spec = {"model": {"name": served}, "objectives": {"ttft": "1s", "tpot": "50ms"}}
    metadata = {"name": name, "namespace": "chat", "uid": name, "resourceVersion": str(version)}
    return {"apiVersion": "penstock.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec}


@pytest.fixture
def woken():
    return []


@pytest.fixture
def store(woken):
    return Store(woken.append)


def pods(store, name="llama"):
    seen = store.observe(("chat", name), now=0.0, refusals={}, drain=True, endpoint="")
    return [p.meta.name for p in seen.pods]


def test_a_child_wakes_its_deployment_and_a_heartbeat_does_not(store, woken):
    store.put(PODS, pod())
    store.put(PODS, pod(version=2, beat=7))
    assert woken == [("chat", "llama")]
    store.put(PODS, pod(version=3, ready=False))
    assert len(woken) == 2


def test_a_late_answer_neither_rewinds_nor_revives(store):
    store.put(DEPLOYMENTS, deployment())
    store.put(PODS, pod(version=5))
    store.put(PODS, pod(version=4, ready=False))
    assert store.observe(("chat", "llama"), now=0, refusals={}, drain=True, endpoint="").pods[0].ready
    store.remove(PODS, pod(version=6))
    store.put(PODS, pod(version=5))
    assert pods(store) == []
    store.put(PODS, pod(version=7))
    assert pods(store) == ["w-1"], "made again under the same name"


def test_a_list_shows_what_the_watch_missed(store, woken):
    store.put(DEPLOYMENTS, deployment())
    store.put(PODS, pod("gone", version=3))
    store.put(PODS, pod("fresh", version=12))
    woken.clear()
    assert store.replace(PODS, None, 10, [pod("listed", version=8)]) == 1
    assert pods(store) == ["fresh", "listed"]
    assert set(woken) == {("chat", "llama")}


def test_a_list_of_one_namespace_says_nothing_about_another(store):
    store.put(DEPLOYMENTS, deployment())
    store.put(PODS, pod())
    assert store.replace(PODS, "other", 10, []) == 0
    assert pods(store) == ["w-1"]


def test_a_pod_that_changes_hands_leaves_its_old_deployment(store, woken):
    for name in ("llama", "other"):
        store.put(DEPLOYMENTS, deployment(name))
    store.put(PODS, pod())
    woken.clear()
    store.put(PODS, pod(version=2, deployment="other"))
    assert (pods(store, "llama"), pods(store, "other")) == ([], ["w-1"])
    assert set(woken) == {("chat", "llama"), ("chat", "other")}


def test_a_worker_pool_of_another_whose_name_could_be_ours_is_seen_and_its_going_wakes_us(store, woken):
    store.put(DEPLOYMENTS, deployment("a"))
    store.put(DEPLOYMENTS, deployment("a-b", served="n"))
    pool = {"apiVersion": "penstock.dev/v1alpha1", "kind": "WorkerPool", "metadata": pod("a-b-c")["metadata"]}
    pool["metadata"]["labels"] = {"penstock.dev/deployment": "a"}
    store.put(POOLS, pool)
    taken = {
        name: store.observe(("chat", name), now=0, refusals={}, drain=True, endpoint="").taken for name in ("a", "a-b")
    }
    assert taken == {"a": {}, "a-b": {"a-b-c": "a"}}
    woken.clear()
    store.remove(POOLS, pool)
    assert ("chat", "a-b") in woken


def test_rivals_wake_each_other(store, woken):
    store.put(DEPLOYMENTS, deployment("first"))
    store.put(DEPLOYMENTS, deployment("second"))
    woken.clear()
    store.remove(DEPLOYMENTS, deployment("first", version=9))
    assert ("chat", "second") in woken
    assert store.observe(("chat", "first"), now=0, refusals={}, drain=True, endpoint="") is None
    assert store.observe(("chat", "second"), now=0, refusals={}, drain=True, endpoint="").rivals == ()


def test_a_class_wakes_everyone_and_an_unreadable_one_counts_as_absent(store, woken):
    store.put(DEPLOYMENTS, deployment())
    woken.clear()
    good = {"metadata": {"name": "e", "resourceVersion": "4"}, "spec": {"adapter": "vLLM", "image": "i"}}
    store.put(ENGINES, {"apiVersion": "penstock.dev/v1alpha1", "kind": "EngineClass", **good})
    assert woken == [("chat", "llama")]
    bad = {"metadata": {"name": "e", "resourceVersion": "5"}, "spec": {"adapter": 7}}
    store.put(ENGINES, {"apiVersion": "penstock.dev/v1alpha1", "kind": "EngineClass", **bad})
    assert not store.observe(("chat", "llama"), now=0, refusals={}, drain=True, endpoint="").cluster.engines


def test_a_nodes_heartbeat_wakes_nobody(store, woken):
    store.put(DEPLOYMENTS, deployment())
    woken.clear()
    for version, beat in ((1, "a"), (2, "b")):
        status = {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": beat}]}
        node = {"metadata": {"name": "n", "resourceVersion": str(version)}, "status": status}
        store.put(NODES, {"apiVersion": "v1", "kind": "Node", **node})
    assert len(woken) == 1


states = st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=20)


@given(states, st.randoms(use_true_random=False))
def test_any_order_of_arrival_ends_in_the_newest_state(versions, dice):
    """Each version is either a state or the deletion; shuffled arrivals end where the ordered ones do."""
    history = dict(versions)
    newest = max(history)
    arrivals = list(history.items())
    dice.shuffle(arrivals)
    store = Store(lambda key: None)
    store.put(DEPLOYMENTS, deployment())
    for version, deleted in arrivals:
        (store.remove if deleted else store.put)(PODS, pod(version=version))
    assert pods(store) == ([] if history[newest] else ["w-1"])


def test_owned_kinds_are_found_by_label(store):
    store.put(DEPLOYMENTS, deployment())
    pool = {"apiVersion": "penstock.dev/v1alpha1", "kind": "WorkerPool", "spec": {}, "metadata": pod()["metadata"]}
    store.put(POOLS, pool)
    assert store.observe(("chat", "llama"), now=0, refusals={}, drain=True, endpoint="").pools
