"""The engine on a wall clock: `core.engine` decides what a step computes, this waits as long as it takes.

One timer drives everything. A step that is due is completed at the moment it was due, not when the timer came, so
that late timers do not add up; where several steps are due at once they are completed together and every reply is
written once.
"""

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.engine import (
    BlockEvent,
    BlockStored,
    Engine,
    EngineConfig,
    Finished,
    Sequence,
    Step,
    Token,
    Transfer,
)
from penstock.core.models import throttled
from penstock.core.wire import Event, chain_hashes, to_integer
from penstock.workers.decisions.simulated.events import removed_event, stored_event
from penstock.workers.decisions.simulated.faults import Faults
from penstock.workers.decisions.simulated.generation import Output
from penstock.workers.decisions.simulated.requests import Choice
from penstock.workers.shell.simulated.accounts import observe_end, observe_request, write_page
from penstock.workers.shell.simulated.metrics import EngineMetrics
from penstock.workers.shell.simulated.options import Options
from penstock.workers.shell.simulated.replies import Reply

log = logging.getLogger(__name__)

TIMER_SLACK_S = 0.0005
"""Timers count whole milliseconds: a step due within this is due now."""
MAX_BEHIND_S = 0.5
"""Steps that are later than this are not caught up: the process was stopped or starved, not busy."""
MAX_WAKE_S = 0.02
"""How long one wake-up may complete steps before sockets get their turn."""


@dataclass(slots=True)
class Live:
    """One sequence in the engine, with what only the model knows of it."""

    reply: Reply
    index: int
    choice: Choice
    output: Output
    tokens: list[int]
    """Prompt and output so far."""
    hashes: list[bytes]
    """Hashes of the whole blocks of `tokens` that were asked for so far."""
    adapter: tuple[str, str] | None
    salt: str | None


