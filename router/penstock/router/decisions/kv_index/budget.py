"""How many units of a block table surely fit in so many bytes."""

INT_BYTES = 48
"""A 64-bit Python integer as the allocator gives it."""
HOT_SHARE = 8
"""One in so many units may be marked as used since the hand last passed."""


def unit_bytes(lanes: int) -> int:
    """Most bytes one unit takes outside the hash tables, masks `lanes` bits wide: key, mask, share of the
    hot set, place in the list of a sweep."""
    mask = (24 + 4 * (lanes // 30 + 1) + 15) // 16 * 16
    return INT_BYTES + mask + (INT_BYTES + 112) // HOT_SHARE + 8


def _dict_bytes(entries: int) -> int:
    """Most bytes a dict takes that has never held more than `entries`.

    CPython grows a full dict to the power of two at or above three times its entries; a place is an index of 4 bytes
    and two thirds of an entry of 24.
    """
    places = 1 << max(3, (3 * entries - 1).bit_length())
    return places * (4 + 16) + 128


def capacity(budget: int, lanes: int) -> int:
    """Units that surely fit in `budget` bytes: two dicts (masks, links), keys, masks, hot set."""
    low, high = 0, max(1, budget // 64)
    while low < high:
        middle = (low + high + 1) // 2
        if 2 * _dict_bytes(middle) + middle * unit_bytes(lanes) <= budget:
            low = middle
        else:
            high = middle - 1
    return low
