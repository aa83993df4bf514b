"""KV on its way: who shares a port gets an equal part, and every byte arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.fleet import Role
from penstock.core.models import Parallelism
from penstock.core.traces import Trace, TraceRequest
from penstock.simulator import Impossible, Level, Link, PoolSpec, Scenario, Topology, parse_nodes, plan_workers
from penstock.simulator.events import CHECK, EventQueue
from penstock.simulator.transfers import Ports, Transfers, transfer_ms_per_token, ways

SHORT = Trace((TraceRequest(0.0, 100, 5),))
A, B, C, D = ("a>", 100.0), (">b", 100.0), ("c>", 100.0), (">d", 50.0)


class Wire:
    """Transfers with a clock, and the times at which they ended."""

    def __init__(self, link: Link | None = None) -> None:
        self.events = EventQueue()
        self.transfers = Transfers(self.events, link or Link(latency_s=0.0))
        self.ended: dict[int, float] = {}

    def begin(self, at: float, ports: Ports, size: float) -> None:
        self.at(at, lambda now: self.transfers.start(ports, size, (0, 1), self.ended.__setitem__, now))

    def at(self, time: float, what) -> None:
        self.events.at(time, CHECK, len(self.events), lambda now, _: what(now))

    def play(self) -> dict[int, float]:
        self.events.run(lambda: True)
        return self.ended


def test_alone_a_transfer_takes_its_bytes_over_its_narrowest_port() -> None:
    wire = Wire()
    wire.begin(1.0, (A, D), 100.0)
    assert wire.play() == {0: pytest.approx(3.0)}


def test_two_through_one_port_have_half_each_until_one_is_done() -> None:
    wire = Wire()
    wire.begin(0.0, (A, B), 100.0)
    wire.begin(0.0, (A, (">e", 100.0)), 50.0)
    # Both at 50 a second until the small one ends at 1 s; the rest of the large one, 50, at 100.
    assert wire.play() == {1: pytest.approx(1.0), 0: pytest.approx(1.5)}


def test_who_joins_later_slows_those_that_are_there() -> None:
    wire = Wire()
    wire.begin(0.0, (A, B), 100.0)
    wire.begin(0.5, (C, B), 100.0)
    assert wire.play() == {0: pytest.approx(1.5), 1: pytest.approx(2.0)}


def test_a_link_that_is_not_shared_gives_all_of_it_to_each() -> None:
    wire = Wire(Link(latency_s=0.25, shared=False))
    wire.begin(0.0, (A, B), 100.0)
    wire.begin(0.0, (A, B), 100.0)
    assert wire.play() == {0: pytest.approx(1.25), 1: pytest.approx(1.25)}


def test_a_transfer_that_stands_still_gives_its_part_to_others_and_goes_on_where_it_was() -> None:
    wire = Wire()
    wire.begin(0.0, (A, B), 100.0)
    wire.begin(0.0, (A, B), 100.0)
    wire.at(1.0, lambda now: wire.transfers.stall(0, now))
    wire.at(3.0, lambda now: wire.transfers.resume(0, now))
    assert wire.play() == {1: pytest.approx(1.5), 0: pytest.approx(3.5)}
    assert wire.transfers.bytes_moved == pytest.approx(200.0)


def test_a_transfer_that_is_given_up_ends_nowhere_and_frees_its_ports() -> None:
    wire = Wire()
    wire.begin(0.0, (A, B), 100.0)
    wire.begin(0.0, (A, B), 100.0)
    wire.at(1.0, lambda now: wire.transfers.cancel(0, now))
    assert wire.play() == {1: pytest.approx(1.5)}
    assert (len(wire.transfers), wire.transfers.paces()) == (0, {})
    assert wire.transfers.bytes_moved == pytest.approx(150.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 2), st.integers(0, 2), st.floats(0, 500)), max_size=12))
def test_no_port_carries_more_than_it_can_and_every_byte_arrives(asked: list) -> None:
    wire = Wire()
    rates = {f"{n}>": 60.0 + n for n in range(3)} | {f">{n}": 90.0 - n for n in range(3)}
    for at, source, target, size in asked:
        wire.begin(at, ((f"{source}>", rates[f"{source}>"]), (f">{target}", rates[f">{target}"])), size)

    def check() -> bool:
        for port, pace in wire.transfers.paces().items():
            assert pace <= rates[port] * (1 + 1e-9)
        return True

    wire.events.run(check)
    assert set(wire.ended) == set(range(len(asked)))
    assert wire.transfers.bytes_moved == pytest.approx(sum(size for *_, size in asked), abs=1e-6)
    soonest = {}
    for number, (at, source, target, size) in enumerate(sorted(asked, key=lambda one: one[0])):
        soonest[number] = at + size / min(rates[f"{source}>"], rates[f">{target}"])
    if len({at for at, *_ in asked}) == len(asked):
        assert all(wire.ended[number] >= least - 1e-9 for number, least in soonest.items())


# The way and the place


def at_nodes(model, *pools: PoolSpec, nodes: str = "a100-80g=8x2", **more) -> Scenario:
    return Scenario(model, parse_nodes(nodes), pools=pools, **more)


def one_each(model, topology: Topology) -> list:
    """A worker on each of eight nodes."""
    pool = PoolSpec("both", Role.PREFILL_DECODE, "a100-80g", Parallelism(tensor=2), 8)
    return list(plan_workers(at_nodes(model, pool, topology=topology), SHORT))


def test_the_way_leads_through_the_lowest_part_that_holds_both_ends(model) -> None:
    tree = Topology(nodes_per_rack=2, racks_per_row=2, rack_gbytes_per_s=30.0, row_gbytes_per_s=20.0)
    workers = one_each(model, tree)
    link = Link(gbytes_per_s=50.0)

    def names(one: int, other: int) -> list[str]:
        return [name for name, _ in ways(link, tree, workers[one], workers[other])]

    assert names(0, 1) == ["node-0>", ">node-1"]
    assert names(0, 2) == ["node-0>", ">node-2", "rack-0>", ">rack-1"]
    assert names(0, 7) == ["node-0>", ">node-7", "rack-0>", ">rack-3", "row-0>", ">row-1"]
    assert min(rate for _, rate in ways(link, tree, workers[0], workers[7])) == 20e9
    assert names(3, 3) == ["both-3>", ">both-3"]


def test_inside_a_node_the_accelerators_own_link_is_taken(model) -> None:
    pools = (
        PoolSpec("p", Role.PREFILL, "a100-80g", Parallelism(tensor=1), 1),
        PoolSpec("d", Role.DECODE, "a100-80g", Parallelism(tensor=1), 1),
    )
    scenario = at_nodes(model, *pools, nodes="a100-80g=1x2", topology=Topology(domain=Level.NODE))
    prefill, decode = plan_workers(scenario, SHORT)
    rates = {rate for _, rate in ways(scenario.transfer, scenario.topology, prefill, decode)}
    assert rates == {0.75 * decode.accelerator.link.bytes_per_second}
    per_token = scenario.model.kv_bytes_per_token() / rates.pop() * 1e3
    assert transfer_ms_per_token(scenario, decode) == pytest.approx(per_token)


@pytest.mark.parametrize(("level", "pairs"), [(Level.NODE, 0), (Level.RACK, 1), (Level.ROW, 3), (Level.CLUSTER, 7)])
def test_a_domain_holds_what_its_level_says(model, level: Level, pairs: int) -> None:
    tree = Topology(nodes_per_rack=2, racks_per_row=2, domain=level)
    domains = [tree.domain_of(worker.nodes[0]) for worker in one_each(model, tree)]
    assert sum(domain == domains[0] for domain in domains[1:]) == pairs


def test_pools_are_placed_first_fit_and_a_pipeline_may_span_nodes(model) -> None:
    specs = plan_workers(
        at_nodes(
            model,
            PoolSpec("wide", Role.DECODE, "a100-80g", Parallelism(tensor=2, pipeline=3), 1),
            PoolSpec("narrow", Role.PREFILL, "a100-80g", Parallelism(tensor=1), 3),
        ),
        SHORT,
    )
    assert [(spec.name, spec.nodes, spec.node) for spec in specs] == [
        ("wide-0", (0, 1, 2), "g0-n0"),
        ("narrow-0", (3,), "g0-n3"),
        ("narrow-1", (3,), "g0-n3"),
        ("narrow-2", (4,), "g0-n4"),
    ]


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ((("p", Role.PREFILL, 1),), "no pool has a worker that answers"),
        ((("d", Role.DECODE, 1), ("d", Role.PREFILL, 1)), "two pools are called d"),
        ((("d", Role.DECODE, 17),), "no room for worker 17 of 17"),
    ],
)
def test_pools_that_cannot_be_say_what_lacks(model, pools: tuple, says: str) -> None:
    made = tuple(PoolSpec(name, role, "a100-80g", Parallelism(tensor=1), count) for name, role, count in pools)
    with pytest.raises(Impossible, match=says):
        plan_workers(at_nodes(model, *made), SHORT)


def test_a_pool_of_a_class_that_is_not_there_says_what_is(model) -> None:
    wrong = PoolSpec("d", Role.DECODE, "l4-24g", Parallelism(tensor=1), 1)
    with pytest.raises(Impossible, match="no node has l4-24g; there is a100-80g"):
        plan_workers(at_nodes(model, wrong), SHORT)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Link(gbytes_per_s=0.0),
        lambda: Link(latency_s=-1.0),
        lambda: Link(overlap=1.5),
        lambda: Topology(nodes_per_rack=0),
        lambda: Topology(row_gbytes_per_s=-2.0),
    ],
)
def test_a_link_that_cannot_be_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="give"):
        wrong()
