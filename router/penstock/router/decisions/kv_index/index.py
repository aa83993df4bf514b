"""Who has how much of a prompt cached: the engines' own KV events, answered for all workers at once.

One index serves workers of one model whose caches are compatible: equal tokens have equal block hashes there. A worker
is known by its slot in the fleet. Each of its caches (one for each data-parallel rank and tier of memory) has a lane in
the table of blocks; to clear or remove a worker is to take its lanes out of service, at once however much they hold,
and to hand them out again after `sweep` has passed over the table in small steps.

A prefix is found by halving: a worker's depth needs about log2(blocks) look-ups, shared by all workers of equal depth.
That is exact while no worker lacks a block whose successor it holds. Workers for whom that cannot be said (torn lanes,
several tiers) are walked, block by block, for as long as any of them matches; so the answer is exact always, and fast
where engines evict tail first, which vLLM does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray
from penstock.core.wire import (
    BlockHash,
    BlockRemoved,
    BlockStored,
    Change,
    RemovedRun,
    RemovedRunArray,
    StoredRun,
    StoredRunArray,
    as_integer,
)
from penstock.router.decisions.kv_index.budget import capacity
from penstock.router.decisions.kv_index.prefix import halve, walk
from penstock.router.decisions.kv_index.table import LANE_BITS, LOWEST_LANE, BlockTable, lanes_of

SMALLEST_BUDGET = 1 << 20
"""Bytes below which an index is refused: it would hold less than one long prompt."""
_FULL_ATTENTION = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})
_from_bytes = int.from_bytes
_STORED = (StoredRun, StoredRunArray, BlockStored)
_REMOVED = (RemovedRun, RemovedRunArray, BlockRemoved)
_MOST_EXPANDED = 1024
"""Masks whose slots are remembered."""


class Tier(IntEnum):
    """Where a block lies, fastest first."""

    GPU = 0
    CPU = 1
    REMOTE = 2


def tier_of(medium: str | None) -> Tier:
    """Tier of an event's `medium`. Unnamed is GPU, as engines without tiers mean it; unknown names are remote."""
    found = _TIERS.get(medium)
    return found if found is not None else _TIERS.get(str(medium).lower(), Tier.REMOTE)


_TIERS: dict[str | None, Tier] = {None: Tier.GPU, "gpu": Tier.GPU, "GPU": Tier.GPU, "cpu": Tier.CPU, "CPU": Tier.CPU}


