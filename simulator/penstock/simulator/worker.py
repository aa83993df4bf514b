"""One worker on the virtual clock: the simulated engine's state machine, its steps as events.

A run of decode steps is one event at the run's end. Who arrives within the run cuts it: the step that is running is
then the last one, as in life, where a batch changes between two steps only.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from penstock.core.engine import BlockEvent, Engine, Finished, Sequence, Span, Step, Transfer
from penstock.simulator.events import LEASE, STEP_ENDED, WAKE, EventQueue
from penstock.simulator.meter import Meter
from penstock.simulator.scenario import WorkerSpec

__all__ = ["Listener", "Lost", "TwinWorker"]


class Lost(NamedTuple):
    """A sequence that was in an engine when it died."""

    id: str
    generated: int
    """Output tokens it had given."""
    cached_tokens: int
    """Prompt tokens it had found in the engine's cache."""


class Listener(Protocol):
    """Who wants to know what becomes of sequences."""

    def began(self, sequence_id: str, now: float) -> None:
        """Its first token is out."""
        ...

    def ended(self, finished: Finished, now: float) -> None:
        """Its last token is out."""
        ...

    def cached(self, slot: int, events: tuple[BlockEvent, ...]) -> None:
        """A worker's cache has changed."""
        ...

    def wanted(self, worker: TwinWorker, transfer: Transfer, now: float) -> None:
        """A sequence has blocks for a prompt that another worker computed; answer with `remote`."""
        ...

    def aborted(self, worker: TwinWorker, sequence_id: str, now: float) -> None:
        """A sequence was ended before its time; whatever it waited for is not wanted any more."""
        ...


