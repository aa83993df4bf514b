"""Fleets and requests that the tests of picks share."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.core.fleet import Fleet, Pick, Request, Role, Worker
from penstock.router.decisions import find_policy

BLOCK = 16
PREFILL, DECODE = (10.0, 0.1, 1e-5), (20.0, 0.5, 1e-3)
HASHES = tuple(i.to_bytes(32, "big") for i in range(1, 65))
REQUEST = Request("r", "m", prompt_tokens=1024, max_tokens=100, block_hashes=HASHES)
SEEDS = st.integers(0, 2**63)


class Held:
    """An index that knows how many blocks of any prompt each slot holds, and can be taught more."""

    def __init__(self, blocks: Sequence[int] = ()) -> None:
        self.blocks = dict(enumerate(blocks))

    def longest_prefix(self, hashes: Sequence[bytes], slots: int) -> NDArray[np.int64]:
        return np.array([min(self.blocks.get(s, 0), len(hashes)) for s in range(slots)], dtype=np.int64)


def worker(number: int, role: Role = Role.PREFILL_DECODE, **more: object) -> Worker:
    known: dict[str, object] = {"prefill_ms": PREFILL, "decode_ms": DECODE, "price_per_hour": 3.6, "transfer_ms": 0.01}
    return Worker(f"w{number}", "h", number, "m", role, **known | more)  # type: ignore[arg-type]


def fleet_of(*workers: Worker, held: Sequence[int] | None = None, **more: int) -> Fleet:
    fleet = Fleet(**more)
    for each in workers:
        fleet.set_ready(fleet.add(each), True)
    if held is not None:
        fleet.index_by("m", Held(held), BLOCK)
    return fleet


def pick(fleet: Fleet, request: Request = REQUEST, policy: str = "KVAware", seed: int = 0, now: float = 0.0) -> Pick:
    answer = find_policy(policy).pick(request, fleet.view(), now, seed)
    assert isinstance(answer, Pick)
    return answer


def term(picked: Pick, name: str, slot: int) -> float:
    values = dict(picked.terms)[name]
    return float(values[picked.candidates.tolist().index(slot)])


def serve(fleet: Fleet, picked: Pick, request: Request = REQUEST) -> None:
    """Reserve as the life of a request does."""
    hit = picked.expected_hit_tokens or 0
    if picked.prefill is None:
        fleet.reserve(picked.decode, request.prompt_tokens, request.max_tokens, hit)
    else:
        fleet.reserve(picked.prefill, request.prompt_tokens, 1, hit)
        fleet.reserve(picked.decode, request.prompt_tokens, request.max_tokens, request.prompt_tokens)