DEFAULT_WORTH: Mapping[Tier, float] = MappingProxyType({Tier.GPU: 1.0, Tier.CPU: 0.8, Tier.REMOTE: 0.5})
"""What a cached block is worth beside one in GPU memory, where nobody knows the links' speed."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """An index in numbers: distinct blocks, lanes in service, estimated bytes, the budget; counts since the start."""

    blocks: int
    lanes: int
    torn_lanes: int
    copies: int
    bytes: int
    budget: int
    stored: int
    removed: int
    unknown_removals: int
    evicted: int


@dataclass(frozen=True, slots=True)
class _Lane:
    slot: int
    rank: int
    tier: Tier


class _Integers(Sequence[int]):
    """32-byte hashes read as integers, each only when it is looked at."""

    __slots__ = ("_hashes",)

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self._hashes = hashes

    def __len__(self) -> int:
        return len(self._hashes)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        if isinstance(at, slice):
            return [_from_bytes(h[-8:], "big") for h in self._hashes[at]]
        return _from_bytes(self._hashes[at][-8:], "big")


class Numbers(Sequence[bytes]):
    """64-bit integers as a request carries hashes, each written only when it is looked at; the index reads them as they
    are."""

    __slots__ = ("integers",)

    def __init__(self, integers: tuple[int, ...]) -> None:
        self.integers = integers

    def __len__(self) -> int:
        return len(self.integers)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> "Numbers": ...
    def __getitem__(self, at: int | slice) -> "bytes | Numbers":
        if isinstance(at, slice):
            return Numbers(self.integers[at])
        return self.integers[at].to_bytes(8, "big")

    def tolist(self) -> list[bytes]:
        """All of them written, as records ask it of arrays."""
        return [number.to_bytes(8, "big") for number in self.integers]


def as_integers(hashes: Sequence[BlockHash]) -> Sequence[int]:
    """The same hashes as 64-bit integers, whichever form they have."""
    if type(hashes) is Numbers:  # `isinstance` asks an abstract class, which takes as long as a look-up.
        return hashes.integers
    if not hashes or isinstance(hashes[0], int):
        return hashes  # type: ignore[return-value]  # all hashes of a chain have one form
    return _Integers(cast("Sequence[bytes]", hashes))


def _plain(hashes: Sequence[BlockHash]) -> Sequence[int]:
    """As `as_integers`, all at once, and for events whose hashes are not all of one form."""
    if set(map(type, hashes)) == {int}:
        return hashes  # type: ignore[return-value]
    return [as_integer(h) for h in hashes]


def _has_tokens(event: BlockStored | StoredRun | StoredRunArray) -> bool:
    return bool(event.token_ids) if isinstance(event, BlockStored) else event.has_tokens


class KVIndex:
    """Block hash -> workers, for one model and KV compatibility. Not thread-safe: one thread owns it."""

    def __init__(self, budget: int) -> None:
        """`budget`: bytes the index never exceeds. `ValueError` below `SMALLEST_BUDGET`."""
        if budget < SMALLEST_BUDGET:
            raise ValueError(f"a KV index needs at least {SMALLEST_BUDGET} bytes, got a budget of {budget}")
        self._budget = budget
        self._width = 64  # Lanes the budget is computed for.
        self._table = BlockTable(capacity(budget, self._width))
        self._lanes: dict[int, _Lane] = {}  # Lanes in service.
        self._numbers: dict[tuple[int, int, int], int] = {}  # (slot, rank, tier) -> lane; the inverse of `_lanes`.
        self._alive = 0  # Mask of `_lanes`.
        self._several = 0  # Mask of the lanes of caches that have more than GPU memory.
        self._free: list[int] = []  # Swept lanes, to be used again.
        self._next = LOWEST_LANE  # Lowest lane never used.
        self._dead = 0  # Mask of lanes taken out of service and not yet swept.
        self._sweeping = 0  # The part of `_dead` the running sweep takes off.
        self._to_sweep: list[int] = []  # Blocks the running sweep has yet to pass.
        self._ignored: dict[tuple[int, int], set[int]] = {}  # (slot, rank) -> cache groups that are not indexed.
        self._tiered: dict[
            tuple[int, int], tuple[tuple[Tier, int], ...]
        ] = {}  # Those caches: (tier, bit), fastest first.
        self._expanded: dict[int, NDArray[np.intp] | int] = {}  # Mask -> slots, remembered.
        self.epoch = 0
        self._stored = self._removed = self._unknown = 0

    # ---- what engines tell ---------------------------------------------------------------------

    def apply(self, slot: int, event: Change, rank: int = 0) -> None:
        """Take in one event of a worker's cache."""
        if isinstance(event, _STORED):
            self._apply_stored(slot, event, rank)
        elif isinstance(event, _REMOVED):
            if event.group_idx is None or event.group_idx not in self._ignored.get((slot, rank), ()):
                hashes = event.block_hashes
                plain = _plain(hashes) if isinstance(event, BlockRemoved) else cast("list[int]", hashes)
                self._take_off(slot, plain, rank, tier_of(event.medium))
        else:
            self.clear(slot, rank)

    def _apply_stored(self, slot: int, event: BlockStored | StoredRun | StoredRunArray, rank: int) -> None:
        if event.kv_cache_spec_kind not in _FULL_ATTENTION:
            # A sliding window holds only the end of a prefix: its blocks say nothing about the whole.
            if event.group_idx is not None:
                self._ignored.setdefault((slot, rank), set()).add(event.group_idx)
            return
        parent, hashes = event.parent_block_hash, event.block_hashes
        # A move between tiers is told without tokens, and then without what comes before.
        linked = parent is not None or _has_tokens(event)
        if isinstance(event, BlockStored):
            self.store(slot, hashes, parent, rank, tier_of(event.medium), linked=linked)
        elif hashes:
            self._put(slot, cast("list[int]", hashes), cast("int | None", parent), rank, tier_of(event.medium), linked)

    def store(
        self,
        slot: int,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None = None,
        rank: int = 0,
        tier: Tier = Tier.GPU,
        *,
        linked: bool = True,
    ) -> None:
        """One more copy of each of these blocks is in the cache: a chain, whose first block comes after `parent`.

        `linked=False` when it is not known what comes before which.
        """
        if hashes:
            self._put(slot, _plain(hashes), None if parent is None else as_integer(parent), rank, tier, linked)

    def _put(self, slot: int, blocks: Sequence[int], parent: int | None, rank: int, tier: Tier, linked: bool) -> None:
        lane = self._numbers.get((slot, rank, tier))
        if lane is None:
            lane = self._open(_Lane(slot, rank, tier))
        self._stored += len(blocks)
        self._table.store(lane, blocks, parent, linked)

    def remove(self, slot: int, hashes: Sequence[BlockHash], rank: int = 0, tier: Tier = Tier.GPU) -> None:
        """One copy of each of these blocks has left the cache. Unknown ones are counted and ignored."""
        self._take_off(slot, _plain(hashes), rank, tier)

    def _take_off(self, slot: int, blocks: Sequence[int], rank: int, tier: Tier) -> None:
        lane = self._numbers.get((slot, rank, tier))
        self._removed += len(blocks)
        self._unknown += len(blocks) if lane is None else self._table.remove(lane, blocks)

    def clear(self, slot: int, rank: int | None = None) -> None:
        """The worker (or one of its ranks) holds nothing any more, on any tier. Takes no longer for a full cache."""
        for key, lane in [(k, n) for k, n in self._numbers.items() if k[0] == slot and rank in (None, k[1])]:
            if lane in self._table.held:
                del self._numbers[key]
                self._close(lane)

    def remove_worker(self, slot: int) -> None:
        """The worker is gone: nothing of it is found again, and the slot may be given to another."""
        self.clear(slot)
        for key, lane in [(k, n) for k, n in self._numbers.items() if k[0] == slot]:
            del self._numbers[key]
            self._close(lane)
        for cache in [c for c in self._ignored if c[0] == slot]:
            del self._ignored[cache]

    # ---- what picks ask ------------------------------------------------------------------------

    def longest_prefix(self, hashes: Sequence[BlockHash], slots: int) -> NDArray[np.int64]:
        """Blocks of this prompt each worker holds from its beginning on, shape (slots,): one entry for each fleet slot.

        Of a worker with several ranks the best one counts; a block counts on whichever tier it lies.
        """
        found = np.zeros(slots, dtype=np.int64)
        self._match(as_integers(hashes), found, None)
        return found

    def worth(
        self, hashes: Sequence[BlockHash], slots: int, weights: Mapping[Tier, float] = DEFAULT_WORTH
    ) -> NDArray[np.float64]:
        """As `longest_prefix`, but each block counts with the weight of the fastest tier it lies on, shape (slots,)."""
        found = np.zeros(slots)
        self._match(as_integers(hashes), found, weights)
        return found

    def _match(
        self, keys: Sequence[int], found: NDArray[np.int64] | NDArray[np.float64], weights: Mapping[Tier, float] | None
    ) -> None:
        """Write each slot's prefix into `found`: in blocks, or in worth where weights are given."""
        masks = self._table.masks()
        first = masks.get(keys[0], 0) & self._alive if keys else 0
        if not first:
            return
        careful = (self._table.torn | self._several) & self._alive
        scale = 1 if weights is None else weights[Tier.GPU]
        lanes, depths = halve(masks, keys, first & ~careful, alone=not (careful or self._dead))
        self._write(found, lanes, depths, scale)
        deepest = depths[-1] if depths else 0
        if first & careful:
            runs = walk(masks, keys, careful)
            self._match_torn(runs, first & careful & ~self._several, found, scale)
            self._match_tiers(runs, found, weights)
            deepest = max(deepest, sum(length for _, length in runs))
        if self._table.crowded:
            self._table.touch(keys[:deepest])

    def _match_torn(
        self,
        runs: Sequence[tuple[int, int]],
        lanes: int,
        found: NDArray[np.int64] | NDArray[np.float64],
        scale: float,
    ) -> None:
        """Lanes with gaps end where their first gap is."""
        depth = 0
        for mask, length in (*runs, (0, 0)):
            for lane in lanes_of(lanes & ~mask):
                slot = self._lanes[lane].slot
                found[slot] = max(found[slot], depth * scale)
            lanes &= mask
            depth += length

    def _match_tiers(
        self,
        runs: Sequence[tuple[int, int]],
        found: NDArray[np.int64] | NDArray[np.float64],
        weights: Mapping[Tier, float] | None,
    ) -> None:
        """Caches with several tiers go on while any tier has the next block."""
        for (slot, _), tiers in self._tiered.items():
            total: float = 0
            for mask, length in runs:
                best = next((tier for tier, bit in tiers if mask & bit), None)
                if best is None:
                    break
                total += length if weights is None else length * weights[best]
            found[slot] = max(found[slot], total)

    def _write(
        self,
        found: NDArray[np.int64] | NDArray[np.float64],
        lanes: Sequence[int],
        depths: Sequence[int],
        scale: float,
    ) -> None:
        """Write depths to the slots of the lanes. They come in rising order: a worker's best rank is written last."""
        expanded, cells = self._expanded, cast("memoryview[float]", found.data)
        for mask, depth in zip(lanes, depths, strict=True):
            slots = expanded.get(mask)
            if slots is None:
                slots = self._slots_of(mask)
            if type(slots) is int:
                cells[slots] = depth * scale
            else:
                found[slots] = depth * scale

    def _slots_of(self, lanes: int) -> NDArray[np.intp] | int:
        """Slots of a mask: remembered, because few masks come again and again."""
        if len(self._expanded) >= _MOST_EXPANDED:
            self._expanded.clear()
        listed = [self._lanes[lane].slot for lane in lanes_of(lanes)]
        slots = self._expanded[lanes] = listed[0] if len(listed) == 1 else np.array(listed, dtype=np.intp)
        return slots

    def copies(self, slot: int, block: BlockHash, rank: int = 0, tier: Tier = Tier.GPU) -> int:
        """Copies of a block in one cache."""
        lane = self._numbers.get((slot, rank, tier))
        return 0 if lane is None else self._table.count(as_integer(block), lane)

    def blocks_of(self, slot: int) -> int:
        """Distinct blocks a worker holds, summed over its ranks and tiers."""
        return sum(self._table.held.get(lane, 0) for key, lane in self._numbers.items() if key[0] == slot)

    def stats(self) -> IndexStats:
        """The index in numbers."""
        table = self._table
        return IndexStats(
            blocks=len(table),
            lanes=len(self._lanes),
            torn_lanes=table.torn.bit_count(),
            copies=table.copies,
            bytes=table.bytes + 8 * len(self._to_sweep),
            budget=self._budget,
            stored=self._stored,
            removed=self._removed,
            unknown_removals=self._unknown,
            evicted=table.evicted,
        )

    # ---- lanes ---------------------------------------------------------------------------------

    def sweep(self, blocks: int = 2048) -> bool:
        """Pass over at most so many blocks to free the lanes taken out of service. False when there is nothing to do.

        To be called now and then; nothing but memory depends on when.
        """
        if not self._sweeping:
            if not self._dead:
                return False
            self._sweeping = self._dead
            self._to_sweep = list(self._table.masks())
        part = self._to_sweep[-blocks:]
        del self._to_sweep[-blocks:]
        self._table.sweep(part, self._sweeping)
        if not self._to_sweep:
            self._free.extend(lanes_of(self._sweeping))
            self._dead &= ~self._sweeping
            self._sweeping = 0
        return True

    def _open(self, cache: _Lane) -> int:
        """A lane for a cache that has none."""
        if not self._free and self._next >= 64 + 2 * len(self._lanes):
            # More dead lanes than living ones: masks would widen without end under a flood of clears.
            while self.sweep(1 << 20):
                pass
        if self._free:
            lane = self._free.pop()
        else:
            lane = self._next
            self._widen(lane + 1)
        self._lanes[lane] = cache
        self._numbers[cache.slot, cache.rank, cache.tier] = lane
        self._changed()
        return lane

    def _widen(self, lanes: int) -> None:
        if lanes > 1 << LANE_BITS:
            raise ValueError(f"a KV index has room for {1 << LANE_BITS} caches; remove workers before adding more")
        self._next = lanes
        if lanes > self._width:
            self._width *= 2
            self._table.set_limit(capacity(self._budget, self._width))

    def _close(self, lane: int) -> None:
        """Out of service: not matched any more from now on, swept later."""
        del self._lanes[lane]
        self._table.forget(lane)
        if lane in self._table.held:
            self._dead |= 1 << lane
        else:
            self._free.append(lane)
        self._changed()

    def _changed(self) -> None:
        self.epoch += 1
        self._expanded.clear()
        self._alive = sum(1 << lane for lane in self._lanes)
        tiers: dict[tuple[int, int], list[tuple[Tier, int]]] = {}
        for (slot, rank, tier), lane in sorted(self._numbers.items()):
            tiers.setdefault((slot, rank), []).append((Tier(tier), 1 << lane))
        self._tiered = {c: tuple(t) for c, t in tiers.items() if any(tier is not Tier.GPU for tier, _ in t)}
        self._several = sum(bit for cache in self._tiered.values() for _, bit in cache)
