"""Growth and budgets: never beyond the limit, never more taken than must be, the same share from everybody."""

from __future__ import annotations

from dataclasses import replace

from autoscaler_views import pool, snapshot, view
from hypothesis import given
from hypothesis import strategies as st
from penstock.autoscaler.decisions.budgets import cut_growth, cut_to_fit, held, total_held
from penstock.autoscaler.decisions.guard import GuardRules, guard
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import DeploymentPlan, Plan, Target, Why
from penstock.autoscaler.decisions.snapshot import Pods, PoolView

counts = st.integers(0, 12)


def weigh(each: PoolView) -> float:
    return float(each.accelerators)


def named(name: str, replicas: int, accelerators: int = 1, **more: object) -> PoolView:
    return pool(name=name, replicas=replicas, accelerators=accelerators, **more)


@st.composite
def pools(draw: st.DrawFn) -> list[PoolView]:
    made = []
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True)):
        pods = Pods(draw(counts), draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 3)))
        made.append(named(name, draw(counts), draw(st.integers(0, 4)), pods=pods))
    return made


def wishes(of: list[PoolView], draw: st.DataObject) -> dict[str, int]:
    return {each.name: draw.draw(st.integers(0, 20), each.name) for each in of}


def test_a_pool_holds_what_it_has_was_promised_and_lets_go() -> None:
    leaving = named("a", 3, pods=Pods(ready=2, terminating=2))
    assert held(leaving, 5) == 7
    assert held(leaving, 1) == 5  # A scale-in gives nothing back yet.
    assert held(replace(leaving, pods=Pods(ready=2, starting=3, pending=1)), 1) == 6
    assert total_held([leaving, named("b", 2, 4)], {"a": 5, "b": 1}, weigh) == 15


@given(of=pools(), limit=st.integers(0, 60), draw=st.data())
def test_growth_is_cut_to_the_limit_and_no_further(of: list[PoolView], limit: int, draw: st.DataObject) -> None:
    wanted = wishes(of, draw)
    cut = cut_growth(of, wanted, limit, weigh)
    growing = [p for p in of if cut[p.name] > p.replicas and weigh(p) > 0]
    for each in of:
        assert min(wanted[each.name], each.replicas) <= cut[each.name] <= wanted[each.name], "only growth is cut"
        assert weigh(each) > 0 or cut[each.name] == wanted[each.name], "what weighs nothing helps nobody"
    assert total_held(of, cut, weigh) <= limit or not growing
    if cut != wanted:
        lost = [p for p in of if cut[p.name] < wanted[p.name]]
        assert any(total_held(of, {**cut, p.name: cut[p.name] + 1}, weigh) > limit for p in lost), "one too many"


@given(of=pools(), limit=st.integers(0, 60), draw=st.data())
def test_what_is_asked_for_is_lowered_to_a_lowered_limit(of: list[PoolView], limit: int, draw: st.DataObject) -> None:
    wanted = wishes(of, draw)
    least = {each.name: draw.draw(st.integers(0, 4), f"least of {each.name}") for each in of}
    cut = cut_to_fit(of, wanted, least, limit, weigh)
    for each in of:
        assert min(wanted[each.name], least[each.name]) <= cut[each.name] <= wanted[each.name]
        assert weigh(each) > 0 or cut[each.name] == wanted[each.name]

    def asked(moves: dict[str, int]) -> float:
        return sum(moves[each.name] * weigh(each) for each in of)

    lowerable = [p for p in of if cut[p.name] > least[p.name] and weigh(p) > 0]
    assert asked(cut) <= limit or not lowerable
    if cut != wanted:
        lost = [p for p in of if cut[p.name] < wanted[p.name]]
        assert any(asked({**cut, p.name: cut[p.name] + 1}) > limit for p in lost), "one too many was taken"


def test_a_limit_that_is_met_exactly_cuts_nothing() -> None:
    """Prices that are no binary fractions add up to a little more than they do on paper."""
    cheap = [named(name, 1, cost_per_hour=0.1) for name in "abc"]
    wanted = {"a": 2, "b": 2, "c": 2}
    money = lambda each: each.cost_per_hour or 0.0  # noqa: E731
    assert cut_growth(cheap, wanted, 0.6, money) == wanted
    assert cut_to_fit(cheap, wanted, {"a": 0, "b": 0, "c": 0}, 0.6, money) == wanted
    assert cut_growth(cheap, wanted, 0.599, money) != wanted


def test_growth_is_cut_by_share_of_the_way() -> None:
    """8 of 24 workers wished for: a third of the way for everybody."""
    of = [named("a", 2), named("b", 4), named("c", 0)]
    assert cut_growth(of, {"a": 5, "b": 10, "c": 15}, 14, weigh) == {"a": 3, "b": 6, "c": 5}


def test_a_lowered_limit_takes_the_same_share_of_everybody() -> None:
    of = [named("a", 4), named("b", 8), named("c", 12)]
    assert cut_to_fit(of, {"a": 4, "b": 8, "c": 12}, {"a": 0, "b": 0, "c": 0}, 12, weigh) == {"a": 2, "b": 4, "c": 6}
    assert cut_to_fit(of, {"a": 4, "b": 8, "c": 12}, {"a": 4, "b": 0, "c": 0}, 14, weigh) == {"a": 4, "b": 4, "c": 6}


@given(
    order=st.permutations(["x", "y", "z"]),
    now_and_wish=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 10)), min_size=3, max_size=3),
    limit=st.integers(0, 40),
)
def test_a_class_that_is_short_is_shared_without_respect_of_order(
    order: list[str], now_and_wish: list[tuple[int, int]], limit: int
) -> None:
    """The class's limit holds for what grows, other classes are left alone, and order decides nothing."""
    facts = dict(zip("xyz", now_and_wish, strict=True))
    elsewhere = view(pool(accelerator="a100", replicas=1))

    def shared(names: list[str]) -> dict[str, int]:
        views, plans = [elsewhere], [_wish(elsewhere.key, "chat-serve-a100", 5)]
        for name in names:
            replicas, wish = facts[name]
            views.append(replace(view(pool(replicas=replicas)), key=("team", name)))
            plans.append(_wish(("team", name), "chat-serve-h100", max(replicas, wish)))
        seen = snapshot(*views, h100=limit)
        first, *rest = guard(Plan(tuple(plans)), seen, History(since=0.0), GuardRules(out_least=20))
        assert (first.moves, first.refusals) == ({"chat-serve-a100": 5}, ())
        for each, plan in zip(rest, plans[1:], strict=True):
            cut = each.moves != plan.moves
            assert cut == bool(each.refusals and each.refusals[-1].refused == "ClassExhausted")
        return {each.key[1]: each.moves["chat-serve-h100"] for each in rest}

    moves = shared(list(order))
    assert moves == shared(["x", "y", "z"])
    assert sum(moves.values()) <= limit or all(moves[name] == now for name, (now, _) in facts.items())
    asked = sum(max(fact) for fact in facts.values())
    assert sum(moves.values()) >= min(limit, asked), "nothing is left over that somebody wished for"


def _wish(key: tuple[str, str], name: str, replicas: int) -> DeploymentPlan:
    return DeploymentPlan(key, {name: Target(replicas, 1.0)}, Why.LOAD, "made up", needs={}, certain=True)
