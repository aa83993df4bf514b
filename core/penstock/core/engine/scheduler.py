"""Who computes what in the next step: running sequences, then waiting ones, while tokens, slots and blocks last."""

from __future__ import annotations

from collections import deque

from penstock.core.engine.active import Active, BlockHash, Phase
from penstock.core.engine.batch import Batch
from penstock.core.engine.blocks import BlockPool
from penstock.core.engine.config import EngineConfig, SchedulingPolicy
from penstock.core.engine.events import BlockEvent, BlockRemoved, BlockStored
from penstock.core.engine.stats import Counters
from penstock.core.engine.step import Admission, Transfer
from penstock.core.engine.waiting import WaitingQueue

__all__ = ["Scheduler"]


class Scheduler:
    """Queues and blocks of one engine. A living sequence is in one of `waiting`, `transferring`, `ready`, `running`."""

    def __init__(self, config: EngineConfig, counters: Counters, block_hash: BlockHash | None) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.waiting = WaitingQueue()
        self.transferring: dict[str, Active] = {}
        self.ready: deque[Active] = deque()  # Blocks for the whole prompt are there: they never wait for room.
        self.running: list[Active] = []  # In order of admission, oldest first.
        self.transfers: list[Transfer] = []  # Asked for and not yet told.
        self._counters = counters
        self._block_hash = block_hash
        self._events: list[BlockEvent] = []

    def fill(self, batch: Batch, now: float) -> None:
        """Give the batch its work. After a preemption nobody is admitted, as blocks are short, unless nothing runs."""
        self._continue_running(batch)
        if not batch.preempted or not batch.members:
            self._admit_ready(batch, now)
            self._admit_waiting(batch, now)

    def remove(self, active: Active) -> None:
        """Take a sequence out of whichever collection has it."""
        if active.phase is Phase.WAITING:
            self.waiting.remove(active)
        elif active.phase is Phase.TRANSFERRING:
            del self.transferring[active.id]
        elif active.phase is Phase.READY:
            self.ready.remove(active)
        else:
            self.running.remove(active)

    def transfer_done(self, sequence_id: str) -> Active | None:
        """Move a sequence from transfer to ready; None when it is not in transfer any more."""
        active = self.transferring.pop(sequence_id, None)
        if active is not None:
            active.phase = Phase.READY
            self.ready.append(active)
        return active

    def cache_blocks(self, active: Active, tokens: int) -> None:
        """Make the whole blocks among the first `tokens` tokens findable, as far as their hashes are known."""
        first = active.hashed
        if self.config.enable_prefix_caching:
            self._name_blocks(active, tokens // self.config.block_size)
        for index in range(first, active.hashed):
            self.pool.remember(active.blocks[index], active.hashes[index])
        self._note_stored(active, first)
        if active.next_full <= tokens:
            # A block without a hash: no later one can have one either, as they are chained.
            active.next_full = self.config.max_model_len + 1

    def take_events(self) -> tuple[BlockEvent, ...]:
        """Cache events since the last call."""
        self._note_removed()
        events, self._events = tuple(self._events), []
        return events

    def note(self, event: BlockEvent) -> None:
        """Put an event after what has happened so far."""
        self._note_removed()
        self._events.append(event)

    # Running sequences

    def _continue_running(self, batch: Batch) -> None:
        if self.config.policy is SchedulingPolicy.PRIORITY:
            self.running.sort()
        # The list only ever loses its end meanwhile (`_grow`), so going by position is safe.
        for active in self.running:
            if batch.budget <= 0:
                break
            tokens = min(active.total - active.computed, batch.budget)
            until = active.computed + tokens
            if until > active.capacity and not self._grow(active, tokens, batch):
                break
            if until >= active.next_full:
                self.cache_blocks(active, until)
            batch.put(active, tokens)

    def _grow(self, active: Active, tokens: int, batch: Batch) -> bool:
        """Blocks for `tokens` more, preempting from the end of the line; False when it had to be preempted itself."""
        need = self._blocks_for(active.computed + tokens) - len(active.blocks)
        while need > self.pool.free:
            victim = self.running.pop()
            self._preempt(victim, batch)
            if victim is active:
                return False
        active.use(self.pool.take(need), self.config.block_size)
        return True

    def _preempt(self, victim: Active, batch: Batch) -> None:
        self.pool.give_back(victim.start_over())
        victim.phase = Phase.WAITING
        victim.preemptions += 1
        self._counters.preemptions += 1
        batch.preempted.append(victim.id)
        self.waiting.push(victim)

    # Waiting sequences

    def _admit_ready(self, batch: Batch, now: float) -> None:
        while self.ready and self._has_slot(batch):
            active = self.ready.popleft()
            self._run(active, min(active.total - active.computed, batch.budget), batch, now)

    def _admit_waiting(self, batch: Batch, now: float) -> None:
        while self._has_slot(batch):
            active = self.waiting.head()
            if active is None or not self._admit(active, batch, now):
                return

    def admits_nobody(self, budget: int) -> bool:
        """Whether a step with this many tokens to spare would admit nobody. Then no later one does either, as long as
        nobody ends or gives back blocks: decoding only takes more of them."""
        if self.ready:
            return False
        active = self.waiting.head()
        if active is None or budget <= 0 or len(self.running) >= self.config.max_num_seqs:
            return True
        shared = self._find_cached(active)
        cached = len(shared) * self.config.block_size
        whole = not self.config.enable_chunked_prefill and active.wants_remote <= cached
        if whole and active.total - cached > budget:
            return True
        return not self.pool.can_take(self._blocks_for(active.total) - len(shared), shared)

    def decode_steps(self) -> int:
        """How many steps the running sequences can go on with one token each, until the first of them ends or wants a
        block that is not there; 0 when one of them has prompt to compute. Output blocks must not be cached."""
        steps = self.config.max_model_len
        for active in self.running:
            if not active.generated or active.computed + 1 != active.total:
                return 0
            left = active.end_at - active.generated
            if left < steps:
                steps = left
        return steps if self._lasts(steps) else self._affordable(steps)

    def decode(self, steps: int, now: float) -> list[Active]:
        """Let every running sequence have computed `steps` more tokens, with the blocks that so many steps would have
        given it: those that are at their end."""
        size, ended = self.config.block_size, []
        growing: list[tuple[Active, int]] = []
        total = 0
        for active in self.running:
            until = active.computed + steps
            if until > active.capacity:
                need = -(-until // size) - len(active.blocks)
                growing.append((active, need))
                total += need
            if until >= active.next_full:
                self.cache_blocks(active, until)
            active.computed = until
            active.total = until + 1
            active.generated += steps
            active.last_token = now
            if active.generated >= active.end_at:
                ended.append(active)
        # Which of them gets which block makes no difference: none of these blocks has a hash.
        taken = self.pool.take(total)
        at = 0
        for active, need in growing:
            active.use(taken[at : at + need], size)
            at += need
        return ended

    @property
    def caches_outputs(self) -> bool:
        """Whether blocks of output tokens may become findable."""
        return self._block_hash is not None and self.config.enable_prefix_caching

    def _lasts(self, steps: int) -> bool:
        """Whether the free blocks last so long."""
        size = self.config.block_size
        # Each sequence wants at most so many; only a scarce cache is worth counting.
        if len(self.running) * (steps // size + 1) <= self.pool.free:
            return True
        need = sum(
            -(-(active.computed + steps) // size) - len(active.blocks)
            for active in self.running
            if active.computed + steps > active.capacity
        )
        return need <= self.pool.free

    def _affordable(self, steps: int) -> int:
        """The most steps below `steps` that the free blocks last."""
        least, most = 0, steps
        while most - least > 1:
            middle = (least + most) // 2
            if self._lasts(middle):
                least = middle
            else:
                most = middle
        return least

    def _has_slot(self, batch: Batch) -> bool:
        return batch.budget > 0 and len(self.running) < self.config.max_num_seqs

    def _admit(self, active: Active, batch: Batch, now: float) -> bool:
        """Start the head of the queue; False when tokens or blocks do not last, and then nobody overtakes it."""
        size = self.config.block_size
        shared = self._find_cached(active)
        cached = len(shared) * size
        remote = active.wants_remote > cached
        tokens = active.total - cached
        if not remote and tokens > batch.budget:
            if not self.config.enable_chunked_prefill:
                return False
            tokens = batch.budget
        # The whole prompt must fit, though only this chunk is reserved: else it would be preempted half-way, for ever.
        if not self.pool.can_take(self._blocks_for(active.total) - len(shared), shared):
            return False
        need = self._blocks_for(cached + tokens) - len(shared)
        self.waiting.remove(active)
        self.pool.share(shared)
        active.use(shared + self.pool.take(need), size)
        active.computed = cached
        active.hashed, active.next_full = len(shared), cached + size
        self._count_lookup(active, cached)
        if remote:
            self._ask_for_remote(active, cached)
        else:
            self._run(active, tokens, batch, now)
        return True

    def _run(self, active: Active, tokens: int, batch: Batch, now: float) -> None:
        batch.admitted.append(Admission(active.id, active.computed, active.preemptions > 0))
        active.phase = Phase.RUNNING
        if active.scheduled is None:
            active.scheduled = now
        if active.computed + tokens >= active.next_full:
            self.cache_blocks(active, active.computed + tokens)
        batch.put(active, tokens)
        self.running.append(active)

    def _ask_for_remote(self, active: Active, cached: int) -> None:
        tokens = active.wants_remote - cached
        self._counters.external_queries += tokens
        active.phase = Phase.TRANSFERRING
        self.transferring[active.id] = active
        self.transfers.append(Transfer(active.id, tokens, cached))

    def _count_lookup(self, active: Active, cached: int) -> None:
        if active.preemptions:
            return
        active.cached_tokens = cached
        if self.config.enable_prefix_caching:
            self._counters.prefix_queries += active.total
            self._counters.prefix_hits += cached

    # Blocks

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _find_cached(self, active: Active) -> list[int]:
        """Blocks of the longest cached prefix that leaves at least one token to compute."""
        if not self.config.enable_prefix_caching:
            return []
        return self.pool.match(active.hashes, (active.total - 1) // self.config.block_size)

    def _name_blocks(self, active: Active, full: int) -> None:
        """Count the blocks up to `full` that have a hash, learning those of output blocks."""
        while len(active.hashes) < full:
            if self._block_hash is None or (name := self._block_hash(active.id, len(active.hashes))) is None:
                break
            active.hashes.append(name)
        active.hashed = min(full, len(active.hashes))
        active.next_full = (active.hashed + 1) * self.config.block_size

    def _note_stored(self, active: Active, first: int) -> None:
        if first == active.hashed:
            return
        parent = active.hashes[first - 1] if first else None
        self.note(BlockStored(tuple(active.hashes[first : active.hashed]), parent, active.id, first))

    def _note_removed(self) -> None:
        self._events += [BlockRemoved(block_hash) for block_hash in self.pool.drain_removed()]
