"""What must hold of an engine between any two calls: for tests of whatever drives one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from penstock.core.engine.active import Active, Phase
from penstock.core.engine.blocks import Block
from penstock.core.engine.engine import Engine

__all__ = ["violations"]


def violations(engine: Engine) -> list[str]:
    """One sentence per broken invariant; empty for a sound engine. Costs time in proportion to its blocks."""
    return [
        *_block_violations(engine),
        *_host_violations(engine),
        *_queue_violations(engine),
        *_sequence_violations(engine),
    ]


def _block_violations(engine: Engine) -> Iterator[str]:
    pool, size = engine.scheduler.pool, engine.config.block_size
    users, nameless = Counter[Block](), 0
    for active in engine.living():
        users.update(active.blocks)
        nameless += active.nameless(size)
    for blocks, others in engine.leases.blocks():
        users.update(blocks)
        nameless += others
    references = pool.users()
    for block in references.keys() | users.keys():
        if references.get(block) != users[block]:
            yield f"block {block} has {references.get(block)} references and {users[block]} users"
    if nameless != pool.nameless:
        yield f"{pool.nameless} blocks without a hash are in use, sequences have {nameless}"
    idle = pool.size - nameless - sum(count > 0 for count in references.values())
    if idle != pool.free:
        yield f"{idle} blocks have no user, {pool.free} are free"


def _host_violations(engine: Engine) -> Iterator[str]:
    host = engine.scheduler.host
    held = sum(active.host_blocks for active in engine.living())
    if held != host.used:
        yield f"sequences hold {held} host blocks, {host.used} are in use"
    if not 0 <= host.used <= host.size:
        yield f"{host.used} of {host.size} host blocks are in use"
    if host.out != sorted(host.out):
        yield "swapped sequences are out of order"


def _queue_violations(engine: Engine) -> Iterator[str]:
    queues = engine.scheduler
    by_phase = Counter(active.phase for active in engine.living())
    for phase, queue in (
        (Phase.WAITING, queues.waiting),
        (Phase.TRANSFERRING, queues.transferring),
        (Phase.READY, queues.ready),
        (Phase.RUNNING, queues.running),
        (Phase.SWAPPED, queues.host),
    ):
        if by_phase[phase] != len(queue):
            yield f"{by_phase[phase]} sequences are {phase.name}, {len(queue)} are in that queue"
    if len(queues.running) > engine.config.max_num_seqs:
        yield f"{len(queues.running)} sequences run, more than max_num_seqs {engine.config.max_num_seqs}"


def _sequence_violations(engine: Engine) -> Iterator[str]:
    for active in engine.living():
        yield from _one(active, engine.config.block_size)


def _one(active: Active, block_size: int) -> Iterator[str]:
    if active.total != active.sequence.prompt_tokens + active.generated:
        yield f"{active.id} knows {active.total} tokens, not its prompt and {active.generated} more"
    if not 0 <= active.computed < active.total:
        yield f"{active.id} has {active.computed} of {active.total} tokens computed: one must always be left"
    swapped = active.phase is Phase.SWAPPED
    room = active.host_blocks * block_size if swapped else active.capacity
    if active.capacity % block_size or active.nameless(block_size) < 0 or active.computed > room:
        where = f"blocks for {active.capacity}, {active.host_blocks} on the host"
        yield f"{active.id} has {active.computed} tokens in {where}"
    if not swapped and active.host_blocks:
        yield f"{active.id} is not swapped out and holds {active.host_blocks} host blocks"
    if swapped and active.capacity:
        yield f"{active.id} is swapped out and holds blocks for {active.capacity} tokens"
    if len(set(active.blocks)) != len(active.blocks):
        yield f"{active.id} uses a block twice"
    if active.phase is Phase.WAITING and active.capacity:
        yield f"{active.id} waits and holds blocks for {active.capacity} tokens"
