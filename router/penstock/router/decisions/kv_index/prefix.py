"""How far a prompt's blocks are held, for all lanes of a table at once: by halving, and block by block."""

from collections.abc import Callable, Mapping, Sequence

_COARSE = 32
"""Intervals a prompt is first cut into, where many lanes leave within it."""
_LEAST = 16
"""Blocks of an interval at least: halving it is cheaper than looking at its ends."""
_FEW = 2
"""Lanes that leave, up to which looking at fixed places costs more than it saves."""


def halve(masks: Mapping[int, int], keys: Sequence[int], first: int, alone: bool) -> tuple[list[int], list[int]]:
    """`(lanes, depths)`, as long as each other, depths rising: which of the lanes in `first` hold how many of `keys`.

    These lanes' part of the masks must shrink along the keys; `alone`: the masks have no other part. An interval whose
    two ends have the same lanes is not looked into.
    """
    lanes: list[int] = []
    depths: list[int] = []
    if not first:
        return lanes, depths
    get = masks.get if alone else _only(masks, first)
    last = len(keys) - 1
    rest = get(keys[last], 0)
    few = first.bit_count() - rest.bit_count() <= _FEW
    step = last or 1 if few else max(_LEAST, last // _COARSE)
    low = high = 0
    at_low = first
    for seen in (*map(get, keys[step:last:step]), rest):
        high += step
        if seen == at_low:
            low = high
            continue
        high = min(high, last)
        at_high = seen or 0
        while at_low != at_high:
            # The next place at which anybody leaves; what lies right of it is searched again, being short.
            left, right, at_right = low, high, at_high
            while right - left > 1:
                middle = (left + right) >> 1
                at_middle = get(keys[middle], 0)
                if at_middle == at_low:
                    left = middle
                else:
                    right, at_right = middle, at_middle
            lanes.append(at_low ^ at_right)
            depths.append(right)
            low, at_low = right, at_right
        if not at_low:
            return lanes, depths
        low = high
    lanes.append(rest)
    depths.append(len(keys))
    return lanes, depths


def _only(masks: Mapping[int, int], lanes: int) -> Callable[..., int]:
    """As `masks.get`, of these lanes only."""
    get = masks.get

    def of_lanes(key: int, _: int = 0) -> int:
        return get(key, 0) & lanes

    return of_lanes


def walk(masks: Mapping[int, int], keys: Sequence[int], lanes: int) -> list[tuple[int, int]]:
    """`(mask, blocks)`: which of `lanes` hold how many blocks in a row, block by block, until none of them does."""
    runs: list[tuple[int, int]] = []
    current, length = 0, 0
    for key in keys:
        mask = masks.get(key, 0) & lanes
        if mask == current:
            length += 1
            continue
        if length:
            runs.append((current, length))
        current, length = mask, 1
        if not mask:
            return runs
    if length:
        runs.append((current, length))
    return runs
