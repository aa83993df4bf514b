"""Which lanes hold which block, counted, linked and bounded: the table under the KV index.

A *lane* is one cache (a worker's, or one data-parallel rank's) as a bit number; a block's *mask* has the bits of the
lanes that hold it. Along a prompt's chain of blocks masks only shrink, as long as every lane that holds a block
holds its parent too. Engines evict tail first, so that is the rule; where it is broken (a lost event, a cache that
was full of unknown blocks when we came) the child is written down as a *tear* of its lane, and the reader walks torn
lanes block by block instead of halving. Links from parent to child are kept for this: they tell whether a block that
leaves a lane leaves a child behind.

What is counted against the budget are *units*: one for a block, two for a second copy, a child of a forked parent or a
tear. `budget.capacity` says how many units surely fit in so many bytes, however unlucky the sizes of the hash tables.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat

from penstock.router.decisions.kv_index.budget import HOT_SHARE, INT_BYTES

LOWEST_LANE = 9
"""Masks of lower lanes would be integers that Python shares, and new entries are told from old ones by identity."""
LANE_BITS = 16
"""Bits of a lane number inside the key of a copy count."""
_SWEEP = 4096
"""Units freed and blocks looked at in one go: finding the oldest block means passing the holes evicted ones left."""
_DEEPEST = 1 << 16
"""Blocks of a chain that are followed down before one is evicted with its children still there."""
_UNITS_A_BLOCK = 5
"""Most units one stored block can add: itself, and two children of a newly forked parent."""

Links = int | set[int]
"""A block's children: the one child, or several."""


