"""How long one pass of an engine takes: the one truth that planner, router, simulated engine and twin share.

A pass runs some prompt tokens, or one decode token for each of several sequences, or both. Its time in ms:

    prefill = max(a + b*T + c*S, floor(T))    T prompt tokens computed, S attention work in squared tokens
    decode  = floor(B) + b*B + c*C            B sequences, C tokens of context they look back on, summed
    mixed   = max(prefill line, floor(T+B)) + b_decode*B + c_decode*C
    floor(N) = a_decode + e * (1 - (1 - f)^N)

`floor` is the time to read the weights once: no pass is shorter, and a mixed pass reads them once for both kinds.
Its second term is for mixtures of experts: N tokens touch that share of the routed experts (f = active / routed),
whose whole reading takes e ms; dense models have e = 0.

S for a whole prompt of n tokens is n^2; for a chunk of n tokens after p already in the cache it is (p+n)^2 - p^2, so
that chunks of a prompt sum to the whole (`attention_work`).

Least squares can give a negative intercept or slope where the data do not pin it. A pass that gets faster by getting
larger is no model of an engine, so a negative coefficient counts as 0 and the floor keeps small passes honest: every
time below is positive and never falls when an argument grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["Coefficients", "LatencyProfile", "ProfileSource", "attention_work"]

Array = npt.NDArray[np.float64]
Coefficients = tuple[float, float, float]
Number = float | int

_LEAST_MS = 1e-3  # No engine makes a pass in under a microsecond; keeps a virtual clock moving.


class ProfileSource(StrEnum):
    """Where coefficients come from, in order of trust."""

    ONLINE = "Online"
    BENCHMARK = "Benchmark"
    CATALOGUE = "Catalogue"
    ROOFLINE = "Roofline"

    @property
    def trust(self) -> int:
        """0 is the most trusted."""
        return list(ProfileSource).index(self)


def attention_work(new_tokens: Number, cached_tokens: Number = 0) -> float:
    """Squared tokens of attention for `new_tokens` that follow `cached_tokens`; chunks sum to the whole."""
    return float(new_tokens) * (float(new_tokens) + 2.0 * float(cached_tokens))


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Latency of one worker: (model, accelerator, parallelism, engine). Coefficients in ms, see the module."""

    prefill: Coefficients
    """(a, b, c): ms, ms per prompt token, ms per squared token."""
    decode: Coefficients
    """(a, b, c): ms, ms per sequence, ms per token of context."""
    source: ProfileSource
    provenance: str
    """Where the figures stand in public, or how they were made."""
    experts: tuple[float, float] = (0.0, 0.0)
    """(e, f): ms to read all routed experts, share of them one token visits. (0, 0): dense."""

    def __post_init__(self) -> None:
        for name, values, size in (
            ("prefill", self.prefill, 3),
            ("decode", self.decode, 3),
            ("experts", self.experts, 2),
        ):
            if len(values) != size or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
                raise ValueError(f"latency profile: {name} must be {size} finite numbers, not {values!r}")
            object.__setattr__(self, name, tuple(max(float(v), 0.0) for v in values))
        if not 0.0 <= self.experts[1] <= 1.0:
            raise ValueError(f"latency profile: the share of experts a token visits is {self.experts[1]}; at most 1")

    @overload
    def floor_ms(self, tokens: Number) -> float: ...
    @overload
    def floor_ms(self, tokens: Array) -> Array: ...
    def floor_ms(self, tokens: Number | Array) -> float | Array:
        """ms to read the weights that a pass over `tokens` tokens touches."""
        whole, fraction = self.experts
        base = max(self.decode[0], _LEAST_MS)
        if whole == 0.0:
            return base if not isinstance(tokens, np.ndarray) else np.full(tokens.shape, base)
        return base + whole * (1.0 - (1.0 - fraction) ** tokens)

    @overload
    def prefill_ms(self, tokens: Number, squares: Number | None = None) -> float: ...
    @overload
    def prefill_ms(self, tokens: Array, squares: Array | None = None) -> Array: ...
    def prefill_ms(self, tokens: Any, squares: Any = None) -> Any:
        """ms of a pass over `tokens` prompt tokens; 0 for none. `squares` is S, by default one whole prompt's."""
        return self.step_ms(tokens, tokens * tokens if squares is None else squares, tokens * 0, tokens * 0)

    @overload
    def decode_ms(self, batch: Number, context: Number) -> float: ...
    @overload
    def decode_ms(self, batch: Array, context: Array) -> Array: ...
    def decode_ms(self, batch: Any, context: Any) -> Any:
        """ms of a pass that gives each of `batch` sequences one token; `context` is the sum of their lengths."""
        if isinstance(batch, np.ndarray) or isinstance(context, np.ndarray):
            return self.step_ms(batch * 0, batch * 0, batch, context)
        return self.floor_ms(batch) + self.decode[1] * batch + self.decode[2] * context if batch > 0 else 0.0

    @overload
    def step_ms(self, tokens: Number, squares: Number, batch: Number, context: Number) -> float: ...
    @overload
    def step_ms(self, tokens: Array, squares: Array, batch: Array, context: Array) -> Array: ...
    def step_ms(self, tokens: Any, squares: Any, batch: Any, context: Any) -> Any:
        """ms of a mixed pass (T, S, B, C of the module); 0 for an empty one. Arrays give arrays, element by element."""
        array = np.ndarray
        if (
            isinstance(tokens, array) or isinstance(squares, array) or isinstance(batch, array)
            or isinstance(context, array)
        ):  # fmt: skip  # A generator would cost more than all the rest.
            return self._step_array(*np.broadcast_arrays(tokens, squares, batch, context))
        if tokens + batch <= 0:
            return 0.0
        floor = self.floor_ms(tokens + batch)
        if tokens > 0:
            a, b, c = self.prefill
            floor = max(a + b * tokens + c * squares, floor)
        return floor + self.decode[1] * batch + self.decode[2] * context

    def _step_array(self, tokens: Any, squares: Any, batch: Any, context: Any) -> Array:
        a, b, c = self.prefill
        floor = self.floor_ms(np.asarray(tokens + batch, dtype=np.float64))
        line = np.where(tokens > 0, a + b * tokens + c * squares, 0.0)
        busy = np.maximum(line, floor) + self.decode[1] * batch + self.decode[2] * context
        return np.where(tokens + batch > 0, busy, 0.0)

    def scaled(self, prefill: float = 1.0, decode: float = 1.0) -> LatencyProfile:
        """The same worker slowed by these factors (a throttled clock is `power.throttled`)."""
        for factor in (prefill, decode):
            if not (math.isfinite(factor) and factor > 0):
                raise ValueError(f"latency profile: cannot be scaled by {factor}; use a factor above 0")
        (a, b, c), (d, e, f) = self.prefill, self.decode
        return replace(
            self,
            prefill=(a * prefill, b * prefill, c * prefill),
            decode=(d * decode, e * decode, f * decode),
            experts=(self.experts[0] * decode, self.experts[1]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a command line or a PerformanceProfile."""
        fields: dict[str, Any] = {"prefill": list(self.prefill), "decode": list(self.decode)}
        if self.experts != (0.0, 0.0):
            fields["experts"] = list(self.experts)
        return fields | {"source": self.source.value, "provenance": self.provenance}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LatencyProfile:
        """The reverse of `to_dict`; raises ValueError that names a missing, unknown or wrong field."""
        unknown = sorted(set(fields) - {"prefill", "decode", "experts", "source", "provenance"})
        if unknown:
            raise ValueError(f"latency profile: unknown field {', '.join(unknown)}")
        missing = [name for name in ("prefill", "decode") if name not in fields]
        if missing:
            raise ValueError(f"latency profile: {' and '.join(missing)} missing; give [a, b, c] in ms")
        lists = {name: fields[name] for name in ("prefill", "decode", "experts") if name in fields}
        for name, values in lists.items():
            if not isinstance(values, (list, tuple)):
                raise ValueError(f"latency profile: {name} must be a list of numbers, not {values!r}")
        return cls(
            prefill=tuple(lists["prefill"]),
            decode=tuple(lists["decode"]),
            source=ProfileSource(fields.get("source", ProfileSource.BENCHMARK)),
            provenance=str(fields.get("provenance", "")),
            experts=tuple(lists.get("experts", (0.0, 0.0))),
        )
