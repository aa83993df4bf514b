"""A roll's two promises under every order of events Hypothesis can think of."""

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.operator.decisions.rollout import RevisionState, finished, roll


class Sets:
    """ReplicaSets of one pool, a controller that lags, pods that start, fail and end when they please."""

    def __init__(self, replicas, olds):
        self.wanted = {f"old{i}": count for i, count in enumerate(olds)} | {"new": 0}
        self.pods = []  # [revision, ready, terminating]
        for revision, count in self.wanted.items():
            self.pods += [[revision, True, False] for _ in range(count)]
        self.replicas = replicas

    def state(self, revision):
        live = [p for p in self.pods if p[0] == revision and not p[2]]
        ending = [p for p in self.pods if p[0] == revision and p[2]]
        return RevisionState(revision, self.wanted[revision], sum(p[1] for p in live), len(live), len(ending), revision)

    def step(self, surge, unavailable):
        current, old = self.state("new"), [self.state(r) for r in self.wanted if r != "new"]
        return roll(self.replicas, current, old, surge, unavailable)

    def control(self, revision):
        """The ReplicaSet controller acts once on one ReplicaSet."""
        live = [p for p in self.pods if p[0] == revision and not p[2]]
        if len(live) < self.wanted[revision]:
            self.pods.append([revision, False, False])
        elif len(live) > self.wanted[revision]:
            min(live, key=lambda p: p[1])[2] = True  # unready first

    def held(self):
        live = {r: sum(p[0] == r and not p[2] for p in self.pods) for r in self.wanted}
        return sum(max(self.wanted[r], live[r]) for r in self.wanted) + sum(p[2] for p in self.pods)

    def sure(self):
        """Ready workers left when every controller has caught up."""
        ready = {r: sum(p[0] == r and p[1] and not p[2] for p in self.pods) for r in self.wanted}
        return sum(min(ready[r], self.wanted[r]) for r in self.wanted)


policies = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda pair: pair != (0, 0))
happening = st.sampled_from(["roll", "control", "ready", "end", "fail"])
events = st.lists(st.tuples(happening, st.integers(0, 50)), max_size=120)


def _happen(sets, what, pick, surge, unavailable):
    if what == "roll":
        sets.wanted |= sets.step(surge, unavailable)
    elif what == "control":
        sets.control(sorted(sets.wanted)[pick % len(sets.wanted)])
    elif sets.pods:
        pod = sets.pods[pick % len(sets.pods)]
        if what == "ready" and not pod[2]:
            pod[1] = True
        elif what == "fail" and not pod[2]:
            pod[1] = False
        elif what == "end" and pod[2]:
            sets.pods.remove(pod)


@given(st.integers(1, 8), policies, st.integers(1, 3), events)
def test_we_never_ask_for_too_many_nor_take_too_many_away(replicas, policy, revisions, happenings):
    surge, unavailable = policy
    olds = [replicas // revisions + (i < replicas % revisions) for i in range(revisions)]
    sets = Sets(replicas, olds)
    for what, pick in happenings:
        held, sure = sets.held(), sets.sure()
        _happen(sets, what, pick, surge, unavailable)
        if what == "roll":
            assert sets.held() <= max(held, replicas + surge), "asked for more than replicas + surge"
            assert sets.sure() >= min(sure, replicas - unavailable), "took a ready worker that was needed"
            assert all(count >= 0 for count in sets.wanted.values())


@given(st.integers(0, 8), policies, st.lists(st.integers(0, 4), max_size=3))
def test_every_roll_ends_with_exactly_the_new_revision(replicas, policy, olds):
    sets = Sets(replicas, olds)
    for _ in range(200):
        before = (dict(sets.wanted), [list(p) for p in sets.pods])
        sets.wanted |= sets.step(*policy)
        for revision in sets.wanted:
            for _ in range(10):
                sets.control(revision)
        sets.pods = [[r, True, False] for r, _, ending in sets.pods if not ending]
        if before == (sets.wanted, sets.pods):
            break
    assert sets.wanted == {r: (replicas if r == "new" else 0) for r in sets.wanted}
    assert len(sets.pods) == replicas
    assert finished(sets.state("new"), [sets.state(r) for r in sets.wanted if r != "new"])


@given(st.integers(0, 8), policies, st.lists(st.integers(0, 4), max_size=3), events)
def test_the_same_view_gives_the_same_step_and_carrying_it_out_changes_no_mind(replicas, policy, olds, happenings):
    sets = Sets(replicas, olds)
    for what, pick in happenings:
        _happen(sets, what, pick, *policy)
    sets.wanted |= sets.step(*policy)
    again = sets.step(*policy)
    assert again == sets.wanted, "the step changed its mind although nothing happened"


@settings(max_examples=50)
@given(st.integers(1, 6), events)
def test_without_surge_a_successor_waits_until_the_old_pod_object_is_gone(replicas, happenings):
    sets = Sets(replicas, [replicas])
    for what, pick in happenings:
        _happen(sets, what, pick, 0, 1)
        assert len(sets.pods) <= replicas, "two workers hold one worker's accelerators"


@given(st.integers(1, 6), policies, events)
def test_a_broken_new_revision_never_takes_the_old_one_down(replicas, policy, happenings):
    surge, unavailable = policy
    sets = Sets(replicas, [replicas])
    for what, pick in happenings:
        if what in ("ready", "fail"):
            continue  # new pods never become ready, old ones never fail
        _happen(sets, what, pick, surge, unavailable)
    assert sets.sure() >= replicas - unavailable


def test_fewer_wanted_in_the_middle_of_a_roll_gives_back_unready_new_workers_first():
    current = RevisionState("new", wanted=2, ready=0, live=2, terminating=0)
    old = RevisionState("old", wanted=3, ready=3, live=3, terminating=0)
    assert roll(2, current, [old], surge=1, unavailable=0) == {"new": 1, "old": 2}


def test_new_workers_about_to_be_removed_do_not_count():
    """The controller still has two of three new workers to remove: the old ones may not go on their account."""
    current = RevisionState("new", wanted=1, ready=3, live=3, terminating=0)
    old = RevisionState("old", wanted=3, ready=3, live=3, terminating=0)
    assert roll(4, current, [old], surge=1, unavailable=0)["old"] == 3


def test_old_workers_that_are_not_ready_go_first():
    current = RevisionState("new", wanted=2, ready=2, live=2, terminating=0, order="3")
    healthy = RevisionState("a", wanted=2, ready=2, live=2, terminating=0, order="1")
    broken = RevisionState("b", wanted=2, ready=0, live=2, terminating=0, order="2")
    assert roll(4, current, [healthy, broken], surge=0, unavailable=1) == {"new": 2, "a": 1, "b": 0}


def test_the_oldest_revision_shrinks_first():
    current = RevisionState("new", wanted=1, ready=1, live=1, terminating=0, order="3")
    older = RevisionState("a", wanted=2, ready=2, live=2, terminating=0, order="1")
    newer = RevisionState("b", wanted=1, ready=1, live=1, terminating=0, order="2")
    assert roll(3, current, [newer, older], surge=1, unavailable=0) == {"new": 1, "a": 1, "b": 1}