def lanes_of(mask: int) -> Iterator[int]:
    """Lane numbers of a mask, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class BlockTable:
    """Block hash -> lanes."""

    __slots__ = (
        "_copies", "_forked", "_hot", "_limit", "_links", "_loose", "_masks", "_tear_count", "_tears", "_torn",
        "evicted", "held",
    )  # fmt: skip

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` units."""
        self._limit = limit
        self._masks: dict[int, int] = {}  # Never holds a zero mask. Its order is that of the clock's hand.
        self._links: dict[int, Links] = {}  # Keys are blocks of `_masks` only; children may be gone.
        self._copies: dict[int, int] = {}  # hash << LANE_BITS | lane -> copies beyond the first, never zero.
        self._tears: dict[int, set[int]] = {}  # Lane -> its blocks whose parent it may lack; never an empty set.
        self._torn = 0  # Mask of the keys of `_tears`.
        self._loose = False  # Blocks were stored without links, so any link may be missing.
        self._tear_count = 0  # Blocks in the sets of `_tears`.
        self._forked = 0  # Children in the sets of `_links`.
        self._hot: set[int] = set()  # Used since the hand last passed; empty while there is room.
        self.held: dict[int, int] = {}  # Lane -> distinct blocks in it; a lane without any is absent.
        self.evicted = 0

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self._masks)

    @property
    def units(self) -> int:
        """What counts against the limit."""
        return len(self._masks) + 2 * (len(self._copies) + self._forked + self._tear_count)

    @property
    def torn(self) -> int:
        """Mask of the lanes along whose chains a block may be missing."""
        return self._torn

    @property
    def copies(self) -> int:
        """Blocks of which a lane holds more than one copy, over all lanes."""
        return len(self._copies)

    @property
    def bytes(self) -> int:
        """Memory in use, from the sizes of the tables and of the integers in them (an upper estimate)."""
        tables = (self._masks, self._links, self._copies, self._tears, self._hot)
        sets = sum(sys.getsizeof(c) for c in self._tears.values())
        # Sets of children are seldom; a set entry is 16 bytes, at worst a quarter filled.
        integers = (2 * len(self._masks) + len(self._copies) + len(self._hot)) * INT_BYTES
        return sum(map(sys.getsizeof, tables)) + sets + self._forked * 64 + integers

    def count(self, block: int, lane: int) -> int:
        """Copies of a block in a lane."""
        if not self._masks.get(block, 0) >> lane & 1:
            return 0
        return 1 + self._copies.get(block << LANE_BITS | lane, 0)

    def mask(self, block: int) -> int:
        """Lanes that hold the block, dead ones included."""
        return self._masks.get(block, 0)

    def masks(self) -> dict[int, int]:
        """The table itself, for the reader's inner loop. Not to be changed."""
        return self._masks

    def set_limit(self, limit: int) -> None:
        """Change the limit, evicting what no longer fits."""
        self._limit = limit
        self._make_room(0)

    # ---- what engines tell ---------------------------------------------------------------------

    def store(self, lane: int, blocks: Sequence[int], parent: int | None, linked: bool = True) -> None:
        """One more copy of each block is in the lane, chained one behind the other after `parent`.

        `linked=False`: nobody said what comes before what; every block counts as torn.
        """
        step = max(1, self._limit // 64)
        for start in range(0, len(blocks), step):
            part = blocks if len(blocks) <= step else blocks[start : start + step]
            self._make_room(_UNITS_A_BLOCK * len(part) + 2, parent)
            if linked:
                self._store(lane, part, parent)
                parent = part[-1]
            else:
                self._loose = True
                for block in part:
                    self._store(lane, (block,), None)
                    self._tear(lane, block)

    def _store(self, lane: int, blocks: Sequence[int], parent: int | None) -> None:
        masks, bit = self._masks, 1 << lane
        # A parent nobody holds cannot carry a link: the child is torn in every lane that has it.
        parent_mask = 0 if parent is None else masks.get(parent, 0)
        above = parent if parent_mask else None
        stored = self._store_new(bit, blocks, above)
        if not stored:
            stored = self._store_alike(lane, bit, blocks, above)
        elif stored < len(blocks):
            stored += self._store_mixed(lane, bit, blocks[stored:], blocks[stored - 1])
        if stored:
            self.held[lane] = self.held.get(lane, 0) + stored
        if parent is not None and not parent_mask & bit:
            self._tear(lane, blocks[0])
        if lane in self._tears:
            self._mend(lane, blocks)

    def _store_new(self, bit: int, blocks: Sequence[int], above: int | None) -> int:
        """The blocks at the beginning that nobody holds, in one look-up each. Returns how many they are.

        `bit` must be an integer that no table holds yet: by its identity a new entry is told from an old one.
        """
        masks, links = self._masks, self._links
        first, before = blocks[0], len(masks)
        if first in masks:
            return 0
        masks[first] = bit
        if above is not None and links.setdefault(above, first) != first:
            self._fork(above, first)
        stored, block, setdefault = 1, first, masks.setdefault
        for following in islice(blocks, 1, None):
            if setdefault(following, bit) is not bit:
                break
            links[block] = following
            block = following
            stored += 1
        if len(masks) - before == stored:
            return stored
        # A block twice in one event: undone, to be counted one by one.
        for block in {*blocks[:stored]}:
            del masks[block]
            links.pop(block, None)
        return 0

    def _store_alike(self, lane: int, bit: int, blocks: Sequence[int], above: int | None) -> int:
        """Blocks that the same lanes hold, as nearly all of an event are: at once; others one by one.

        Returns how many are new to the lane.
        """
        masks, count = self._masks, len(blocks)
        mask = masks.get(blocks[0], 0)
        joined = dict.fromkeys(blocks, mask | bit)
        if self._loose or not mask or len(joined) != count or [*map(masks.get, blocks)].count(mask) != count:
            return self._store_mixed(lane, bit, blocks, above)
        if above is not None and self._links.setdefault(above, blocks[0]) != blocks[0]:
            self._fork(above, blocks[0])
        if mask & bit:
            copies = self._copies
            for key in [block << LANE_BITS | lane for block in blocks]:
                copies[key] = copies.get(key, 0) + 1
            return 0
        masks.update(joined)
        return count

    def _store_mixed(self, lane: int, bit: int, blocks: Sequence[int], above: int | None) -> int:
        """Any blocks, one by one. Returns how many are new to the lane."""
        masks, links, copies, loose = self._masks, self._links, self._copies, self._loose
        get = masks.get
        fresh, stored = True, 0
        old, joined = 0, bit  # Neighbours mostly have one mask: then they share one integer.
        for block in blocks:
            mask = get(block, 0)
            if mask & bit:
                key = block << LANE_BITS | lane
                copies[key] = copies.get(key, 0) + 1
            else:
                if mask is not old:
                    old, joined = mask, mask | bit
                masks[block] = joined
                stored += 1
            # The first link is always looked at: its ends may have come in different events.
            if (fresh or not mask or loose) and above is not None and links.setdefault(above, block) != block:
                self._fork(above, block)
            fresh, above = not mask, block
        return stored

    def remove(self, lane: int, blocks: Sequence[int]) -> int:
        """One copy of each block has left the lane. Returns how many of them were not known to be there."""
        if self._remove_alike(lane, blocks):
            return 0
        masks, links, copies, bit = self._masks, self._links, self._copies, 1 << lane
        unknown = gone = 0
        old, left = bit, 0
        for block in blocks:
            mask = masks.get(block, 0)
            if not mask & bit:
                unknown += 1
                continue
            if copies and self._drop_copy(block << LANE_BITS | lane):
                continue
            gone += 1
            if mask == bit:
                del masks[block]
                children = links.pop(block, None)
                if isinstance(children, set):
                    self._forked -= len(children)
            else:
                if mask is not old:
                    old, left = mask, mask ^ bit
                masks[block] = left
                children = links.get(block)
            if children is not None and (isinstance(children, set) or masks.get(children, 0) & bit):
                self._leave_behind(lane, bit, children)
            if self._torn & bit:
                self._untear(lane, block)
        if gone:
            self._lose(lane, gone)
        return unknown

    def _remove_alike(self, lane: int, blocks: Sequence[int]) -> bool:
        """Blocks that nobody else holds, as most that leave are, once each; False, and nothing done, for others."""
        masks, links, bit, count = self._masks, self._links, 1 << lane, len(blocks)
        if self._copies or self._torn & bit or [*map(masks.get, blocks)].count(bit) != count:
            return False
        if len({*blocks}) != count:
            return False
        for block in blocks:
            del masks[block]
        below = [*map(links.pop, blocks, repeat(None))]
        # Engines evict tail first: then each block's child has left just before it, and only the first may leave one.
        for children in below[:1] if below[1:] == blocks[:-1] else below:
            if isinstance(children, set):
                self._forked -= len(children)
            if children is not None:
                self._leave_behind(lane, bit, children)
        self._lose(lane, count)
        return True

    def _drop_copy(self, key: int) -> bool:
        count = self._copies.get(key)
        if count is None:
            return False
        if count > 1:
            self._copies[key] = count - 1
        else:
            del self._copies[key]
        return True

    def _lose(self, lane: int, blocks: int) -> None:
        left = self.held[lane] - blocks
        if left:
            self.held[lane] = left
        else:
            del self.held[lane]

    # ---- links and tears -----------------------------------------------------------------------

    def _fork(self, parent: int, child: int) -> None:
        """A second or later child. The dead are forgotten whenever the set has doubled."""
        children = self._links[parent]
        if isinstance(children, int):
            if children not in self._masks:
                self._links[parent] = child
                return
            self._links[parent] = {children, child}
            self._forked += 2
            return
        before = len(children)
        children.add(child)
        if len(children) > before and len(children) & (len(children) - 1) == 0:
            children.intersection_update([c for c in children if c in self._masks])
        self._forked += len(children) - before

    def _unlink(self, block: int) -> None:
        children = self._links.pop(block, None)
        if isinstance(children, set):
            self._forked -= len(children)

    def _leave_behind(self, lane: int, bit: int, children: Links) -> None:
        """The parent leaves the lane: its children there are torn off."""
        for child in (children,) if isinstance(children, int) else children:
            if self._masks.get(child, 0) & bit:
                self._tear(lane, child)

    def _tear(self, lane: int, block: int) -> None:
        torn = self._tears.setdefault(lane, set())
        self._tear_count += block not in torn
        torn.add(block)
        self._torn |= 1 << lane

    def _untear(self, lane: int, block: int) -> None:
        torn = self._tears.get(lane)
        if torn is None or block not in torn:
            return
        torn.discard(block)
        self._tear_count -= 1
        if not torn:
            del self._tears[lane]
            self._torn &= ~(1 << lane)

    def _mend(self, lane: int, parents: Iterable[int]) -> None:
        """Parents have (again) come to a torn lane."""
        for parent in parents:
            children = self._links.get(parent)
            if children is not None:
                mended = {children} if isinstance(children, int) else children & self._tears.get(lane, set())
                for child in mended:
                    self._untear(lane, child)

    # ---- lanes that end ------------------------------------------------------------------------

    def forget(self, lane: int) -> None:
        """The lane is dead: stop reading its tears. Its bits go when `sweep` passes them."""
        self._tear_count -= len(self._tears.pop(lane, ()))
        self._torn &= ~(1 << lane)

    def sweep(self, blocks: Iterable[int], dead: int) -> None:
        """Take the bits of the lanes in `dead` off these blocks."""
        masks = self._masks
        for block in blocks:
            mask = masks.get(block, 0)
            gone = mask & dead
            if not gone:
                continue
            self._account_for(block, gone)
            if mask == gone:
                del masks[block]
                self._unlink(block)
            else:
                masks[block] = mask ^ gone

    def _account_for(self, block: int, gone: int) -> None:
        """The lanes in `gone` lose the block with all its copies."""
        for lane in lanes_of(gone):
            self._copies.pop(block << LANE_BITS | lane, None)
            self._lose(lane, 1)
            if self._torn >> lane & 1:
                self._untear(lane, block)

    # ---- the budget ----------------------------------------------------------------------------

    @property
    def crowded(self) -> bool:
        """Whether use has to be marked, because something will soon have to go."""
        return 4 * len(self._masks) > 3 * self._limit

    def touch(self, blocks: Iterable[int]) -> None:
        """These blocks were matched: spare them at the hand's next pass."""
        room = self._limit // HOT_SHARE - len(self._hot)
        if room <= 0:
            # Everything is hot, so nothing is: start again.
            self._hot.clear()
            room = self._limit // HOT_SHARE
        self._hot.update(islice(blocks, room))

    def _make_room(self, needed: int, parent: int | None = None) -> None:
        if self.units + needed <= self._limit:
            return
        if parent is not None:
            self.touch((parent,))
        target = max(0, self._limit - needed - min(_SWEEP, self._limit // 16))
        while self._masks and self.units > target:
            self._turn(target)

    def _turn(self, target: int) -> None:
        """Move the hand over the oldest blocks: spare the hot once, evict the others with what hangs below them."""
        for block in list(islice(self._masks, _SWEEP)):
            if self.units <= target:
                return
            if block in self._hot:
                self._hot.discard(block)
                self._masks[block] = self._masks.pop(block)
            elif block in self._masks:
                self._evict_from_below(block, target)

    def _evict_from_below(self, root: int, target: int) -> None:
        """Evict from the leaves up, until there is room or the root itself is gone: a block never before its child.

        A descendant is at most as recently used as the root, because whoever matched it matched the root.
        """
        path = [root]
        while path and self.units > target:
            children = self._links.get(path[-1])
            below = self._living_child(children) if children is not None else None
            # Hashes make no cycle, but a hostile engine's events can.
            if below is not None and len(path) < _DEEPEST:
                path.append(below)
            else:
                self._evict(path.pop())

    def _living_child(self, children: Links) -> int | None:
        if isinstance(children, int):
            return children if children in self._masks else None
        while children:
            child = children.pop()
            self._forked -= 1
            if child in self._masks:
                children.add(child)
                self._forked += 1
                return child
        return None

    def _evict(self, block: int) -> None:
        mask = self._masks.pop(block, 0)
        children = self._links.get(block)
        self._hot.discard(block)
        if children is not None:
            for lane in lanes_of(mask):
                self._leave_behind(lane, 1 << lane, children)
            self._unlink(block)
        if mask:
            self.evicted += 1
            self._account_for(block, mask)
