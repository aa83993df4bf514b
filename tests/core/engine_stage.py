"""An engine of a few blocks, and steps of it that are checked for lost or doubled blocks."""

from collections.abc import Callable

from penstock.core.engine import (
    Engine,
    EngineConfig,
    Finished,
    Outputs,
    Sequence,
    Step,
    violations,
)
from penstock.core.models import LatencyProfile, ProfileSource

PROFILE = LatencyProfile((2, 0.1, 1e-5), (5, 0.2, 1e-3), ProfileSource.BENCHMARK, "made up")


def make(num_blocks: int = 64, block_size: int = 4, **limits: object) -> Engine:
    options = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 64} | limits
    block_hash: Callable[[str, int], int] | None = options.pop("block_hash", None)
    return Engine(EngineConfig(num_blocks=num_blocks, block_size=block_size, **options), PROFILE, block_hash)


def prompt(name: str, tokens: int, out: int = 4, stem: str = "", **options: object) -> Sequence:
    """A sequence whose blocks of 4 are named after `stem`: equal stems share their prefix."""
    hashes = tuple(hash((stem or name, index)) for index in range(tokens // 4))
    return Sequence(name, tokens, out, block_hashes=hashes, **options)


def step(engine: Engine, now: float) -> tuple[Step, Outputs, float]:
    made = engine.schedule(now)
    assert made is not None
    end = now + made.duration_ms / 1e3
    outputs = engine.complete(made, end)
    assert violations(engine) == []
    return made, outputs, end


def run(engine: Engine, now: float = 0.0) -> tuple[list[Finished], list[Step], float]:
    finished: list[Finished] = []
    steps: list[Step] = []
    while True:
        made = engine.schedule(now)
        if made is None:
            return finished, steps, now
        now += made.duration_ms / 1e3
        finished += engine.complete(made, now).finished
        assert violations(engine) == []
        steps.append(made)
        assert len(steps) < 10_000, "the engine makes no progress"
