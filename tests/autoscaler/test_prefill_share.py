"""How many prompts belong on prefill workers, told from before they were overrun."""

from penstock.autoscaler.decisions.forecast import Point
from penstock.autoscaler.decisions.observe import _prefill_share


def points(*values: float) -> tuple[Point, ...]:
    return tuple(Point(5.0 * at, value) for at, value in enumerate(values))


def test_a_minute_of_overrun_does_not_change_it() -> None:
    prefill = points(*[3.0] * 40, *[6.0] * 12)
    decode = points(*[4.0] * 40, *[16.0] * 12)
    assert _prefill_share({"Prefill": prefill, "Decode": decode}) == 0.75


def test_it_is_a_share_and_unknown_without_both_roles() -> None:
    assert _prefill_share({"Prefill": points(5.0, 5.0), "Decode": points(2.0, 4.0)}) == 1.0
    assert _prefill_share({"PrefillDecode": points(5.0)}) is None
    assert _prefill_share({"Prefill": points(0.0), "Decode": points(0.0)}) is None
