from hypothesis import given
from hypothesis import strategies as st
from penstock.operator.decisions.bounds import shares

counts = st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=5)
ranges = st.tuples(st.integers(0, 10), st.integers(0, 10)).map(lambda pair: (pair[0], max(1, sum(pair))))


@given(ranges, counts)
def test_the_sum_is_brought_into_the_range_and_held_there(bounds, current):
    least, most = bounds
    result = shares(least, most, current)
    total = sum(share.replicas for share in result)
    assert least <= total <= most
    for share in result:
        assert share.least <= share.replicas <= share.most
        others = total - share.replicas
        assert others + share.most <= most or share.most == 1, "one WorkerPool could be scaled beyond the sum's maximum"
        assert others + share.least >= least


@given(ranges, counts)
def test_numbers_within_the_range_are_nobodys_business(bounds, current):
    least, most = bounds
    given_sum = sum(value or 0 for value in current)
    if least <= given_sum <= most:
        assert [share.replicas for share in shares(least, most, current)] == [value or 0 for value in current]


@given(ranges, counts)
def test_what_was_settled_stays_settled(bounds, current):
    least, most = bounds
    once = shares(least, most, current)
    assert shares(least, most, [share.replicas for share in once]) == once


def test_the_first_class_starts_and_the_last_class_gives_back():
    assert [s.replicas for s in shares(2, 8, [None, None])] == [2, 0]
    assert [s.replicas for s in shares(1, 4, [3, 3])] == [3, 1]
