"""Infinite-LLM's manager (Lin et al., 2024): who lends KV blocks to whom, so that the workers together are fastest.

A worker's pass takes a + b*batch + c*context. One whose batch is squeezed by long contexts (a debtor) may keep the
last blocks of its longest requests at one with free memory (a creditor), which then does the attention over them. The
plan is greedy, as in the paper: the most constrained debtor, the freest creditors, the number of blocks that makes the
sum of batch over pass time largest, again until nothing gains.

What the paper leaves open is decided so that nobody waits for ever. A creditor keeps what its admitted requests may
still grow to, and what requests need that have waited at it for longer than the debtor's. A request that no worker
holds alone is planned for before all others, as if it stood at the head of one queue for all: blocks are collected as
they come free, and once a plan finds none nobody else is admitted until it has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["LOOKAHEAD", "Change", "Instance", "Law", "Need", "Plan", "plan_lending"]

LOOKAHEAD = 16
"""Waiting requests of each worker that a plan looks at."""
_LEAST_GAIN = 1e-9
"""Of tokens a millisecond: less is rounding."""


@dataclass(frozen=True, slots=True)
class Law:
    """What a pass takes, in milliseconds: a, b for each sequence, c for each token of context; a trip to creditors."""

    fixed: float
    each: float
    context: float
    trip: float
    block_size: int

    def rate(self, batch: int, tokens: float, *, far: bool) -> float:
        """Tokens a millisecond of a batch that attends to so many tokens itself, and to others elsewhere if `far`."""
        return batch / (self.fixed + self.each * batch + self.context * tokens + self.trip * far)


@dataclass(frozen=True, slots=True)
class Need:
    """A request that waits."""

    blocks: int
    """For its prompt and all the output it may have."""
    tokens: int
    """Its context once it is admitted."""
    since_s: float


@dataclass(frozen=True, slots=True)
class Instance:
    """One worker as the manager sees it."""

    blocks: int
    """Of its own."""
    free: int
    """That nobody uses, borrowed ones among them and lent ones not."""
    growth: int
    """That its admitted requests may still come to need."""
    batch: int
    context: int
    """Tokens of its running requests, wherever they lie."""
    waiting: tuple[Need, ...] = ()
    """In the order in which they will be admitted."""


Loans = Mapping[tuple[int, int], int]
"""(debtor, creditor) -> blocks, above 0."""


@dataclass(frozen=True, slots=True)
class Change:
    """Blocks that a creditor lends to a debtor, or gets back where the number is negative."""

    debtor: int
    creditor: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now, in this order."""

    changes: tuple[Change, ...] = ()
    collecting: int | None = None
    """The worker for whose first request blocks are collected, as long as it has not all of them."""
    shut: bool = False
    """Whether nobody else is to admit any request, as nothing came free for that one."""


@dataclass(slots=True)
class _Book:
    """Free blocks and loans while a plan is made."""

    instances: Sequence[Instance]
    law: Law
    loans: dict[tuple[int, int], int]
    free: list[int] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def borrowed(self, debtor: int) -> int:
        return sum(blocks for (one, _), blocks in self.loans.items() if one == debtor)

    def lent(self, creditor: int) -> int:
        return sum(blocks for (_, one), blocks in self.loans.items() if one == creditor)

    def spare(self, number: int) -> int:
        """Free blocks that no admitted request will need."""
        return max(0, self.free[number] - self.instances[number].growth)

    def room(self, number: int, since_s: float) -> int:
        """Blocks it can lend for a request that has waited since then."""
        if self.borrowed(number):
            return 0
        older = sum(need.blocks for need in self.instances[number].waiting if need.since_s <= since_s)
        return max(0, self.spare(number) - older)

    def lend(self, debtor: int, creditor: int, blocks: int) -> None:
        """Move blocks; a negative number gives them back."""
        key = debtor, creditor
        self.free[debtor] += blocks
        self.free[creditor] -= blocks
        self.changes.append(Change(debtor, creditor, blocks))
        left = self.loans.pop(key, 0) + blocks
        if left:
            self.loans[key] = left

    def gather(self, debtor: int, blocks: int, since_s: float) -> dict[int, int]:
        """Up to so many blocks from the freest creditors: creditor -> blocks."""
        found: dict[int, int] = {}
        rooms = [(-self.room(number, since_s), number) for number in range(len(self.free)) if number != debtor]
        for negative, number in sorted(rooms):
            part = min(-negative, blocks)
            if part <= 0:
                break
            found[number] = part
            blocks -= part
        return found

    def rate(self, number: int, more: int) -> float:
        """Tokens a millisecond once everybody is admitted for whom there is room, with so many blocks more."""
        one, law = self.instances[number], self.law
        fits = one.waiting[: self.fits(number, more)]
        far = (self.borrowed(number) + max(0, more)) * law.block_size
        near = max(0, one.context + sum(need.tokens for need in fits) - far)
        served = (self.lent(number) + max(0, -more)) * law.block_size
        return law.rate(one.batch + len(fits), near + served, far=far > 0)

    def fits(self, number: int, more: int = 0) -> int:
        """How many of the waiting requests it can admit with so many blocks more."""
        room, count = self.free[number] - self.instances[number].growth + more, 0
        for need in self.instances[number].waiting:
            room -= need.blocks
            if room < 0:
                break
            count += 1
        return count


