"""Continuous batching, paged KV cache and prefix cache of one engine, as a state machine without a clock.

`Engine` is the whole of it; the other names are what goes into it and what comes out.
"""

from penstock.core.engine.active import BlockHash
from penstock.core.engine.blocks import BlockPool
from penstock.core.engine.config import BatchScheduler, EngineConfig, Preemption, SchedulingPolicy
from penstock.core.engine.engine import Engine
from penstock.core.engine.events import BlockEvent, BlockRemoved, BlockStored, CacheCleared
from penstock.core.engine.invariants import violations
from penstock.core.engine.sequence import Finished, FinishReason, Held, Sequence, Timing, Token
from penstock.core.engine.span import Span
from penstock.core.engine.stats import EngineLoad, EngineStats, PromptSources
from penstock.core.engine.step import Admission, Outputs, Step, Transfer, Work

__all__ = [
    "Admission",
    "BatchScheduler",
    "BlockEvent",
    "BlockHash",
    "BlockPool",
    "BlockRemoved",
    "BlockStored",
    "CacheCleared",
    "Engine",
    "EngineConfig",
    "EngineLoad",
    "EngineStats",
    "FinishReason",
    "Finished",
    "Held",
    "Outputs",
    "Preemption",
    "PromptSources",
    "SchedulingPolicy",
    "Sequence",
    "Span",
    "Step",
    "Timing",
    "Token",
    "Transfer",
    "Work",
    "violations",
]