class TwinWorker:
    """An engine that is driven by events. `number` is its place among the workers, from 0."""

    __slots__ = (
        "_aborts", "_began", "_events", "_flight", "_lease_at", "_listener", "_run", "_speed", "_steps", "_version",
        "_waking", "alive", "born_s", "engine", "forgetting", "gone_s", "life", "meter", "number", "output_ended",
        "prompt_ended", "ready_since", "slot", "spec", "steps_before", "walk",
    )  # fmt: skip

    def __init__(
        self, number: int, slot: int, spec: WorkerSpec, events: EventQueue, listener: Listener, *, walk: bool = False
    ) -> None:
        self.number, self.slot, self.spec, self.walk = number, slot, spec, walk
        self._events, self._listener = events, listener
        self.meter = Meter(spec.accelerator, spec.parallelism)
        self.alive = True
        self.born_s, self.gone_s = 0.0, math.inf
        """From when to when it holds its accelerators."""
        self.ready_since: float | None = None
        """None while it is not ready."""
        self.prompt_ended = self.output_ended = 0
        """Tokens of the sequences that ended in the present engine, by their own lengths."""
        self.life = 0
        """Which engine this is: counts crashes."""
        self._speed = 1.0, 1.0  # Slowdown and clock.
        self.engine = Engine(spec.config, spec.profile, tells_all=False)
        self.steps_before = 0  # Steps of engines that crashed here.
        self._flight: Step | None = None
        self._run: Span | None = None
        self._steps = 0  # Of `_run`, after which it ends.
        self._began = 0.0
        self._version = 0  # Events of older versions are void.
        self._waking = False
        self._lease_at: float | None = None  # When it looks for leases that have ended.
        self._aborts: list[str] = []  # To be done when the step that is running has ended.
        self.forgetting = False
        """Whether its cache may lose blocks in the present run, which `settle` tells."""

    def submit(self, sequence: Sequence, now: float, remote_tokens: int | None = None) -> None:
        """Queue a sequence, whose first `remote_tokens` come from another worker. ValueError as `Engine.add` has it."""
        if remote_tokens is None:
            self.engine.add(sequence, now)
        else:
            self.engine.admit_with_remote_kv(sequence, remote_tokens, now)
        if self._run is not None:
            self._cut(self._run, now)
        elif self._flight is None:
            self._wake_at(now)

    def remote(self, sequence_id: str, arrived: bool, now: float) -> None:
        """The KV of a sequence that `wanted` it is here, or will not come."""
        if arrived:
            self.engine.remote_kv_arrived(sequence_id)
        else:
            self.engine.remote_kv_failed(sequence_id)
        self._look_up(now)

    def release(self, sequence_id: str, now: float) -> bool:
        """Another worker has the blocks that a prefill leg left here. False when their lease is over."""
        self.engine.expire(now)
        released = self.engine.release(sequence_id)
        self._look_up(now)
        return released

    def abort(self, sequence_id: str, now: float) -> None:
        """End a sequence that nobody waits for, once the step that is running has ended."""
        self._aborts.append(sequence_id)
        if self._run is not None:
            self._cut(self._run, now)
        elif self._flight is None:
            self._abort_now(now)
            self._wake_at(now)

    def set_speed(self, slowdown: float, clock: float, now: float) -> None:
        """Be as fast as this from the next step on (see `Engine.set_speed`)."""
        self.settle(now)
        self._speed = slowdown, clock
        self.engine.set_speed(slowdown, clock)
        if self._run is not None:
            self._cut(self._run, now)

    def generated(self) -> dict[str, int]:
        """Output tokens of every sequence in the engine; `settle` it first."""
        return {active.id: active.generated for active in self.engine.living()}

    def crash(self, now: float) -> tuple[Lost, ...]:
        """Lose the engine and all it holds: the sequences that were in it."""
        self.settle(now)
        lost = tuple(Lost(active.id, active.generated, active.cached_tokens) for active in self.engine.living())
        if self._flight is not None or self._run is not None:
            prompt = self._flight.prompt_tokens if self._flight is not None else 0
            self.meter.pass_over(prompt, (now - self._began) * 1e3)
        self.steps_before += self.engine.stats().steps
        self.engine = Engine(self.spec.config, self.spec.profile, tells_all=False)
        self.engine.set_speed(*self._speed)
        self._flight = self._run = None
        self.forgetting = False
        self._aborts.clear()
        self._version += 1
        self.life += 1
        self.alive, self.ready_since = False, None
        self.prompt_ended = self.output_ended = 0
        return lost

    def settle(self, now: float) -> None:
        """Bring the engine to the state it has at `now` within a run, for whoever looks at it or breaks it off."""
        run = self._run
        if run is None:
            return
        done = run.begun((now - self._began) * 1e3) - 1
        if done:
            passed = run.milliseconds(done)
            self._began += passed / 1e3
            self.meter.pass_over(0, passed)
            self._run, self._steps = run.after(done), self._steps - done
            events = self.engine.advance(run, done, self._began).events
            if events:
                self._listener.cached(self.slot, events)

    def restart(self, now: float) -> None:
        """The engine is up, or back, with an empty cache."""
        self.alive, self.ready_since = True, now

    def held_seconds(self, now: float) -> float:
        """How long it has held its accelerators."""
        return max(0.0, min(now, self.gone_s) - self.born_s)

    @property
    def steps(self) -> int:
        """Engine steps so far."""
        return self.steps_before + self.engine.stats().steps

    def spent(self, now: float) -> tuple[float, float]:
        """Seconds in passes and joules up to `now`, the pass that is running counted as far as it is."""
        busy, joules = self.meter.busy_seconds, self.meter.busy_joules
        if self._flight is not None or self._run is not None:
            prompt = self._flight.prompt_tokens if self._flight is not None else 0
            busy, joules = busy + now - self._began, joules + self.meter.draw(prompt) * (now - self._began)
        return busy, joules + self.meter.idle_watts * (self.held_seconds(now) - busy)

    def _look_up(self, now: float) -> None:
        """Something has changed that the next step may heed."""
        if self._run is not None:
            self._cut(self._run, now)
        elif self._flight is None:
            self._wake_at(now)

    def _wake_at(self, now: float) -> None:
        """Look round once everything of this instant has happened."""
        if not self._waking:
            self._waking = True
            self._events.at(now, WAKE, self.number, self._wake)

    def _wake(self, now: float, _: int) -> None:
        self._waking = False
        if self._flight is not None or self._run is not None:
            return
        self._began = now
        if self.meter.clock != self._speed[1]:
            self.meter.set_clock(self._speed[1])
        span = None if self.walk else self.engine.span()
        if span is not None:
            self._run, self._steps = span, span.steps
            self.forgetting = self.engine.may_forget(span)
            self._end_after(span.milliseconds(span.steps))
            return
        step = self.engine.schedule(now)
        if step is not None:
            self._flight = step
            self._end_after(step.duration_ms)
        elif len(self.engine.leases):
            self._wake_for_lease()
        if self.engine.scheduler.transfers:
            for transfer in self.engine.take_transfers():
                self._listener.wanted(self, transfer, now)

    def _wake_for_lease(self) -> None:
        """Look round when the next lease ends: somebody may wait for its blocks."""
        at = self.engine.next_wakeup()
        if at is not None and (self._lease_at is None or at < self._lease_at):
            self._lease_at = at
            self._events.at(at, LEASE, self.number, self._lease_over)

    def _lease_over(self, now: float, _: int) -> None:
        if self._lease_at is not None and now >= self._lease_at:
            self._lease_at = None
        if self._run is None and self._flight is None:
            self._wake_at(now)

    def _abort_now(self, now: float) -> None:
        for name in self._aborts:
            self.engine.abort(name, now)
            self._listener.aborted(self, name, now)
        self._aborts.clear()

    def _end_after(self, milliseconds: float) -> None:
        self._version += 1
        self._events.at(self._began + milliseconds / 1e3, STEP_ENDED, self.number, self._ended, self._version)

    def _cut(self, run: Span, now: float) -> None:
        steps = run.begun((now - self._began) * 1e3)
        if steps < self._steps and self._began + run.milliseconds(steps) / 1e3 >= now:
            self._steps = steps
            self._end_after(run.milliseconds(steps))

    def _ended(self, now: float, version: int) -> None:
        if version != self._version:
            return
        if self._run is not None:
            self._end_run(self._run, now)
        elif self._flight is not None:
            self._end_step(self._flight, now)
        if self._aborts:
            self._abort_now(now)
        if self._events.alone(now) and not self._waking:
            self._wake(now, 0)
        else:
            self._wake_at(now)

    def _end_run(self, run: Span, now: float) -> None:
        self._run, self.forgetting = None, False
        self.meter.pass_over(0, run.milliseconds(self._steps))
        outputs = self.engine.advance(run, self._steps, now)
        if outputs.events:
            self._listener.cached(self.slot, outputs.events)
        for finished in outputs.finished:
            self._end(finished, now)

    def _end_step(self, step: Step, now: float) -> None:
        self._flight = None
        self.meter.pass_over(step.prompt_tokens, step.duration_ms)
        outputs = self.engine.complete(step, now)
        if outputs.events:
            self._listener.cached(self.slot, outputs.events)
        for token in outputs.tokens:
            self._listener.began(token.id, now)
        for finished in outputs.finished:
            self._end(finished, now)

    def _end(self, finished: Finished, now: float) -> None:
        self.prompt_ended += finished.prompt_tokens
        self.output_ended += finished.output_tokens
        self._listener.ended(finished, now)
