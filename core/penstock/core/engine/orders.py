"""Who goes first: how each `BatchScheduler` makes up a step from the same moves.

    StallFree     every running sequence its next tokens, then who was swapped out, then new prompts, in one budget
    PrefillFirst  a step of prompts while there are any that fit, else a step of output tokens
    DecodeFirst   the running batch until it is empty, then what one step admits is the next batch

Two rules are common to all. After a preemption nobody is admitted in the same step, as blocks are short, unless nothing
runs. While sequences wait in host memory no new prompt is admitted: they come back first.
"""

from __future__ import annotations

from penstock.core.engine.active import Active
from penstock.core.engine.batch import Batch
from penstock.core.engine.config import BatchScheduler
from penstock.core.engine.scheduler import Scheduler

__all__ = ["admits_nobody", "fill"]


def fill(queues: Scheduler, batch: Batch, now: float) -> None:
    """Give the batch its work."""
    queues.put_in_order()
    order = queues.config.scheduler
    if order is BatchScheduler.PREFILL_FIRST and _fill_prompts(queues, batch, now):
        return
    queues.continue_running(batch)
    if batch.preempted and batch.members:
        return
    queues.swap_in(batch, now, prompts=order is not BatchScheduler.PREFILL_FIRST)
    fresh = not batch.members
    queues.admit_ready(batch, now)
    if order is BatchScheduler.STALL_FREE or fresh:
        queues.admit_waiting(batch, now)
    else:
        queues.admit_remote(batch, now)


def _fill_prompts(queues: Scheduler, batch: Batch, now: float) -> bool:
    """A step of prompts, and of the output that has waited too often; False, and nothing is in the batch, when none
    can run."""
    late = _late(queues)
    if len(late) >= batch.budget or not queues.has_room_for_next(late):
        return False
    batch.budget -= len(late)
    queues.continue_prompts(batch)
    if not batch.preempted:
        queues.swap_in(batch, now, decodes=False)
        queues.admit_ready(batch, now, decodes=False)
        queues.admit_waiting(batch, now)
    batch.budget += len(late)
    if not batch.members:
        return False
    working = set(map(id, batch.members))
    along = set(map(id, late))
    for active in queues.running:
        if id(active) in along:
            queues.compute(active, 1, batch)
        elif id(active) not in working and active.decodes:
            active.stalls += 1
    return True


def _late(queues: Scheduler) -> list[Active]:
    most = queues.config.max_stalls
    if most is None:
        return []
    return [active for active in queues.running if active.stalls >= most and active.decodes]


def admits_nobody(queues: Scheduler) -> bool:
    """Whether a step in which all that run decode would admit nobody. Then no later one does either, as long as nobody
    ends or gives back blocks: decoding only takes more of them."""
    if queues.ready:
        return False
    swapped = queues.host.out
    active = swapped[0] if swapped else queues.waiting.head()
    config = queues.config
    if active is None or len(queues.running) >= config.max_num_seqs:
        return True
    prefill_first = config.scheduler is BatchScheduler.PREFILL_FIRST
    beside = len(_late(queues)) if prefill_first and not swapped else len(queues.running)
    budget = config.max_num_batched_tokens - beside
    if budget <= 0:
        return True
    if swapped:
        return not queues.fits_back(active)
    if config.scheduler is BatchScheduler.DECODE_FIRST and not queues.wants_transfer(active):
        return True
    return not queues.fits(active, budget, alone=prefill_first)
