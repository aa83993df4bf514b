"""The workload of a scenario file: a trace, or arrivals with lengths, conversations or agents; and who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from penstock.core.traces import Trace, drop_over_context, limit_duration, needs_spreading, scale_rate, spread_slots
from penstock.simulator.files.values import Form, Seconds
from penstock.simulator.workloads import (
    AgentShape,
    ArrivalProcess,
    LengthShape,
    SessionShape,
    Tenant,
    Workload,
    agents,
    arrivals,
    as_workload,
    closed_sessions,
    diurnal,
    fit_burstiness,
    fit_rate,
    like,
    sessions,
    spikes,
    stream_like,
    with_models,
    with_tenants,
)
from penstock.simulator.workloads.arrivals import Rate
from pydantic import Field, model_validator

__all__ = ["ArrivalsForm", "ModelsForm", "Recording", "TenantForm", "TraceForm", "WorkloadForm"]

MOST_REQUESTS = 10_000_000
LONGEST_S = 30 * 86_400.0
_OBJECTS = 200_000  # Above so many requests, those with nothing but lengths are kept as columns.

Recording = Callable[[str, bool], Trace]
"""(file as the scenario names it, whether bad lines are left out) -> the trace in it."""
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
_LENGTHS, _SESSIONS, _AGENTS = LengthShape(), SessionShape(), AgentShape()


class TraceForm(Form):
    """A recorded trace, as it was or faster."""

    file: str
    rate_scale: Factor = 1.0
    limit: Seconds | None = None
    """Only what arrives before."""
    keep_bursts: bool = False
    """Leave arrivals of one stamp in one instant."""
    skip_bad: bool = False

    def play(self, read: Recording, seed: int) -> Trace:
        """The trace: spread over its slots, scaled, cut."""
        trace = read(self.file, self.skip_bad)
        if needs_spreading(trace) and not self.keep_bursts:
            trace = spread_slots(trace, seed)
        if self.rate_scale != 1.0:
            trace = scale_rate(trace, self.rate_scale)
        return trace if self.limit is None else limit_duration(trace, self.limit)


class _DiurnalForm(Form):
    kind: Literal["Diurnal"]
    swing: Annotated[float, Field(ge=0, le=1)]
    period: Seconds = 86_400.0
    peak: Seconds = 50_400.0


class _SpikesForm(Form):
    kind: Literal["Spikes"]
    times: Annotated[float, Field(gt=0)]
    every: Seconds
    length: Seconds

    @model_validator(mode="after")
    def _possible(self) -> Self:
        spikes(1.0, self.times, self.every, self.length)
        return self


class _FittedForm(Form):
    kind: Literal["Fitted"]
    interval: Annotated[Seconds, Field(gt=0)] = 60.0


class ArrivalsForm(Form):
    """When requests, conversations or tasks come."""

    process: ArrivalProcess = ArrivalProcess.POISSON
    rate: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """A second, on average; left out: the trace's in `fit`."""
    cv: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Burstiness under Gamma; left out: the trace's in `fit`, or else 4."""
    duration: Annotated[Seconds, Field(gt=0, le=LONGEST_S)] | None = Field(default=None, alias="for")
    """Left out: as long as the trace in `fit` or `lengths`."""
    fit: str | None = None
    """A trace to have rate, burstiness and course like."""
    shape: Annotated[_DiurnalForm | _SpikesForm | _FittedForm, Field(discriminator="kind")] | None = None
    """How the rate changes; left out: not at all."""

    @model_validator(mode="after")
    def _rate_known(self) -> Self:
        if self.rate is None and self.fit is None:
            raise ValueError("give rate, or the file of a trace to fit it to")
        if isinstance(self.shape, _FittedForm) and self.fit is None:
            raise ValueError("shape Fitted needs fit, the file of a trace")
        return self

    def times(self, read: Recording, span: float | None, seed: int) -> npt.NDArray[np.float64]:
        """Arrival times over the duration, or over `span` seconds. ValueError where neither is known."""
        fitted = None if self.fit is None else read(self.fit, False)
        seconds = self.duration or (fitted.duration_s if fitted else span)
        if not seconds:
            raise ValueError("arrivals: say for how long they go on (for: 10m)")
        found = None if fitted is None else fit_burstiness(fitted)
        rate = self.rate or (found.rate if found else 0.0)
        if rate * seconds > MOST_REQUESTS:
            raise ValueError(f"{rate * seconds:.0f} arrivals are more than {MOST_REQUESTS}; lower the rate or the time")
        cv = self.cv or (max(0.01, found.cv) if found else 4.0)
        return arrivals(self._course(rate, fitted), seconds, self.process, cv, seed)

    def _course(self, rate: float, fitted: Trace | None) -> float | Rate:
        match self.shape:
            case _DiurnalForm(swing=swing, period=period, peak=peak):
                return diurnal(rate, swing, period, peak)
            case _SpikesForm(times=times, every=every, length=length):
                # The mean over a period is the rate that was asked for.
                return spikes(rate / (1 + (times - 1) * length / every), times, every, length)
            case _FittedForm(interval=interval) if fitted is not None:
                course, mean = fit_rate(fitted, interval), len(fitted.requests) / max(fitted.duration_s, 1e-9)
                return lambda at: course(at) * (rate / mean)
            case _:
                return rate


