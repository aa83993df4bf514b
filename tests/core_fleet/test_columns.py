"""The fleet's books: slots, generations, views, reservations, trust."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from numpy.typing import NDArray
from penstock.core.fleet import UNKNOWN, Breaker, Fleet, Request, Reservation, Role, Signal, Worker, total


def worker(name: str, model: str = "m", **more: object) -> Worker:
    """A worker that differs in what matters."""
    return Worker(name=name, host="h", port=1, model=model, **more)  # type: ignore[arg-type]


def ready(fleet: Fleet, *names: str) -> list[int]:
    """Add workers and make them ready."""
    slots = [fleet.add(worker(n)) for n in names]
    for slot in slots:
        fleet.set_ready(slot, True)
    return slots


def test_a_name_is_added_once() -> None:
    fleet = Fleet()
    fleet.add(worker("a"))
    with pytest.raises(ValueError, match="'a' is already in the fleet"):
        fleet.add(worker("a"))


def test_growing_keeps_slots_and_everything_in_them() -> None:
    fleet = Fleet(capacity=2)
    slots = ready(fleet, "a", "b")
    held = [fleet.reserve(s, 10 * (s + 1), 5) for s in slots]
    fleet.sample(0, 3.0, 0.5, 7.0)
    ready(fleet, "c", "d", "e")
    assert fleet.capacity == 8
    assert [fleet.slot_of(n) for n in "ab"] == slots
    assert fleet.outstanding_tokens[:2].tolist() == [15, 25]
    assert fleet.foreign_requests[0] == 3.0 and math.isnan(fleet.foreign_requests[1])
    assert all(fleet.release(r) for r in held)
    assert fleet.view().candidates("m").tolist() == [0, 1, 2, 3, 4]


def test_a_reused_slot_owes_nothing_to_the_last_worker() -> None:
    fleet = Fleet(capacity=1)
    (slot,) = ready(fleet, "a")
    old = fleet.reserve(slot, 100, 100)
    fleet.failed(slot)
    fleet.sample(slot, 9.0, 0.9, 1.0)
    fleet.remove(slot)
    (again,) = ready(fleet, "b")
    assert again == slot
    assert fleet.release(old) is False
    assert fleet.in_flight[slot] == fleet.outstanding_tokens[slot] == fleet.failures[slot] == 0
    assert not fleet.view().foreign(slot, 2.0).known
    new = fleet.reserve(slot, 1, 1)
    assert new.generation > old.generation
    assert not fleet.holds(old) and fleet.holds(new)


def test_a_view_is_live_in_load_and_stale_in_membership() -> None:
    fleet = Fleet()
    (slot,) = ready(fleet, "a")
    view = fleet.view()
    assert fleet.view() is view
    fleet.reserve(slot, 3, 4)
    assert view.outstanding_tokens[slot] == 7 and not view.stale
    with pytest.raises(ValueError, match="read-only"):
        view.outstanding_tokens[slot] = 0
    fleet.withdraw(slot)
    assert view.stale and fleet.view() is not view
    assert fleet.view().epoch > view.epoch


def test_masks_by_model_role_class_and_domain() -> None:
    fleet = Fleet()
    fleet.add(worker("a", "m", role=Role.PREFILL, accelerator="h100", domain="x"))
    fleet.add(worker("b", "m", role=Role.DECODE, accelerator="a100", domain="x"))
    fleet.add(worker("c", "n", role=Role.DECODE, accelerator="a100", domain="y"))
    view = fleet.view()
    chosen = {
        "m": view.mask(model="m"),
        "decode": view.mask(role=Role.DECODE),
        "a100 in x": view.mask(accelerator="a100", domain="x"),
        "unknown": view.mask(model="nobody"),
    }
    assert {k: np.flatnonzero(v).tolist() for k, v in chosen.items()} == {
        "m": [0, 1],
        "decode": [1, 2],
        "a100 in x": [1],
        "unknown": [],
    }


def test_only_the_ready_unwithdrawn_trusted_are_candidates() -> None:
    fleet = Fleet()
    a, b, c, d = ready(fleet, "a", "b", "c", "d")
    fleet.set_ready(a, False)
    fleet.withdraw(b)
    fleet.eject(c, until=10.0)
    assert fleet.view().candidates("m").tolist() == [d]
    assert fleet.view().without(frozenset({d})).candidates("m").tolist() == [c], "all ejected: better than nobody"


def test_withdrawn_is_for_ever_even_when_ready_again() -> None:
    fleet = Fleet()
    (a,) = ready(fleet, "a")
    fleet.withdraw(a)
    fleet.set_ready(a, False)
    fleet.set_ready(a, True)
    assert fleet.view().candidates("m").size == 0


def test_an_ejected_worker_is_tried_by_one_request_then_trusted() -> None:
    fleet = Fleet()
    a, b = ready(fleet, "a", "b")
    fleet.eject(a, until=10.0)
    fleet.retry_due(9.9)
    assert fleet.view().candidates("m").tolist() == [b]
    fleet.retry_due(10.0)
    assert fleet.view().candidates("m").tolist() == [a, b]
    probe = fleet.reserve(a, 1, 1)
    assert fleet.view().candidates("m").tolist() == [b], "a second request was sent to a worker on probation"
    fleet.succeeded(a)
    assert fleet.breaker[a] == Breaker.CLOSED
    assert fleet.release(probe)
    assert fleet.view().candidates("m").tolist() == [a, b]


def test_a_probe_without_a_verdict_leaves_the_question_open() -> None:
    fleet = Fleet()
    a, _ = ready(fleet, "a", "b")
    lasting = fleet.reserve(a, 1, 1)  # a stream from before, which says nothing about new connections
    fleet.eject(a, until=1.0)
    fleet.retry_due(1.0)
    probe = fleet.reserve(a, 1, 1)
    assert fleet.breaker[a] == Breaker.PROBING
    fleet.release(probe)
    assert fleet.breaker[a] == Breaker.HALF_OPEN
    fleet.release(lasting)
    assert fleet.breaker[a] == Breaker.HALF_OPEN


def test_turning_ready_forgives() -> None:
    fleet = Fleet()
    a, _ = ready(fleet, "a", "b")
    fleet.failed(a)
    fleet.eject(a, until=100.0)
    fleet.set_ready(a, False)
    fleet.set_ready(a, True)
    assert fleet.failures[a] == 0 and a in fleet.view().candidates("m")


def test_a_prompt_is_taken_as_computed_when_its_time_is_up() -> None:
    fleet = Fleet()
    (slot,) = ready(fleet, "a")
    silent, told, ended = (fleet.reserve(slot, 100, 10) for _ in range(3))
    for reservation, at in ((silent, 5.0), (told, 4.0), (ended, 3.0)):
        fleet.prefilled_by(reservation, at)
    fleet.prefilled(told)
    fleet.release(ended)
    fleet.retry_due(4.5)
    assert fleet.pending[slot, 0] == 1
    fleet.retry_due(5.0)
    assert fleet.pending[slot].tolist() == [0, 0, 0] and fleet.in_flight[slot] == 2


class Matched:
    """An index that finds so many blocks of any prompt in slot i."""

    def __init__(self, *blocks: int) -> None:
        """`blocks[i]` in slot i."""
        self.blocks = blocks

    def longest_prefix(self, hashes: Sequence[bytes], slots: int) -> NDArray[np.int64]:
        """As it was told, and no more than was asked for."""
        return np.minimum([*self.blocks, *[0] * slots][:slots], len(hashes))


def test_cached_tokens_are_whole_blocks_and_never_the_last_token() -> None:
    fleet = Fleet(capacity=3)
    request = Request("r", "m", 64, 1, block_hashes=(b"1", b"2", b"3", b"4"))
    assert fleet.view().cached_tokens(request) is None, "no index: unknown, not zero"
    fleet.index_by("m", Matched(0, 2, 4), block_tokens=16)
    cached = fleet.view().cached_tokens(request)
    assert cached is not None and cached.tolist() == [0.0, 32.0, 48.0]
    longer = fleet.view().cached_tokens(replace(request, prompt_tokens=65))
    assert longer is not None and longer.tolist() == [0.0, 32.0, 64.0]
    assert fleet.view().cached_tokens(replace(request, block_hashes=())) is None
    assert fleet.view().cached_tokens(replace(request, model="n")) is None


class Books(RuleBasedStateMachine):
    """Reserve, release, withdraw, remove, add in any order: the columns always equal the open reservations."""

    @initialize()
    def start(self) -> None:
        """An empty fleet that must grow soon."""
        self.fleet = Fleet(capacity=1)
        self.open: dict[int, Reservation] = {}
        self.ended: list[Reservation] = []
        self.computed: set[int] = set()
        self.names = 0

    @rule()
    def add(self) -> None:
        """A worker comes."""
        self.names += 1
        self.fleet.set_ready(self.fleet.add(worker(f"w{self.names}")), True)

    @precondition(lambda self: self.fleet.workers())
    @rule(
        which=st.integers(0, 100),
        prompt=st.integers(0, 1000),
        output=st.integers(0, 1000),
        cached=st.integers(0, 1000),
    )
    def reserve(self, which: int, prompt: int, output: int, cached: int) -> None:
        """A request is picked for some worker."""
        slots = sorted(self.fleet.workers().values())
        reservation = self.fleet.reserve(slots[which % len(slots)], prompt, output, min(cached, prompt))
        assert reservation.id not in self.open
        self.open[reservation.id] = reservation

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        """A request ends."""
        key = sorted(self.open)[which % len(self.open)]
        reservation = self.open.pop(key)
        assert self.fleet.release(reservation)
        self.ended.append(reservation)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100))
    def first_token(self, which: int) -> None:
        """A request's prompt is computed, and that is told once or twice."""
        reservation = self.open[sorted(self.open)[which % len(self.open)]]
        waits = reservation.cached_tokens < reservation.prompt_tokens and reservation.id not in self.computed
        assert self.fleet.prefilled(reservation) == waits
        self.computed.add(reservation.id)

    @precondition(lambda self: self.ended)
    @rule(which=st.integers(0, 100))
    def first_token_too_late(self, which: int) -> None:
        """A first token of what ended already."""
        assert not self.fleet.prefilled(self.ended[which % len(self.ended)])

    @precondition(lambda self: self.ended)
    @rule(which=st.integers(0, 100))
    def release_again(self, which: int) -> None:
        """Something ends twice."""
        assert not self.fleet.release(self.ended[which % len(self.ended)])

    @precondition(lambda self: self.fleet.workers())
    @rule(which=st.integers(0, 100))
    def withdraw(self, which: int) -> None:
        """A worker gets no more."""
        slots = sorted(self.fleet.workers().values())
        self.fleet.withdraw(slots[which % len(slots)])

    @precondition(lambda self: self.fleet.workers())
    @rule(which=st.integers(0, 100))
    def remove(self, which: int) -> None:
        """A worker is gone, with everything reserved on it."""
        slots = sorted(self.fleet.workers().values())
        slot = slots[which % len(slots)]
        self.fleet.remove(slot)
        for key in [k for k, r in self.open.items() if r.slot == slot]:
            self.ended.append(self.open.pop(key))

    @invariant()
    def balanced(self) -> None:
        """Columns are the sums of what is open."""
        fleet = self.fleet
        assert fleet.reservations == len(self.open)
        for slot in range(fleet.capacity):
            mine = [r for r in self.open.values() if r.slot == slot]
            assert fleet.in_flight[slot] == len(mine)
            assert fleet.outstanding_tokens[slot] == sum(r.prompt_tokens + r.max_tokens for r in mine)
            assert fleet.context_tokens[slot] == sum(r.prompt_tokens + r.max_tokens // 2 for r in mine)
            waiting = [r for r in mine if r.id not in self.computed and r.cached_tokens < r.prompt_tokens]
            assert fleet.pending[slot].tolist() == [
                len(waiting),
                sum(r.prompt_tokens - r.cached_tokens for r in waiting),
                sum(r.prompt_tokens**2 - r.cached_tokens**2 for r in waiting),
            ]

    @invariant()
    def withdrawn_is_no_candidate(self) -> None:
        """Nobody withdrawn can be picked."""
        assert not self.fleet.withdrawn[self.fleet.view().candidates("m")].any()


Books.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase

known = st.builds(Signal, value=st.floats(-1e6, 1e6), age=st.floats(0, 1e6), coverage=st.just(1.0))


@given(st.lists(st.one_of(known, st.just(UNKNOWN)), max_size=8))
def test_total_counts_what_is_known_and_says_how_much_that_is(signals: list[Signal]) -> None:
    measured = [s for s in signals if s.known]
    result = total(signals)
    if not measured:
        assert not result.known and math.isnan(result.value)
    else:
        assert result.value == pytest.approx(sum(s.value for s in measured))
        assert result.age == max(s.age for s in measured)
        assert result.coverage == pytest.approx(len(measured) / len(signals))


def test_signals_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="age"):
        Signal(1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="coverage"):
        Signal(1.0, 1.0, 1.5)


def test_fresh_needs_both_knowledge_and_youth() -> None:
    assert Signal(1.0, 5.0, 0.5).fresh(5.0)
    assert not Signal(1.0, 5.1, 0.5).fresh(5.0)
    assert not UNKNOWN.fresh(math.inf)


def test_roles_by_their_api_names() -> None:
    assert [Role.from_api(r.api_name) for r in Role] == list(Role)
    with pytest.raises(ValueError, match="known roles are PrefillDecode, Prefill, Decode"):
        Role.from_api("prefill")
