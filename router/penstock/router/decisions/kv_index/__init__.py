"""The KV index: which worker has how much of a prompt cached, from the engines' events or from our own picks."""

from penstock.router.decisions.kv_index.index import (
    DEFAULT_WORTH,
    SMALLEST_BUDGET,
    IndexStats,
    KVIndex,
    Numbers,
    Tier,
    as_integers,
    tier_of,
)
from penstock.router.decisions.kv_index.recent import RecentPicks
from penstock.router.decisions.kv_index.sequence import (
    Action,
    Apply,
    AskReplay,
    Batch,
    Clear,
    Knowledge,
    SequenceTracker,
)

__all__ = [
    "DEFAULT_WORTH",
    "SMALLEST_BUDGET",
    "Action",
    "Apply",
    "AskReplay",
    "Batch",
    "Clear",
    "IndexStats",
    "KVIndex",
    "Knowledge",
    "Numbers",
    "RecentPicks",
    "SequenceTracker",
    "Tier",
    "as_integers",
    "tier_of",
]
