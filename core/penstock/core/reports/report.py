"""The report of a run of requests: one form for the replay against a real gateway and for the twin.

Made from outcomes by `summarise`; `to_dict` gives the JSON form. A figure that was not measured is None (null in
JSON), never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.core.reports.outcomes import Outcome, Verdict
from penstock.core.reports.statistics import Summary

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """How the requests that were sent ended; the last three add up to the first."""

    total: int
    completed: int
    failed: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did to its requests. Times in seconds; ratios from 0 to 1."""

    requests: RequestCounts
    ttft_seconds: Summary
    tpot_seconds: Summary
    e2e_seconds: Summary
    attainment: float | None
    """Share of all requests sent that completed within both objectives; rejected and failed ones miss them."""
    prefix_hit_ratio: float | None
    """Cached prompt tokens / prompt tokens, over the completed requests whose engine says both."""
    duration_seconds: float
    """From the first request sent to the last outcome."""
    errors: dict[str, int] = field(default_factory=dict)
    """Requests by kind of error, most frequent first."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    short_outputs: int = 0
    """Completed with fewer tokens than asked for: the engine ended them by itself."""
    schedule_lag_seconds: Summary = field(default_factory=lambda: Summary.of(()))
    """How late requests were sent against the trace: the sender's own fault, not the server's."""
    objectives: dict[str, float] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    """What was run: trace, seed, scale, what was dropped."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Read the JSON form back. Raises ValueError when it is of another version or lacks a part."""
        if data.get("version") != SCHEMA_VERSION:
            raise ValueError(f"report version {data.get('version')!r} is not {SCHEMA_VERSION}")
        values = {key: value for key, value in data.items() if key != "version"}
        try:
            values["requests"] = RequestCounts(**values["requests"])
            for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds", "schedule_lag_seconds"):
                values[name] = Summary(**values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"is no report: {error}") from None


def summarise(
    outcomes: Sequence[Outcome], *, ttft_objective_s: float, tpot_objective_s: float, run: dict[str, Any] | None = None
) -> Report:
    """The report of these outcomes against these objectives. Pure; the order of outcomes does not matter."""
    done = [o for o in outcomes if o.verdict is Verdict.COMPLETED]
    return Report(
        requests=count(outcomes),
        ttft_seconds=Summary.of(o.ttft_s for o in done if o.ttft_s is not None),
        tpot_seconds=Summary.of(o.tpot_s for o in done if o.tpot_s is not None),
        e2e_seconds=Summary.of(o.e2e_s for o in done if o.e2e_s is not None),
        attainment=_attainment(outcomes, ttft_objective_s, tpot_objective_s),
        prefix_hit_ratio=_prefix_hit_ratio(done),
        duration_seconds=_duration(outcomes),
        errors=dict(Counter(o.error for o in outcomes if o.error is not None).most_common()),
        prompt_tokens=sum(o.prompt_tokens or 0 for o in done),
        output_tokens=sum(o.output_tokens or 0 for o in done),
        short_outputs=sum(o.output_tokens is not None and o.output_tokens < o.asked_tokens for o in done),
        schedule_lag_seconds=Summary.of(o.lag_s for o in outcomes),
        objectives={"ttft_seconds": ttft_objective_s, "tpot_seconds": tpot_objective_s},
        run=run or {},
    )


def count(outcomes: Sequence[Outcome]) -> RequestCounts:
    """How many ended in which way."""
    verdicts = Counter(o.verdict for o in outcomes)
    return RequestCounts(
        len(outcomes), verdicts[Verdict.COMPLETED], verdicts[Verdict.FAILED], verdicts[Verdict.REJECTED]
    )


def _attainment(outcomes: Sequence[Outcome], ttft_s: float, tpot_s: float) -> float | None:
    return sum(o.meets(ttft_s, tpot_s) for o in outcomes) / len(outcomes) if outcomes else None


def _prefix_hit_ratio(done: Sequence[Outcome]) -> float | None:
    told = [(o.cached_tokens, o.prompt_tokens) for o in done if o.cached_tokens is not None and o.prompt_tokens]
    total = sum(prompt for _, prompt in told if prompt)
    return sum(cached for cached, _ in told) / total if total else None


def _duration(outcomes: Sequence[Outcome]) -> float:
    if not outcomes:
        return 0.0
    return max(o.sent_s + (o.e2e_s or 0.0) for o in outcomes) - min(o.sent_s for o in outcomes)
