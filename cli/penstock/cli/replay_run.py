"""Playing a trace open-loop: each request goes out at its time, whatever the server does with the ones before.

A closed loop would wait for a slow server and so hide its slowness. The price is that requests pile up when the
server is slower than the trace; how many may be in flight is bounded, and whatever the sender itself could not
keep up with is said in the report (`lag_s`, `held_back`) instead of passing for the server's doing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from penstock.cli.replay_client import Target, Timeouts, send
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import PromptMaker, Trace, TraceRequest, as_json, as_words


class PromptForm(StrEnum):
    """How prompts are written."""

    IDS = "ids"
    """Lists of token ids: the exact length for every tokenizer."""
    WORDS = "words"
    """Words with spaces between: for an engine that takes text only and counts words."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what is sent."""

    trace: Trace
    model: str
    seed: int
    prompt_form: PromptForm = PromptForm.IDS
    max_in_flight: int = 4096
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(slots=True)
class Progress:
    """How far the run is; written by the run alone, read by whoever shows it."""

    planned: int
    sent: int = 0
    held_back: int = 0
    """Requests that had to wait for a free place among `max_in_flight`: the load was lower than the trace's."""
    interrupted: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        """Sent and not answered."""
        return self.sent - len(self.outcomes)


class BodyMaker:
    """Writes the requests' bodies."""

    def __init__(self, plan: Plan) -> None:
        self._prompts = PromptMaker(plan.seed, plan.trace.block_tokens)
        self._form = plan.prompt_form
        self._model = json.dumps(plan.model).encode()

    def body(self, request: TraceRequest, index: int) -> bytes:
        """The JSON body of a streamed completion of exactly the trace's length."""
        ids = self._prompts.token_ids(request, index)
        prompt = as_json(ids) if self._form is PromptForm.IDS else b'"' + as_words(ids).encode() + b'"'
        return (
            b'{"model":%b,"prompt":%b,"max_tokens":%d,"ignore_eos":true,"temperature":0,'
            b'"stream":true,"stream_options":{"include_usage":true}}'
        ) % (self._model, prompt, request.output_tokens)


async def replay(
    plan: Plan, target: Target, stop: asyncio.Event, progress: Progress, tick: Callable[[], None] = lambda: None
) -> None:
    """Send the whole trace and wait for every answer; `progress` holds the outcomes.

    When `stop` is set no more requests are sent, and those in flight are counted as failed (`Interrupted`).
    """
    run = _Run(plan, target, stop, progress, tick)
    await run.play()


class _Run:
    def __init__(
        self, plan: Plan, target: Target, stop: asyncio.Event, progress: Progress, tick: Callable[[], None]
    ) -> None:
        self._plan, self._target, self._stop, self._progress, self._tick = plan, target, stop, progress, tick
        self._loop = asyncio.get_running_loop()
        self._bodies = BodyMaker(plan)
        self._places = asyncio.Semaphore(plan.max_in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._start = 0.0

    async def play(self) -> None:
        stopped = self._loop.create_task(self._stop.wait())
        sender = self._loop.create_task(self._send_all())
        try:
            await asyncio.wait({sender, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                await sender
                while self._tasks and not self._stop.is_set():
                    await asyncio.wait({*self._tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            sender.cancel()
            self._progress.interrupted = self._stop.is_set()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(sender, stopped, *self._tasks, return_exceptions=True)

    async def _send_all(self) -> None:
        requests = self._plan.trace.requests
        body = self._bodies.body(requests[0], 0) if requests else b""
        self._start = time.monotonic()
        for index, request in enumerate(requests):
            await asyncio.sleep(max(0.0, self._start + request.arrival_s - time.monotonic()))
            await self._take_place()
            task = self._loop.create_task(self._one(index, request, body))
            self._progress.sent += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if index + 1 < len(requests):
                # The next body is written now, while nothing is due, so that its making delays no sending.
                body = self._bodies.body(requests[index + 1], index + 1)

    async def _take_place(self) -> None:
        if self._places.locked():
            self._progress.held_back += 1
        await self._places.acquire()

    async def _one(self, index: int, request: TraceRequest, body: bytes) -> None:
        due = self._start + request.arrival_s
        try:
            outcome = await send(
                self._target,
                body,
                index=index,
                request_id=f"replay-{self._plan.seed}-{index}",
                asked_tokens=request.output_tokens,
                due=due,
                start=self._start,
                timeouts=self._plan.timeouts,
            )
        except asyncio.CancelledError:
            outcome = self._interrupted(index, request)
        finally:
            self._places.release()
        self._progress.outcomes.append(outcome)
        self._tick()

    def _interrupted(self, index: int, request: TraceRequest) -> Outcome:
        now = time.monotonic() - self._start
        return Outcome(
            index,
            Verdict.FAILED,
            sent_s=min(now, request.arrival_s),
            lag_s=0.0,
            asked_tokens=request.output_tokens,
            error="Interrupted",
            detail="the run was ended before its answer",
        )
