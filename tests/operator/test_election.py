from hypothesis import given
from hypothesis import strategies as st
from penstock.operator.decisions.election import LEASE_S, RENEW_DEADLINE_S, LeaseSeen, may_write, step


class Contender:
    """One operator: it sees the lease when it looks, times it by its own clock, and writes it with a version check."""

    def __init__(self, name):
        self.name, self.seen, self.renewed_at = name, None, None

    def look_and_act(self, lease, now, lost):
        """Gives the lease after this contender's turn. `lost`: the answer never arrives."""
        if lease is None:
            self.seen = None
        elif self.seen is None or self.seen.version != lease["version"]:
            self.seen = LeaseSeen(lease["holder"], lease["version"], LEASE_S, 0, now)
        action = step(self.name, self.seen, now)
        if action == "wait":
            self.renewed_at = None
            return lease
        number = 1 if lease is None else int(lease["version"]) + 1
        if not lost:
            self.renewed_at = now
        return {"holder": self.name, "version": str(number)}


turns = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0.0, 12.0), st.booleans()),
    max_size=80,
)


@given(turns)
def test_two_never_write_at_the_same_time(history):
    contenders, lease, now = [Contender(name) for name in "abc"], None, 0.0
    for who, pause, lost in history:
        now += pause
        lease = contenders[who].look_and_act(lease, now, lost)
        writers = [c.name for c in contenders if may_write(c.renewed_at, now)]
        assert len(writers) <= 1, f"{writers} both write at {now}"


def test_a_dead_leader_is_replaced_after_its_lease():
    dead, heir = Contender("a"), Contender("b")
    lease = dead.look_and_act(None, 0.0, False)
    for second in range(1, int(LEASE_S) + 2):
        lease = heir.look_and_act(lease, float(second), False)
    assert lease["holder"] == "a"
    lease = heir.look_and_act(lease, LEASE_S + 2.0, False)
    assert lease["holder"] == "b"


def test_a_released_lease_is_taken_at_once():
    assert step("b", LeaseSeen("", "7", 1.0, 0, 100.0), 100.0) == "take over"


def test_a_leader_that_cannot_renew_falls_silent_before_its_lease_ends():
    assert may_write(0.0, RENEW_DEADLINE_S - 0.1)
    assert not may_write(0.0, RENEW_DEADLINE_S)
    assert RENEW_DEADLINE_S < LEASE_S
    assert not may_write(None, 0.0)
