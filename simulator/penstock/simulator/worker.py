"""One worker on the virtual clock: the simulated engine's state machine, its steps as events.

A run of decode steps is one event at the run's end. Who arrives within the run cuts it: the step that is running is
then the last one, as in life, where a batch changes between two steps only.
"""

from __future__ import annotations

from typing import Protocol

from penstock.core.engine import BlockEvent, Engine, Finished, Sequence, Span, Step
from penstock.simulator.events import STEP_ENDED, WAKE, EventQueue
from penstock.simulator.meter import Meter
from penstock.simulator.scenario import WorkerSpec

__all__ = ["Listener", "TwinWorker"]


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


class TwinWorker:
    """An engine that is driven by events. `number` is its place among the workers, from 0."""

    __slots__ = (
        "_began", "_events", "_flight", "_listener", "_run", "_steps", "_version", "_waking", "alive", "engine",
        "forgetting", "meter", "number", "slot", "spec", "steps_before", "walk",
    )  # fmt: skip

    def __init__(
        self, number: int, slot: int, spec: WorkerSpec, events: EventQueue, listener: Listener, *, walk: bool = False
    ) -> None:
        self.number, self.slot, self.spec, self.walk = number, slot, spec, walk
        self._events, self._listener = events, listener
        self.meter = Meter(spec.accelerator, spec.parallelism)
        self.alive = True
        self.engine = Engine(spec.config, spec.profile)
        self.steps_before = 0  # Steps of engines that crashed here.
        self._flight: Step | None = None
        self._run: Span | None = None
        self._steps = 0  # Of `_run`, after which it ends.
        self._began = 0.0
        self._version = 0  # Events of older versions are void.
        self._waking = False
        self.forgetting = False
        """Whether its cache may lose blocks in the present run, which `settle` tells."""

    def submit(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence. Raises ValueError as `Engine.add` does."""
        self.engine.add(sequence, now)
        if self._run is not None:
            self._cut(self._run, now)
        elif self._flight is None:
            self._wake_at(now)

    def crash(self, now: float) -> tuple[str, ...]:
        """Lose the engine and all it holds: the ids of the sequences that were in it."""
        self.settle(now)
        lost = tuple(active.id for active in self.engine.living())
        if self._flight is not None or self._run is not None:
            prompt = self._flight.prompt_tokens if self._flight is not None else 0
            self.meter.pass_over(prompt, (now - self._began) * 1e3)
        self.steps_before += self.engine.stats().steps
        self.engine = Engine(self.spec.config, self.spec.profile)
        self._flight = self._run = None
        self.forgetting = False
        self._version += 1
        self.alive = False
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

    def restart(self) -> None:
        """The engine is back, with an empty cache."""
        self.alive = True

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
        return busy, joules + self.meter.idle_watts * (now - busy)

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
            self._listener.ended(finished, now)

    def _end_step(self, step: Step, now: float) -> None:
        self._flight = None
        self.meter.pass_over(step.prompt_tokens, step.duration_ms)
        outputs = self.engine.complete(step, now)
        if outputs.events:
            self._listener.cached(self.slot, outputs.events)
        if step.prompt_tokens:
            for token in outputs.tokens:
                if not token.number:
                    self._listener.began(token.id, now)
        for finished in outputs.finished:
            self._listener.ended(finished, now)
