"""The KV index: which worker has how much of a prompt cached, from the engines' events or from our own picks."""

from penstock.router.decisions.kv_index.index import (
    DEFAULT_WORTH,
    SMALLEST_BUDGET,
    IndexStats,
    KVIndex,
    Tier,
    as_integers,
    tier_of,
)

__all__ = [
    "DEFAULT_WORTH",
    "SMALLEST_BUDGET",
    "IndexStats",
    "KVIndex",
    "Tier",
    "as_integers",
    "tier_of",
]
