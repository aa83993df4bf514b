"""Continuous batching as a state machine without a clock: one brain for the simulated engine and the twin.

    step = engine.schedule(now)         # which sequences compute which tokens, and how long that takes
    ...                                 # step.duration_ms go by, on a wall clock or a virtual one
    outputs = engine.complete(step, now)

Each step first gives running sequences their next tokens (one for a decode, the next chunk for a prompt), then admits
waiting ones while token budget, sequence slots and blocks last; `EngineConfig.scheduler` knows other orders. A running
sequence that finds no block preempts the youngest one, which starts over later (its cached blocks may still be there)
or waits in host memory. Semantics are vLLM's: only whole blocks hit the prefix cache, at least one token is always
computed, blocks become findable when they are scheduled.

For split prefill and decode, a sequence with a lease leaves its KV behind for another engine, and
`admit_with_remote_kv` reserves blocks for KV that comes from one.
"""

from __future__ import annotations

import math

from penstock.core.engine import ahead, orders
from penstock.core.engine.active import Active, BlockHash, Phase
from penstock.core.engine.batch import Batch
from penstock.core.engine.config import EngineConfig, SchedulingPolicy
from penstock.core.engine.events import BlockEvent, CacheCleared
from penstock.core.engine.leases import Leases
from penstock.core.engine.scheduler import Scheduler
from penstock.core.engine.sequence import Finished, FinishReason, Held, Sequence, Token
from penstock.core.engine.span import Span
from penstock.core.engine.stats import Counters, EngineLoad, EngineStats
from penstock.core.engine.step import Outputs, Step, Transfer
from penstock.core.models.latency import LatencyProfile
from penstock.core.models.power import throttled

__all__ = ["Engine"]


