"""Queues and blocks of one engine, and the moves that make up a step: go on, preempt, swap, admit, while tokens, slots
and blocks last. Which move comes first is `orders`' affair."""

from __future__ import annotations

from collections import deque

from penstock.core.engine.active import Active, BlockHash, Phase
from penstock.core.engine.batch import Batch
from penstock.core.engine.blocks import Block, BlockPool
from penstock.core.engine.config import EngineConfig, Preemption, SchedulingPolicy
from penstock.core.engine.events import BlockEvent, BlockRemoved, BlockStored
from penstock.core.engine.host import HostMemory
from penstock.core.engine.stats import Counters
from penstock.core.engine.step import Admission, Transfer
from penstock.core.engine.waiting import WaitingQueue

__all__ = ["Scheduler"]


class Scheduler:
    """Queues and blocks of one engine. A living sequence is in one of `waiting`, `transferring`, `ready`, `running` and
    `host.out`."""

    def __init__(self, config: EngineConfig, counters: Counters, block_hash: BlockHash | None) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.waiting = WaitingQueue()
        self.transferring: dict[str, Active] = {}
        self.ready: deque[Active] = deque()  # Blocks for the whole prompt are there: they never wait for room.
        self.running: list[Active] = []  # In order of admission, oldest first.
        self.host = HostMemory(config.num_host_blocks)
        self.transfers: list[Transfer] = []  # Asked for and not yet told.
        self._counters = counters
        self._block_hash = block_hash
        self._events: list[BlockEvent] = []

    def remove(self, active: Active) -> None:
        """Take a sequence out of whichever collection has it."""
        if active.phase is Phase.WAITING:
            self.waiting.remove(active)
        elif active.phase is Phase.TRANSFERRING:
            del self.transferring[active.id]
        elif active.phase is Phase.READY:
            self.ready.remove(active)
        elif active.phase is Phase.SWAPPED:
            self.host.drop(active)
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
        if self.config.enable_prefix_caching:
            self._name_blocks(active, tokens // self.config.block_size)
        if active.next_full <= tokens:
            # A block without a hash: no later one can have one either, as they are chained.
            active.next_full = self.config.max_model_len + 1

    def take_events(self) -> tuple[BlockEvent, ...]:
        """Cache events since the last call."""
        if self.pool.removed:
            self._note_removed()
        elif not self._events:
            return ()
        events, self._events = tuple(self._events), []
        return events

    def note(self, event: BlockEvent) -> None:
        """Put an event after what has happened so far."""
        if self.pool.removed:
            self._note_removed()
        self._events.append(event)

    # Running sequences

    def put_in_order(self) -> None:
        """Under the policy `priority` the least important stand last, where preemption begins."""
        if self.config.policy is SchedulingPolicy.PRIORITY:
            self.running.sort()

    def continue_running(self, batch: Batch) -> None:
        """Give running sequences their next tokens, oldest first, while the budget lasts."""
        # The list only ever loses its end meanwhile (`_grow`), so going by position is safe.
        for active in self.running:
            budget = batch.budget
            if budget <= 0:
                break
            tokens = active.total - active.computed
            if tokens > budget:
                tokens = budget
            until = active.computed + tokens
            if until > active.capacity and not self._grow(active, tokens, batch):
                break
            if until >= active.next_full:
                self.cache_blocks(active, until)
            batch.put(active, tokens)

    def continue_prompts(self, batch: Batch) -> None:
        """Give the running sequences that are not done with their prompts the next chunk."""
        for active in self.running:
            if active.decodes:
                continue
            if batch.budget <= 0:
                break
            tokens = min(active.total - active.computed, batch.budget)
            if active.computed + tokens > active.capacity and not self._grow(active, tokens, batch):
                break
            self.compute(active, tokens, batch)

    def compute(self, active: Active, tokens: int, batch: Batch) -> None:
        """Let a running sequence compute tokens for which it has blocks."""
        until = active.computed + tokens
        if until >= active.next_full:
            self.cache_blocks(active, until)
        batch.put(active, tokens)

    def has_room_for_next(self, decoding: list[Active]) -> bool:
        """Blocks for the next token of each, without preemption; False, and nothing is done, when there are too few."""
        full = [active for active in decoding if active.computed >= active.capacity]
        if len(full) > self.pool.free:
            return False
        self.pool.take(len(full))
        for active in full:
            active.capacity += self.config.block_size
        return True

    def _grow(self, active: Active, tokens: int, batch: Batch) -> bool:
        """Blocks for `tokens` more, preempting from the end of the line; False when it had to be preempted itself."""
        need = self._blocks_for(active.computed + tokens - active.capacity)
        while need > self.pool.free:
            victim = self.running.pop()
            self._preempt(victim, batch)
            if victim is active:
                return False
        self.pool.take(need)
        active.capacity += need * self.config.block_size
        return True

    def _preempt(self, victim: Active, batch: Batch) -> None:
        victim.preemptions += 1
        self._counters.preemptions += 1
        batch.preempted.append(victim.id)
        blocks = self._blocks_for(victim.computed)
        if self.config.preemption is Preemption.SWAP and self.host.has_room(blocks):
            victim.phase = Phase.SWAPPED
            self.pool.give_back(*victim.leave_blocks(self.config.block_size))
            self.host.keep(victim, blocks)
            self._counters.blocks_swapped_out += blocks
        else:
            victim.phase = Phase.WAITING
            self.pool.give_back(*victim.start_over(self.config.block_size))
            self.waiting.push(victim)

    # Swapped sequences

    def fits_back(self, active: Active) -> bool:
        """Whether a swapped sequence finds blocks for all its tokens now."""
        found = self._find_computed(active)
        return self.pool.can_take(self._blocks_for(active.total) - len(found), found)

    def swap_in(self, batch: Batch, now: float, *, prompts: bool = True, decodes: bool = True) -> None:
        """Bring swapped sequences back in their order, those that decode and those with prompt left as asked for. What
        the prefix cache holds still of them need not be copied."""
        while self.host.out and self._has_slot(batch):
            active = self.host.out[0]
            if not (decodes if active.decodes else prompts) or not self.fits_back(active):
                return
            found = self._find_computed(active)
            tokens = min(active.total - active.computed, batch.budget)
            self._counters.blocks_swapped_in += self.host.bring_back(active, len(found))
            self._give_blocks(active, found, active.computed + tokens)
            self._run(active, tokens, batch, now)

    def _find_computed(self, active: Active) -> list[Block]:
        """Cached blocks that hold the first of a swapped sequence's computed tokens."""
        if not self.config.enable_prefix_caching:
            return []
        return self.pool.match(active.hashes, active.computed // self.config.block_size)

    # Waiting sequences

    def admit_ready(self, batch: Batch, now: float, *, decodes: bool = True) -> None:
        """Start sequences whose KV came from elsewhere; without `decodes` only those whose KV did not come, and that
        have their prompt to compute."""
        later: list[Active] = []
        while self.ready and self._has_slot(batch):
            active = self.ready.popleft()
            left = active.total - active.computed
            if left == 1 and not decodes:
                later.append(active)
            else:
                self._run(active, min(left, batch.budget), batch, now)
        self.ready.extendleft(reversed(later))

    def admit_waiting(self, batch: Batch, now: float) -> None:
        """Start waiting sequences in their order, none while there are swapped ones."""
        while self._has_slot(batch) and not self.host.out:
            active = self.waiting.head()
            if active is None or not self._admit(active, batch, now):
                return

    def admit_remote(self, batch: Batch, now: float) -> None:
        """Have KV fetched for those at the head of the queue that want it."""
        while self._has_slot(batch) and not self.host.out:
            active = self.waiting.head()
            if active is None or not self.wants_transfer(active) or not self._admit(active, batch, now):
                return

    def wants_transfer(self, active: Active) -> bool:
        """Whether KV that is not cached here is to come from another engine."""
        return active.wants_remote > len(self._find_cached(active)) * self.config.block_size

    def fits(self, active: Active, budget: int, *, alone: bool) -> bool:
        """Whether a waiting sequence could start with so many tokens to spare, `alone` in its step or not."""
        if self.config.enable_chunked_prefill and self._blocks_for(active.total) <= self.pool.free:
            return True  # Whatever of it is cached: a free block that is found is one less to take.
        return self._fits(active, self._find_cached(active), budget, alone=alone)

    def _fits(self, active: Active, shared: list[Block], budget: int, *, alone: bool) -> bool:
        cached = len(shared) * self.config.block_size
        whole = not self.config.enable_chunked_prefill and active.wants_remote <= cached
        if whole and active.total - cached > budget and not alone:
            return False
        # The whole prompt must fit, though only a chunk is reserved: else it would be preempted half-way, for ever.
        return self.pool.can_take(self._blocks_for(active.total) - len(shared), shared)

    @property
    def caches_outputs(self) -> bool:
        """Whether blocks of output tokens may become findable."""
        return self._block_hash is not None and self.config.enable_prefix_caching

    def _has_slot(self, batch: Batch) -> bool:
        return batch.budget > 0 and len(self.running) < self.config.max_num_seqs

    def _admit(self, active: Active, batch: Batch, now: float) -> bool:
        """Start the head of the queue; False when tokens or blocks do not last, and then nobody overtakes it."""
        shared = self._find_cached(active)
        if not self._fits(active, shared, batch.budget, alone=not batch.members):
            return False
        cached = len(shared) * self.config.block_size
        remote = active.wants_remote > cached
        tokens = active.total - cached
        if not remote and self.config.enable_chunked_prefill:
            tokens = min(tokens, batch.budget)
        self.waiting.remove(active)
        self._give_blocks(active, shared, cached + tokens)
        active.computed = cached
        self._count_lookup(active, cached)
        if remote:
            self._ask_for_remote(active, cached)
        else:
            self._run(active, tokens, batch, now)
        return True

    def _give_blocks(self, active: Active, shared: list[Block], tokens: int) -> None:
        """Blocks for so many tokens in all, of which `shared` hold the first ones."""
        size, count = self.config.block_size, self._blocks_for(tokens)
        self.pool.share(shared)
        self.pool.take(count - len(shared))
        active.blocks = shared
        active.capacity = count * size
        active.next_full = (len(shared) + 1) * size

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

    def _find_cached(self, active: Active) -> list[Block]:
        """Blocks of the longest cached prefix that leaves at least one token to compute."""
        if not self.config.enable_prefix_caching:
            return []
        return self.pool.match(active.hashes, (active.total - 1) // self.config.block_size)

    def _name_blocks(self, active: Active, full: int) -> None:
        """Name the blocks up to `full` that have a hash, learning those of output blocks, and tell of them."""
        hashes, first = active.hashes, len(active.blocks)
        while len(hashes) < full:
            if self._block_hash is None or (name := self._block_hash(active.id, len(hashes))) is None:
                break
            hashes.append(name)
        new = hashes[first:full]
        if new:
            active.blocks += self.pool.remember(new)
            self.note(BlockStored(tuple(new), hashes[first - 1] if first else None, active.id, first))
        active.next_full = (first + len(new) + 1) * self.config.block_size

    def _note_removed(self) -> None:
        self._events += map(BlockRemoved, self.pool.drain_removed())