class LengthsForm(Form):
    """Tokens of prompts and outputs: a trace's pairs, or log-normal ones."""

    like: str | None = None
    """File of a trace."""
    skip_bad: bool = False
    input_tokens: Annotated[float, Field(ge=1)] = _LENGTHS.input_tokens
    output_tokens: Annotated[float, Field(ge=1)] = _LENGTHS.output_tokens
    input_sigma: Annotated[float, Field(ge=0, le=5)] = _LENGTHS.input_sigma
    output_sigma: Annotated[float, Field(ge=0, le=5)] = _LENGTHS.output_sigma
    max_tokens: Annotated[int, Field(ge=1)] = _LENGTHS.max_tokens


class SessionsForm(Form):
    """Conversations; arrivals are their beginnings."""

    closed: bool = False
    """Whether a turn waits for the end of the answer before, and its user thinks after that."""

    turns: Annotated[float, Field(ge=1)] = _SESSIONS.turns
    input_tokens: Annotated[float, Field(ge=1)] = _SESSIONS.input_tokens
    output_tokens: Annotated[float, Field(ge=1)] = _SESSIONS.output_tokens
    think: Annotated[Seconds, Field(gt=0)] = _SESSIONS.think_s
    sigma: Annotated[float, Field(ge=0, le=5)] = _SESSIONS.sigma
    system_prompts: Annotated[int, Field(ge=1)] = _SESSIONS.system_prompts
    system_tokens: Annotated[int, Field(ge=0)] = _SESSIONS.system_tokens
    block_tokens: Annotated[int, Field(ge=1)] = _SESSIONS.block_tokens
    max_context: Annotated[int, Field(ge=2)] = _SESSIONS.max_context


class AgentsForm(Form):
    """Tasks whose calls wait for calls; arrivals are their beginnings."""

    rounds: Annotated[float, Field(ge=0)] = _AGENTS.rounds
    fan_out: Annotated[float, Field(ge=1)] = _AGENTS.fan_out
    input_tokens: Annotated[float, Field(ge=1)] = _AGENTS.input_tokens
    output_tokens: Annotated[float, Field(ge=1)] = _AGENTS.output_tokens
    tool: Seconds = _AGENTS.tool_s
    sigma: Annotated[float, Field(ge=0, le=5)] = _AGENTS.sigma
    system_tokens: Annotated[int, Field(ge=0)] = _AGENTS.system_tokens
    block_tokens: Annotated[int, Field(ge=1)] = _AGENTS.block_tokens
    max_context: Annotated[int, Field(ge=2)] = _AGENTS.max_context

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.make(AgentShape)
        return self