class Driver:
    """Runs sequences and hands their tokens to replies."""

    def __init__(self, options: Options, metrics: EngineMetrics, publish: Callable[[list[Event]], None]) -> None:
        self.options = options
        self.metrics = metrics
        self.live: dict[str, Live] = {}
        self.on_transfer: Callable[[Transfer, Live], None] | None = None
        """Called for KV that must be fetched from a peer; answers with `transferred`."""
        self.on_finished: Callable[[str, Live, Finished], None] | None = None
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        config = EngineConfig(
            num_blocks=options.num_blocks,
            block_size=options.block_size,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_num_seqs=options.max_num_seqs,
            max_model_len=options.max_model_len,
            enable_prefix_caching=options.prefix_caching,
        )
        self.engine = Engine(config, options.profile, self._block_hash)
        self._step: Step | None = None
        self._due = 0.0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._clock = self._loop.time()
        self._dirty: dict[Reply, None] = {}
        self._paused = False
        self._crash: asyncio.TimerHandle | None = None
        self.faults = Faults()
        self._random = random.Random(0)
        self._factor = options.time_scale
        self._tokens_per_step = metrics.histogram("iteration_tokens_total")
        self._ttft = metrics.histogram("time_to_first_token_seconds")
        self._inter_token = metrics.histogram("inter_token_latency_seconds")

    # Requests.

    def submit(
        self,
        reply: Reply,
        *,
        priority: int,
        salt: str | None,
        lease_s: float | None = None,
        remote_tokens: int | None = None,
    ) -> None:
        """Queue every choice of a reply. `lease_s` keeps their KV; `remote_tokens` are to come from a peer."""
        now = self._now()
        reply.on_gone = lambda: self._abandon(reply)
        for index, choice in enumerate(reply.generation.choices):
            live = self._make_live(reply, index, choice, salt)
            name = reply.sequence(index)
            self.live[name] = live
            stops = choice.reason == "stop"
            sequence = Sequence(
                id=name,
                prompt_tokens=len(choice.prompt),
                max_tokens=choice.tokens if not stops else reply.generation.max_tokens,
                stop_after=choice.tokens if stops else None,
                block_hashes=tuple(map(to_integer, live.hashes)),
                priority=priority,
                lease_seconds=lease_s,
            )
            if remote_tokens is None:
                self.engine.add(sequence, now)
            else:
                self.engine.admit_with_remote_kv(sequence, remote_tokens, now)
        observe_request(self.metrics, reply.generation)
        self.kick()

    def _make_live(self, reply: Reply, index: int, choice: Choice, salt: str | None) -> Live:
        adapter = reply.generation.adapter
        prompt = choice.prompt
        hashes: list[bytes] = []
        if self.options.prefix_caching:
            hashes = chain_hashes(prompt, self.options.block_size, salt=salt, adapter=adapter)
        if choice.stop_text is not None:
            ahead = Output(prompt, choice.seed)
            reply.cut_at(index, [ahead.next() for _ in range(choice.tokens)])
        return Live(reply, index, choice, Output(prompt, choice.seed), list(prompt), hashes, adapter, salt)

    def _block_hash(self, name: str, index: int) -> int | None:
        """The hash of a block that holds output tokens, for the engine."""
        live = self.live.get(name)
        if live is None or not self.options.prefix_caching:
            return None
        size = self.options.block_size
        while len(live.hashes) <= index:
            start = len(live.hashes) * size
            block = live.tokens[start : start + size]
            if len(block) < size:
                return None
            if live.hashes:
                live.hashes += chain_hashes(block, size, parent=live.hashes[-1], adapter=live.adapter)
            else:
                live.hashes += chain_hashes(block, size, salt=live.salt, adapter=live.adapter)
        return to_integer(live.hashes[index])

    def _abandon(self, reply: Reply) -> None:
        """The client has gone: nobody wants the rest."""
        self._announce(self.engine.take_events())
        for index in range(len(reply.texts)):
            self._end(reply.sequence(index), self.engine.abort(reply.sequence(index), self._now()))
        self._dirty.pop(reply, None)

    def abort_all(self) -> None:
        """End everything with finish reason `abort`, as an engine does that is told to stop at once."""
        self._announce(self.engine.take_events())
        for name in list(self.live):
            self._end(name, self.engine.abort(name, self._now()))
        self._flush()

    def transferred(self, name: str, arrived: bool, stale: bool = False) -> None:
        """A peer's KV came, or did not. `stale`: what came was somebody else's, and the text will show it."""
        if stale and name in self.live:
            live = self.live[name]
            live.output = Output(live.choice.prompt, live.choice.seed ^ 0x5A5A5A5A)
        if arrived:
            self.engine.remote_kv_arrived(name)
        else:
            self.engine.remote_kv_failed(name)
        self.kick()

    def fail(self, name: str, message: str) -> None:
        """End a sequence's whole request with an error."""
        live = self.live.get(name)
        if live is None:
            return
        reply = live.reply
        self._announce(self.engine.take_events())
        for index in range(len(reply.texts)):
            sequence = reply.sequence(index)
            if self.engine.abort(sequence, self._now()) is not None:
                self.live.pop(sequence, None)
                self.metrics.add("request_success", label="error")
        self._dirty.pop(reply, None)
        reply.fail(message)

    # State.

    @property
    def busy(self) -> bool:
        """Whether any reply is unfinished."""
        return bool(self.live)

    @property
    def requests(self) -> int:
        """Requests that are not answered yet."""
        return len({live.reply for live in self.live.values()})

    @property
    def paused(self) -> bool:
        """Whether iterations are held (sleep, pause)."""
        return self._paused

    def pause(self, paused: bool) -> None:
        """Hold iterations, or go on; requests are accepted and wait meanwhile."""
        self._paused = paused
        self.kick()

    def reset_prefix_cache(self) -> bool:
        """Forget every cached block; False while any is in use."""
        done = self.engine.reset_prefix_cache()
        self._announce(self.engine.take_events())
        return done

    def set_faults(self, faults: Faults) -> None:
        """Go wrong as told, from now on."""
        self.faults = faults
        self._factor = self.options.time_scale * faults.slow
        self.engine.profile = throttled(self.options.profile, faults.clock)
        if self._crash is not None:
            self._crash.cancel()
            self._crash = None
        if faults.crash_after_s is not None:
            self._crash = self._loop.call_later(faults.crash_after_s, os.kill, os.getpid(), signal.SIGKILL)
        self.kick()

    def loses_events(self) -> bool:
        """Whether the fault says that the next batch of KV events is lost."""
        return self.faults.drop_events > 0 and self._random.random() < self.faults.drop_events

    # The clock.

    def _now(self) -> float:
        """Seconds that never go back, though steps end at the time they were due."""
        self._clock = max(self._clock, self._loop.time())
        return self._clock

    def kick(self) -> None:
        """See to it that a step begins soon, unless one is running."""
        if self._step is None and not self._paused and not self.faults.hang:
            self._set_timer(self._loop.call_soon(self._begin))

    def _set_timer(self, timer: asyncio.TimerHandle | asyncio.Handle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _begin(self) -> None:
        self._schedule(self._now())
        self._arm()

    def _schedule(self, now: float) -> None:
        """Ask for the next step, which starts at `now`."""
        self._step = None if self._paused or self.faults.hang else self.engine.schedule(now)
        for transfer in self.engine.take_transfers():
            live = self.live.get(transfer.id)
            if live is not None and self.on_transfer is not None:
                self.on_transfer(transfer, live)
        if self._step is not None:
            self._due = now + self._step.duration_ms * 1e-3 * self._factor

    def _arm(self) -> None:
        """Wake up when the step ends or, without one, when a lease does."""
        if self._step is not None:
            self._set_timer(self._loop.call_at(self._due, self._wake))
            return
        self._timer = None
        wakeup = self.engine.next_wakeup()
        if wakeup is not None and not self._paused:
            self._set_timer(self._loop.call_at(wakeup + 0.001, self._begin))

    def _wake(self) -> None:
        started = now = self._loop.time()
        if now - self._due > MAX_BEHIND_S:
            self._due = now
        while self._step is not None and self._due <= now + TIMER_SLACK_S and not self.faults.hang:
            self._clock = max(self._clock, self._due)
            self._complete(self._step, self._clock)
            self._schedule(self._clock)
            if self._loop.time() - started > MAX_WAKE_S:
                break
        self._flush()
        if not self.faults.hang:
            self._arm()

    def _complete(self, step: Step, now: float) -> None:
        outputs = self.engine.complete(step, now)
        self._tokens_per_step.observe(step.tokens)
        for token in outputs.tokens:
            self._deliver(token)
        # Before the ends: a finished sequence's tokens are forgotten with it.
        self._announce(outputs.events)
        for end in outputs.finished:
            self._end(end.id, end)

    def _deliver(self, token: Token) -> None:
        name, index, interval = token
        live = self.live.get(name)
        if live is None:
            return
        value = live.output.next()
        live.tokens.append(value)
        live.reply.token(live.index, value)
        self._dirty[live.reply] = None
        (self._inter_token if index else self._ttft).observe(interval)

    def _end(self, name: str, end: Finished | None) -> None:
        live = self.live.pop(name, None)
        if live is None or end is None:
            return
        if self.on_finished is not None:
            self.on_finished(name, live, end)
        live.reply.finish(live.index, end)
        observe_end(self.metrics, end, str(end.reason) if end.reason == "abort" else live.choice.reason)
        if live.reply.exchange.open:
            self._dirty[live.reply] = None

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for reply in dirty:
            reply.flush()

    # What others are told.

    def _announce(self, events: tuple[BlockEvent, ...]) -> None:
        if events:
            self._publish([self._wire_event(event) for event in events])

    def _wire_event(self, event: BlockEvent) -> Event:
        if not isinstance(event, BlockStored):
            return removed_event(event)
        live = self.live[event.sequence]
        return stored_event(event, live.tokens, self.options.block_size, live.adapter, live.salt)

    def page(self) -> bytes:
        """The metrics page as of now."""
        adapters = {live.adapter[0] for live in self.live.values() if live.adapter}
        return write_page(self.metrics, self.engine.stats(), self.options, adapters)