class Engine:
    """One engine. Times are seconds of the caller's clock and never go back; not safe for several threads.

    `block_hash` names blocks that hold output tokens, so that a later turn of a conversation hits them; it is called
    when such a block is full, and its tokens are then all known to whoever read the outputs. Without it only prompts
    are cached.
    """

    def __init__(
        self,
        config: EngineConfig,
        profile: LatencyProfile,
        block_hash: BlockHash | None = None,
        *,
        tells_all: bool = True,
    ) -> None:
        """Without `tells_all`, of the tokens of a step only first ones are told: a driver that streams nothing has no
        use for the others."""
        self.config = config
        self._tells_all = tells_all
        self.profile = profile
        self._pace = profile  # The profile at the present speed.
        self._swap_ms = config.swap_ms_per_block
        self._counters = Counters()
        self.scheduler = Scheduler(config, self._counters, block_hash)
        self._pool = self.scheduler.pool
        self._living: dict[str, Active] = {}  # Every sequence that has not ended.
        self.leases = Leases()
        self._tickets = 0
        self._flight: Step | None = None
        self._flying: list[Active] = []  # The sequences of the step in flight, in the order of its work.

    # What goes in

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence. Raises ValueError for an id in use or a prompt that leaves no room for an output token."""
        self.scheduler.waiting.push(self._accept(sequence, now))

    def admit_with_remote_kv(self, sequence: Sequence, remote_tokens: int, now: float) -> None:
        """Queue a sequence whose first `remote_tokens` prompt tokens another engine has computed.

        When its turn comes and blocks for its whole prompt are free, `take_transfers` names it. Raises ValueError as
        `add` does, and for more remote tokens than the prompt has.
        """
        if not 1 <= remote_tokens <= sequence.prompt_tokens:
            raise ValueError(
                f"sequence {sequence.id}: {remote_tokens} remote tokens for a prompt of {sequence.prompt_tokens}; "
                "the prefill leg must have had the same prompt"
            )
        active = self._accept(sequence, now)
        active.wants_remote = remote_tokens
        self.scheduler.waiting.push(active)

    def take_transfers(self) -> tuple[Transfer, ...]:
        """Transfers that `schedule` asked for since the last call."""
        transfers = tuple(self.scheduler.transfers)
        self.scheduler.transfers.clear()
        return transfers

    def remote_kv_arrived(self, sequence_id: str) -> bool:
        """The KV of a transfer is here. False when the sequence was aborted meanwhile."""
        active = self.scheduler.transfer_done(sequence_id)
        if active is None:
            return False
        active.remote_tokens = active.wants_remote - active.computed
        self._counters.external_hits += active.remote_tokens
        self.scheduler.cache_blocks(active, active.wants_remote)
        # One token is always computed: it gives the first output.
        active.computed = min(active.wants_remote, active.total - 1)
        active.wants_remote = 0
        return True

    def remote_kv_failed(self, sequence_id: str) -> bool:
        """The KV of a transfer will not come: the prompt is computed here. False when the sequence was aborted."""
        active = self.scheduler.transfer_done(sequence_id)
        if active is None:
            return False
        active.wants_remote = 0
        self._counters.transfers_failed += 1
        return True

    def abort(self, sequence_id: str, now: float) -> Finished | None:
        """End a sequence wherever it is; None when it has ended already (a lease on its KV is `release`d)."""
        active = self._living.get(sequence_id)
        if active is None:
            return None
        self.scheduler.remove(active)
        return self._end(active, FinishReason.ABORT, now)

    def release(self, sequence_id: str) -> bool:
        """The other engine has the KV of a leased sequence. False when the lease is over or never was."""
        blocks = self.leases.release(sequence_id)
        if blocks is None:
            return False
        self._pool.give_back(*blocks)
        return True

    def expire(self, now: float) -> tuple[str, ...]:
        """Free the KV whose lease has ended by `now` (`schedule` does it too): the ids."""
        if not len(self.leases):
            return ()
        expired = self.leases.expire(now)
        for _, blocks in expired:
            self._pool.give_back(*blocks)
        self._counters.leases_expired += len(expired)
        return tuple(name for name, _ in expired)

    def reset_prefix_cache(self) -> bool:
        """Forget every cached block; False, and nothing is done, while any is in use."""
        if not self._pool.forget_all():
            return False
        self.scheduler.note(CacheCleared())
        return True

    # How fast it goes

    def set_speed(self, slowdown: float = 1.0, clock: float = 1.0) -> None:
        """From the next step on everything takes `slowdown` times as long (a rank that lags), at this share of the
        maximum clock. The step in flight, and a span that was asked for before, keep their times: a driver lets what
        has passed of its span happen (`advance`) and asks for a new one."""
        if not (math.isfinite(slowdown) and slowdown > 0):
            raise ValueError(f"engine slowdown is {slowdown}; give a factor above 0, 1 for full speed")
        pace = self.profile if clock == 1.0 else throttled(self.profile, clock)
        self._pace = pace if slowdown == 1.0 else pace.scaled(slowdown, slowdown)

    def set_link_share(self, share: float = 1.0) -> None:
        """From the next step on swapped blocks have this share of the link to the host, the rest is others' (KV that
        goes to another engine over the same link)."""
        if not 0 < share <= 1:
            raise ValueError(f"engine link share is {share}; give a share above 0 and at most 1")
        self._swap_ms = self.config.swap_ms_per_block / share

    # One iteration

    def schedule(self, now: float) -> Step | None:
        """The next step, or None when nothing can run now (see `next_wakeup`). Raises RuntimeError while one is out."""
        if self._flight is not None:
            raise RuntimeError(f"step {self._flight.number} is still running; complete it before scheduling the next")
        self.expire(now)
        batch = Batch(self.config.max_num_batched_tokens)
        orders.fill(self.scheduler, batch, now)
        if not batch.members:
            return None
        swap_ms = self.scheduler.host.take_moved() * self._swap_ms
        self._flight = batch.step(self._counters.steps, self._pace, self.config.mixed_pass_factor, swap_ms)
        self._flying = batch.members
        return self._flight

    def complete(self, step: Step, now: float) -> Outputs:
        """The outcome of the step in flight; sequences aborted since it began give nothing. Raises RuntimeError for
        any other step."""
        if step is not self._flight:
            raise RuntimeError(f"step {step.number} is not the one that is running")
        self._counters.steps += 1
        self._counters.step_tokens += step.tokens
        tokens: list[Token] = []
        finished: list[Finished] = []
        running, given = Phase.RUNNING, 0
        for active, count in zip(self._flying, step.counts, strict=True):
            if active.phase is not running:
                continue
            active.computed += count
            if active.computed < active.total:
                continue
            given += 1
            number = active.generated
            if self._tells_all or not number:
                tokens.append(Token(active.id, number, now - active.last_token))
            if not number:
                self._prompt_done(active, now)
            active.last_token = now
            active.generated = number + 1
            active.total += 1
            if active.generated >= active.end_at:
                finished.append(self._end(active, active.reason(), now))
        self._counters.generation_tokens += given
        if finished:
            self.scheduler.running = [active for active in self.scheduler.running if active.phase is Phase.RUNNING]
        self._flight, self._flying = None, []
        return Outputs(tuple(tokens), tuple(finished), self.take_events())

    # Many iterations at once

    def span(self) -> Span | None:
        """The decode steps that lie ahead, when the next step and those after it give every running sequence one
        token and change nothing else; None when the next step must be `schedule`d. Changes nothing.

        A driver with a virtual clock may let any number of these steps pass and then call `advance`. Sequences may
        be added meanwhile, as they may during a step; whatever else happens waits for the step's end.
        """
        queues = self.scheduler
        batch, budget = len(queues.running), self.config.max_num_batched_tokens
        if not 0 < batch <= budget or self._flight is not None or len(self.leases) or queues.caches_outputs:
            return None
        if not orders.admits_nobody(queues):
            return None
        steps, context = ahead.decode_steps(queues)
        return Span.of(self._pace, steps, batch, context) if steps else None

    def may_forget(self, span: Span) -> bool:
        """Whether cached blocks may be overwritten in this span, and `advance` have events to tell. Changes nothing."""
        return span.sequences * (span.steps // self.config.block_size + 1) > self._pool.empty

    def advance(self, span: Span, steps: int, now: float) -> Outputs:
        """Let the first `steps` steps of `span` have happened, the last one ending at `now`; state and outcome are
        those of as many `schedule` and `complete`, but that single tokens are not told (`Outputs.tokens` is empty).

        Raises ValueError for more steps than the span has, RuntimeError when the engine is not where `span` left it.
        """
        running = self.scheduler.running
        if not 1 <= steps <= span.steps:
            raise ValueError(f"{steps} steps of a span of {span.steps}")
        if self._flight is not None or len(running) != span.sequences:
            raise RuntimeError("the engine has moved on since this span was made; ask for a new one")
        self.scheduler.put_in_order()
        ended = ahead.decode(self.scheduler, steps, now)
        self._count_span(steps, len(running))
        finished = tuple([self._end(active, active.reason(), now) for active in ended])
        if ended:
            self.scheduler.running = [active for active in running if active.phase is Phase.RUNNING]
        return Outputs((), finished, self.take_events())

    def _count_span(self, steps: int, batch: int) -> None:
        counters, tokens = self._counters, steps * batch
        counters.steps += steps
        counters.step_tokens += tokens
        counters.generation_tokens += tokens

    # What can be seen

    def take_events(self) -> tuple[BlockEvent, ...]:
        """Cache events since the last call; `complete` hands them out too."""
        return self.scheduler.take_events()

    def next_wakeup(self) -> float | None:
        """When `schedule` may have something to run though no step, arrival or transfer comes: the next lease's end."""
        return self.leases.next_end()

    @property
    def idle(self) -> bool:
        """Nothing running, waiting, in transfer or leased: what a drain waits for."""
        return not self._living and not len(self.leases)

    def held(self) -> tuple[Held, ...]:
        """Every lease, in the order it ends."""
        return self.leases.all()

    def living(self) -> tuple[Active, ...]:
        """Every sequence that has not ended, for `invariants`; read only."""
        return tuple(self._living.values())

    def load(self) -> EngineLoad:
        """The few figures of `stats` that a router looks at."""
        queues = self.scheduler
        waiting = len(queues.waiting) + len(queues.ready) + len(queues.host) + len(queues.transferring)
        return EngineLoad(len(queues.running), waiting, self._pool.usage)

    def stats(self) -> EngineStats:
        """Every figure of vLLM's metrics that is not a histogram."""
        counters, queues = self._counters, self.scheduler
        transferring = len(queues.transferring)
        capacity = len(queues.waiting) + len(queues.ready) + len(queues.host)
        return EngineStats(
            running=len(queues.running),
            waiting=capacity + transferring,
            waiting_capacity=capacity,
            waiting_deferred=transferring,
            held=len(self.leases),
            kv_usage=self._pool.usage,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            external_queries=counters.external_queries,
            external_hits=counters.external_hits,
            preemptions=counters.preemptions,
            prompt_tokens=counters.prompt_tokens,
            prompt_tokens_by_source=counters.sources(),
            generation_tokens=counters.generation_tokens,
            steps=counters.steps,
            step_tokens=counters.step_tokens,
            finished=dict(counters.finished),
            leases_expired=counters.leases_expired,
            transfers_failed=counters.transfers_failed,
            swapped=len(queues.host),
            host_usage=queues.host.usage,
            blocks_swapped_out=counters.blocks_swapped_out,
            blocks_swapped_in=counters.blocks_swapped_in,
        )

    # A sequence's life

    def _accept(self, sequence: Sequence, now: float) -> Active:
        if sequence.id in self._living or sequence.id in self.leases:
            raise ValueError(f"sequence {sequence.id} is already here; give each sequence its own id")
        if sequence.prompt_tokens >= self.config.max_model_len:
            raise ValueError(
                f"sequence {sequence.id}: prompt of {sequence.prompt_tokens} tokens leaves no room for output within "
                f"max_model_len {self.config.max_model_len}; shorten the prompt"
            )
        self._tickets += 1
        by_priority = self.config.policy is SchedulingPolicy.PRIORITY
        rank = (sequence.priority if by_priority else 0, self._tickets)
        active = Active(sequence, rank, now, self.config.max_model_len)
        self._living[sequence.id] = active
        return active

    def _prompt_done(self, active: Active, now: float) -> None:
        active.first_token = now
        self._counters.prompt_tokens += active.sequence.prompt_tokens
        self._counters.cached_tokens += active.cached_tokens
        self._counters.external_tokens += active.remote_tokens

    def _end(self, active: Active, reason: FinishReason, now: float) -> Finished:
        del self._living[active.id]
        active.phase = Phase.ENDED
        lease = active.sequence.lease_seconds
        held = None
        if lease is not None and reason is not FinishReason.ABORT:
            held = Held(active.id, active.computed, now + lease)
            self.leases.hold(held, active.leave_blocks(self.config.block_size))
        else:
            self._pool.give_back(active.blocks, active.nameless(self.config.block_size))
        self._counters.finished[reason] = self._counters.finished.get(reason, 0) + 1
        return active.finished(reason, now, held)
