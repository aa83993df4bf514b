"""Decode steps at once: how many of them lie ahead of the running sequences, and letting them have happened."""

from __future__ import annotations

from penstock.core.engine.active import Active
from penstock.core.engine.scheduler import Scheduler

__all__ = ["decode", "decode_steps"]


def decode_steps(queues: Scheduler) -> tuple[int, int]:
    """How many steps the running sequences can go on with one token each, until the first of them ends or wants a
    block that is not there, and the tokens of context in the first of these steps. No steps when one of them has prompt
    to compute. Output blocks must not be cached."""
    steps, context = queues.config.max_model_len, 0
    for active in queues.running:
        total, generated = active.total, active.generated
        if not generated or active.computed + 1 != total:
            return 0, 0
        context += total
        left = active.end_at - generated
        if left < steps:
            steps = left
    return steps if _last(queues, steps) else _affordable(queues, steps), context


def decode(queues: Scheduler, steps: int, now: float) -> list[Active]:
    """Let every running sequence have computed `steps` more tokens, with the blocks that so many steps would have
    given it: those that are at their end."""
    size, ended = queues.config.block_size, []
    blocks = 0
    for active in queues.running:
        until = active.computed + steps
        if until > active.capacity:
            need = (until - active.capacity + size - 1) // size
            active.capacity += need * size
            blocks += need
        if until >= active.next_full:
            queues.cache_blocks(active, until)
        active.computed = until
        active.total = until + 1
        active.generated += steps
        active.last_token = now
        if active.generated >= active.end_at:
            ended.append(active)
    queues.pool.take(blocks)
    return ended


def _last(queues: Scheduler, steps: int) -> bool:
    """Whether the free blocks last so long."""
    size, running = queues.config.block_size, queues.running
    # Each sequence wants at most so many; only a scarce cache is worth counting.
    if len(running) * (steps // size + 1) <= queues.pool.free:
        return True
    need = sum(
        (active.computed + steps - active.capacity + size - 1) // size
        for active in running
        if active.computed + steps > active.capacity
    )
    return need <= queues.pool.free


def _affordable(queues: Scheduler, steps: int) -> int:
    """The most steps below `steps` that the free blocks last."""
    least, most = 0, steps
    while most - least > 1:
        middle = (least + most) // 2
        if _last(queues, middle):
            least = middle
        else:
            most = middle
    return least