def plan_lending(instances: Sequence[Instance], loans: Loans, law: Law) -> Plan:
    """What to lend and to give back now. Workers go by their place in `instances`."""
    book = _Book(instances, law, dict(loans), [one.free for one in instances])
    long = _longest_waiting(book)
    for debtor in range(len(instances)):
        if debtor != long:
            _give_back(book, debtor)
    if long is not None and (lacks := _lacks(book, long)) > 0:
        found = _collect(book, long, lacks)
        if found < lacks:
            return Plan(tuple(book.changes), collecting=long, shut=not found)
    while any(_lend_to(book, debtor) for debtor in _constrained(book)):
        pass
    return Plan(tuple(book.changes))


def _longest_waiting(book: _Book) -> int | None:
    """Of the workers whose first request is too long for any of them alone, the one with most blocks collected."""
    long = [
        (-book.borrowed(number), one.waiting[0].since_s, number)
        for number, one in enumerate(book.instances)
        if one.waiting and one.waiting[0].blocks > one.blocks
    ]
    return min(long)[2] if long else None


def _give_back(book: _Book, debtor: int) -> None:
    """Return what its admitted requests do not need, first to those who have least."""
    spare = book.spare(debtor)
    creditors = sorted((book.free[one], one) for (other, one) in book.loans if other == debtor)
    for _, creditor in creditors:
        part = min(spare, book.loans[debtor, creditor])
        if part:
            book.lend(debtor, creditor, -part)
            spare -= part


def _lacks(book: _Book, debtor: int) -> int:
    """Blocks that its first request needs and are not there."""
    one = book.instances[debtor]
    return one.waiting[0].blocks + one.growth - book.free[debtor]


def _collect(book: _Book, debtor: int, lacks: int) -> int:
    """Borrow up to so many blocks for its first request; how many there were."""
    parts = book.gather(debtor, lacks, since_s=-math.inf)
    for creditor, blocks in parts.items():
        book.lend(debtor, creditor, blocks)
    return sum(parts.values())


def _constrained(book: _Book) -> list[int]:
    """Workers with requests that find no room, the smallest batch first."""
    found = []
    for number, one in enumerate(book.instances):
        fits = book.fits(number)
        if fits < len(one.waiting):
            found.append((one.batch + fits, number))
    return [number for _, number in sorted(found)]


def _lend_to(book: _Book, debtor: int) -> bool:
    """Lend this debtor the number of blocks that gains most; False when none gains."""
    one, best, most = book.instances[debtor], None, _LEAST_GAIN
    lacks = one.growth - book.free[debtor]
    for need in one.waiting:
        lacks += need.blocks
        if lacks <= 0:
            continue
        parts = book.gather(debtor, lacks, need.since_s)
        if sum(parts.values()) < lacks:
            break
        gain = _gain(book, debtor, lacks, parts)
        if gain > most:
            best, most = parts, gain
    for creditor, blocks in (best or {}).items():
        book.lend(debtor, creditor, blocks)
    return best is not None


def _gain(book: _Book, debtor: int, blocks: int, parts: Mapping[int, int]) -> float:
    """What all workers together gain, in tokens a millisecond."""
    gain = book.rate(debtor, blocks) - book.rate(debtor, 0)
    return gain + sum(book.rate(creditor, -part) - book.rate(creditor, 0) for creditor, part in parts.items())
