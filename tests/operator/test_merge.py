import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.operator.decisions.merge import merged

BASE = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [
            {"name": "engine", "image": "e", "env": [{"name": "X", "value": "1"}], "args": ["--one"]},
        ],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "tolerations": [{"key": "gpu"}],
        "nodeSelector": {"kind": "a100"},
    },
}


@pytest.mark.parametrize(
    ("over", "path", "expected"),
    [
        ({"spec": {"containers": [{"name": "engine", "tty": True}]}}, ("spec", "containers", 0, "image"), "e"),
        ({"spec": {"containers": [{"name": "side"}]}}, ("spec", "containers", 1, "name"), "side"),
        (
            {"spec": {"containers": [{"name": "engine", "env": [{"name": "X", "value": "2"}]}]}},
            ("spec", "containers", 0, "env"),
            [{"name": "X", "value": "2"}],
        ),
        (
            {"spec": {"containers": [{"name": "engine", "env": [{"name": "X", "valueFrom": {"fieldRef": {}}}]}]}},
            ("spec", "containers", 0, "env"),
            [{"name": "X", "valueFrom": {"fieldRef": {}}}],
        ),
        (
            {"spec": {"containers": [{"name": "engine", "args": ["--two"]}]}},
            ("spec", "containers", 0, "args"),
            ["--two"],
        ),
        (
            {"spec": {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}]}},
            ("spec", "volumes"),
            [{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}],
        ),
        (
            {"spec": {"tolerations": [{"key": "spot"}, {"key": "gpu"}]}},
            ("spec", "tolerations"),
            [{"key": "gpu"}, {"key": "spot"}],
        ),
        ({"spec": {"nodeSelector": None}}, ("spec", "nodeSelector"), None),
        ({"spec": {"nodeSelector": {"zone": "b"}}}, ("spec", "nodeSelector"), {"kind": "a100", "zone": "b"}),
    ],
)
def test_a_pod_template_laid_over_another(over, path, expected):
    value = merged(BASE, over)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else value[key]
    assert value == expected


leaves = st.one_of(st.integers(), st.text(max_size=3), st.booleans())
names = st.sampled_from(["containers", "volumes", "env", "args", "spec", "tolerations"])
items = st.lists(st.fixed_dictionaries({"name": st.sampled_from("abc")}, optional={"x": leaves}), max_size=3)
trees = st.recursive(
    st.one_of(leaves, items.filter(lambda given: len({i["name"] for i in given}) == len(given))),
    lambda inner: st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, trees, max_size=3))
def test_laying_a_template_over_itself_changes_nothing(tree):
    assert merged(tree, tree) == tree


@given(st.dictionaries(names, trees, max_size=3), st.dictionaries(names, trees, max_size=3))
def test_laying_the_same_over_it_twice_is_laying_it_once(base, over):
    once = merged(base, over)
    assert merged(once, over) == once
