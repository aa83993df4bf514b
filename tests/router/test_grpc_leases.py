"""Leases, in every order things can happen in: what is held is exactly what is leased on workers that are there."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from penstock.core.fleet import Failure, Fleet, Rejection, Request, Role, Worker
from penstock.router.decisions import SplitLimits, find_policy
from penstock.router.decisions.leases import Ending, Lease, Leases, slots_named

SPLIT = SplitLimits(min_tokens=256)
ENDINGS = (*Ending, *Failure)


class LeaseMachine(RuleBasedStateMachine):
    """Callers that pick, release, vanish and repeat themselves, over workers that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.leases = Leases(self.fleet)
        self.now = 100.0
        self.count = 0
        self.granted: list[Lease] = []
        for role in (Role.PREFILL_DECODE, Role.PREFILL_DECODE, Role.PREFILL, Role.DECODE):
            self.join(role)

    @rule(role=st.sampled_from(Role))
    def join(self, role: Role) -> None:
        self.count += 1
        model = "whole" if role is Role.PREFILL_DECODE else "apart"
        worker = Worker(f"w{self.count}", "10.0.0.1", 8000, model, role=role)
        self.fleet.set_ready(self.fleet.add(worker), True)

    @precondition(lambda self: len(self.fleet) > 0)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        slot = self.fleet.workers()[data.draw(st.sampled_from(sorted(self.fleet.workers())))]
        self.fleet.remove(slot)

    @precondition(lambda self: len(self.fleet) > 0)
    @rule(data=st.data())
    def withdraw_worker(self, data: st.DataObject) -> None:
        self.fleet.withdraw(self.fleet.workers()[data.draw(st.sampled_from(sorted(self.fleet.workers())))])

    @rule(
        model=st.sampled_from(["whole", "apart"]),
        tokens=st.sampled_from([8, 4096]),
        ttl=st.floats(0.1, 100),
        policy=st.sampled_from(["LeastLoaded", "RoundRobin", "KVAware"]),
        excluded=st.sets(st.integers(1, 6)),
    )
    def grant(self, model: str, tokens: int, ttl: float, policy: str, excluded: set[int]) -> None:
        self.count += 1
        request = Request(f"r{self.count}", model, tokens, 16)
        banned = slots_named(self.fleet, tuple(f"w{i}" for i in excluded))
        answer = self.leases.grant(
            f"l{self.count}", request, find_policy(policy), self.now, self.count, ttl, banned, SPLIT
        )
        if isinstance(answer, Rejection):
            assert answer.message
            return
        assert answer.pick.decode not in banned
        assert not self.fleet.withdrawn[answer.pick.decode]
        assert self.fleet.worker(answer.pick.decode).model == model
        self.granted.append(answer)

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), ending=st.sampled_from(ENDINGS))
    def end(self, data: st.DataObject, ending: Ending | Failure) -> None:
        lease = data.draw(st.sampled_from(self.granted))
        before = len(self.leases)
        was_held = self.leases.end(lease.id, ending, self.now) is not None
        assert len(self.leases) == before - was_held
        assert self.leases.end(lease.id, ending, self.now) is None, "a lease is freed once"

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def prompt_has_run(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.granted))
        failures, leases = self.fleet.failures.copy(), len(self.leases)
        running = self.leases.prefilled(lease.id, self.now)
        assert len(self.leases) == leases and np.array_equal(self.fleet.failures, failures)
        if running is not None:
            assert not running.at_first_leg and running.prefill is None
            assert self.leases.find(lease.id) is running

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def undelivered(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.granted))
        failures = self.fleet.failures.copy()
        self.leases.withdraw(lease.id)
        assert np.array_equal(self.fleet.failures, failures), "nobody is blamed for an answer that was lost"

    @rule(seconds=st.floats(0, 60))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for lease in self.leases.expire(self.now):
            assert lease.expires_at <= self.now

    @invariant()
    def what_is_held_is_what_is_leased(self) -> None:
        assert self.fleet.reservations <= 2 * len(self.leases)
        assert (self.fleet.in_flight >= 0).all()
        assert (self.fleet.outstanding_tokens >= 0).all()
        assert int(self.fleet.in_flight.sum()) == self.fleet.reservations
        if not len(self.leases):
            assert not self.fleet.outstanding_tokens.any()

    def teardown(self) -> None:
        self.leases.expire(self.now + 1000)
        assert len(self.leases) == 0
        assert self.fleet.reservations == 0


LeaseMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLeases = LeaseMachine.TestCase


def test_released_leases_leave_no_memory_behind() -> None:
    fleet = Fleet()
    fleet.set_ready(fleet.add(Worker("w", "h", 1, "m")), True)
    leases = Leases(fleet)
    policy = find_policy("LeastLoaded")
    for number in range(5000):
        assert isinstance(leases.grant(str(number), Request("r", "m", 1, 1), policy, 0.0, number, 60.0), Lease)
        leases.end(str(number), Ending.COMPLETED, 0.0)
    assert len(leases._by_expiry) < 200


@pytest.mark.parametrize("ending", [Ending.COMPLETED, Ending.CANCELLED])
def test_a_lease_expires_at_its_time_and_not_before(ending: Ending) -> None:
    fleet = Fleet()
    fleet.set_ready(fleet.add(Worker("w", "h", 1, "m")), True)
    leases = Leases(fleet)
    leases.grant("a", Request("r", "m", 1, 1), find_policy("LeastLoaded"), 10.0, 1, 5.0)
    leases.grant("b", Request("r", "m", 1, 1), find_policy("LeastLoaded"), 10.0, 2, 3.0)
    assert [lease.id for lease in leases.expire(12.9)] == []
    assert [lease.id for lease in leases.expire(13.0)] == ["b"]
    assert leases.end("b", ending, 13.0) is None
    assert leases.end("a", ending, 14.0) is not None
    assert leases.expire(20.0) == []