class TenantForm(Form):
    """Somebody whose requests go by one priority."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    share: Annotated[float, Field(gt=0)] = 1.0
    priority: int = 0


class ModelsForm(Form):
    """Models or adapters by falling popularity."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    exponent: Annotated[float, Field(ge=0, le=8)] = 1.0


class WorkloadForm(Form):
    """Exactly one of `trace` and `arrivals`; with arrivals at most one of `lengths`, `sessions` and `agents`."""

    trace: TraceForm | None = None
    arrivals: ArrivalsForm | None = None
    lengths: LengthsForm | None = None
    sessions: SessionsForm | None = None
    agents: AgentsForm | None = None
    tenants: tuple[TenantForm, ...] = ()
    models: ModelsForm | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.trace is None) == (self.arrivals is None):
            raise ValueError("give either trace or arrivals")
        made = [name for name in ("lengths", "sessions", "agents") if getattr(self, name) is not None]
        if self.trace is not None and made:
            raise ValueError(f"{made[0]} goes with arrivals; a trace has its own")
        if len(made) > 1:
            raise ValueError(f"{' and '.join(made)} exclude each other; give one")
        closed = "agents" if self.agents else "closed sessions" if self.sessions and self.sessions.closed else None
        if closed and (self.tenants or self.models):
            raise ValueError(f"{closed} have neither tenants nor models; drop those")
        return self

    def spreads_slots(self, read: Recording) -> bool:
        """Whether arrivals that a trace stamps alike are spread over their slot."""
        form = self.trace
        return form is not None and not form.keep_bursts and needs_spreading(read(form.file, form.skip_bad))

    def make_workload(self, read: Recording, max_context: int, seed: int) -> tuple[Workload, int]:
        """The workload, and how many requests were dropped as longer than `max_context`.

        The same seed makes the same. ValueError where nothing arrives or a length of time is missing.
        """
        made = self._closed(read, seed) or self._long(read, max_context, seed)
        if made is not None:
            return made, 0
        trace, dropped = drop_over_context(self._trace(read, seed), max_context)
        if not trace.requests:
            raise ValueError("no request is left to play: raise the rate, the time, the limit or the context")
        if self.tenants:
            trace = with_tenants(trace, [Tenant(**tenant.model_dump()) for tenant in self.tenants], seed)
        if self.models is not None:
            trace = with_models(trace, self.models.names, self.models.exponent, seed)
        return as_workload(trace), dropped

    def _closed(self, read: Recording, seed: int) -> Workload | None:
        if self.arrivals is None:
            return None
        if self.agents is not None:
            return agents(self.arrivals.times(read, None, seed), self.agents.make(AgentShape), seed)
        if self.sessions is not None and self.sessions.closed:
            return closed_sessions(self.arrivals.times(read, None, seed), self.sessions.make(SessionShape), seed)
        return None

    def _long(self, read: Recording, max_context: int, seed: int) -> Workload | None:
        """Columns, where there are many requests with nothing but lengths and all of those fit."""
        if self.arrivals is None or self.lengths is None or self.lengths.like is None or self.tenants or self.models:
            return None
        lengths = read(self.lengths.like, self.lengths.skip_bad)
        times = self.arrivals.times(read, lengths.duration_s, seed)
        if len(times) < _OBJECTS or lengths.longest_tokens > max_context:
            return None
        return stream_like(lengths, times, seed)

    def _trace(self, read: Recording, seed: int) -> Trace:
        if self.trace is not None:
            return self.trace.play(read, seed)
        if self.arrivals is None:
            raise ValueError("give either trace or arrivals")
        if self.sessions is not None:
            return sessions(self.arrivals.times(read, None, seed), self.sessions.make(SessionShape), seed)
        form = self.lengths or LengthsForm()
        if form.like is not None:
            recorded = read(form.like, form.skip_bad)
            return like(recorded, self.arrivals.times(read, recorded.duration_s, seed), seed)
        return form.make(LengthShape).draw(self.arrivals.times(read, None, seed), seed)
