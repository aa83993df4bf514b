"""How far a prompt's blocks are held, for all lanes of a table at once: by halving, and block by block."""

from collections.abc import Iterator, Mapping, Sequence


def halve(masks: Mapping[int, int], keys: Sequence[int], first: int) -> Iterator[tuple[int, int]]:
    """`(lanes, depth)` in rising depth: which of the lanes in `first` hold how many of `keys`.

    Masks must shrink along the keys. An interval whose two ends have the same lanes is not looked into.
    """
    if not first:
        return
    get = masks.get
    low, at_low, high = 0, first, len(keys) - 1
    rest = at_high = get(keys[high], 0) & first
    later: list[tuple[int, int, int, int]] = []  # Intervals right of this one, the nearest last.
    while True:
        while at_low != at_high:
            if high - low == 1:
                yield at_low & ~at_high, high
                break
            middle = (low + high) >> 1
            at_middle = get(keys[middle], 0) & at_low
            if at_middle != at_high:
                later.append((middle, at_middle, high, at_high))
            high, at_high = middle, at_middle
        if not later:
            break
        low, at_low, high, at_high = later.pop()
    if rest:
        yield rest, len(keys)


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
