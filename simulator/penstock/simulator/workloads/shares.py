"""Who asks and for which model: tenants with priorities, and popularity that falls as Zipf's law says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from penstock.core.traces import Trace

__all__ = ["Tenant", "expert_loads", "fit_zipf", "with_models", "with_tenants", "zipf_shares"]

_TENANTS, _MODELS, _EXPERTS = 0x74656E, 0x6D6F64, 0x657870  # Salts: what is drawn for each must not hang together.
_MODEL_STRIDE = 1 << 44
"""Apart so far are the names of different models' prefix blocks: equal prompts of two models share no KV."""
_STEEPEST = 8.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose requests go by one priority."""

    name: str
    share: float = 1.0
    """Of the requests, against the other tenants' shares."""
    priority: int = 0
    """A lower number goes first."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tenant needs a name")
        if not (math.isfinite(self.share) and self.share > 0):
            raise ValueError(f"tenant {self.name}: share is {self.share}; give a number above 0")


def with_tenants(trace: Trace, tenants: Sequence[Tenant], seed: int = 0) -> Trace:
    """The trace with each request given to a tenant by lot, according to shares. ValueError without any tenant."""
    if not tenants:
        raise ValueError("give at least one tenant")
    shares = np.array([tenant.share for tenant in tenants])
    drawn = np.random.default_rng((seed, _TENANTS)).choice(len(tenants), len(trace.requests), p=shares / shares.sum())
    owned = (
        replace(request, tenant=tenants[at].name, priority=tenants[at].priority)
        for request, at in zip(trace.requests, drawn, strict=True)
    )
    return Trace(tuple(owned), trace.block_tokens)


def with_models(trace: Trace, names: Sequence[str], exponent: float = 1.0, seed: int = 0) -> Trace:
    """The trace with each request for one of these models or adapters, the first the most popular.

    Prefix blocks are renamed by model, because KV of one is of no use to another.
    """
    if not names:
        raise ValueError("give at least one model")
    shares = zipf_shares(len(names), exponent)
    drawn = np.random.default_rng((seed, _MODELS)).choice(len(names), len(trace.requests), p=shares)
    asked = (
        replace(
            request,
            model=names[at],
            prefix_blocks=tuple(block + int(at) * _MODEL_STRIDE for block in request.prefix_blocks),
        )
        for request, at in zip(trace.requests, drawn, strict=True)
    )
    return Trace(tuple(asked), trace.block_tokens)


def zipf_shares(count: int, exponent: float = 1.0) -> npt.NDArray[np.float64]:
    """Popularity of `count` things by rank, summing to 1: the k-th goes with 1 / k ** exponent; 0 makes all alike."""
    if count < 1 or not (math.isfinite(exponent) and 0 <= exponent <= _STEEPEST):
        raise ValueError(f"Zipf over {count} with exponent {exponent} cannot be; give 1 or more, and 0 to {_STEEPEST}")
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


def fit_zipf(names: Iterable[str]) -> float:
    """The exponent under which these names are most likely, their ranks taken as counted; 0 for fewer than two.

    Maximum likelihood: the exponent at which the expected logarithm of the rank is the one that was counted.
    """
    counts = np.array(sorted(Counter(names).values(), reverse=True), dtype=np.float64)
    if len(counts) < 2:
        return 0.0
    ranks = np.log(np.arange(1, len(counts) + 1))
    counted = float((counts * ranks).sum() / counts.sum())
    low, high = 0.0, _STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        expected = float((zipf_shares(len(counts), middle) * ranks).sum())
        low, high = (middle, high) if expected > counted else (low, middle)
    return low


def expert_loads(
    layers: int, experts: int, tokens: int, exponent: float = 1.0, chosen: int = 8, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Tokens that each expert of each layer gets, shape (layers, experts), when every token goes to `chosen` of them.

    Popularity is Zipf's within a layer, and which expert is the popular one differs from layer to layer.
    """
    if not (layers >= 1 and tokens >= 0 and 1 <= chosen <= experts):
        raise ValueError(f"{chosen} of {experts} experts in {layers} layers for {tokens} tokens cannot be")
    rng = np.random.default_rng((seed, _EXPERTS))
    shares = _inclusion(zipf_shares(experts, exponent), chosen)
    loads = rng.binomial(tokens, np.stack([rng.permutation(shares) for _ in range(layers)]))
    return np.asarray(loads, dtype=np.int64)


def _inclusion(shares: npt.NDArray[np.float64], chosen: int) -> npt.NDArray[np.float64]:
    """Chance of each to be among the `chosen`: in proportion to its share, and never above 1."""
    certain = np.zeros(len(shares), dtype=bool)
    while True:
        left = chosen - int(certain.sum())
        chance = np.where(certain, 1.0, shares / max(shares[~certain].sum(), 1e-300) * left)
        over = (chance > 1.0) & ~certain
        if not over.any():
            return np.clip(chance, 0.0, 1.0)
        certain |= over
