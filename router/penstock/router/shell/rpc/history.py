"""The last picks, remembered so that somebody can ask why a request went where it went.

Remembering costs a few references: the decision's own arrays are kept as they are, and names are looked up in a list
that is made once for each epoch of the fleet. Sorting and naming wait until somebody asks.
"""

from collections import OrderedDict
from dataclasses import dataclass

from penstock.core.fleet import Fleet, Pick, Request
from penstock.router.shell.rpc.forms import explain_candidates
from penstock.router.v1 import router_pb2

_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Remembered:
    """One pick, and what its slots were called then."""

    pick: Pick
    request: Request
    tenant: str
    attempt: int
    at_ms: int
    names: dict[int, str]


class History:
    """A bounded memory of picks by request id; a request that is picked for again replaces its earlier pick."""

    def __init__(self, fleet: Fleet, limit: int) -> None:
        """Remember at most `limit` picks; 0 remembers none."""
        self._fleet = fleet
        self._limit = limit
        self._picks: OrderedDict[str, Remembered] = OrderedDict()
        self._names: dict[int, str] = {}
        self._epoch = -1

    def __len__(self) -> int:
        """Picks remembered now."""
        return len(self._picks)

    def remember(self, pick: Pick, request: Request, tenant: str, at_ms: int) -> None:
        """Keep a pick, and forget the oldest beyond the limit. `at_ms` is Unix time in milliseconds."""
        if not self._limit:
            return
        before = self._picks.pop(request.id, None)
        attempt = 1 if before is None else before.attempt + 1
        self._picks[request.id] = Remembered(pick, request, tenant, attempt, at_ms, self._current_names())
        if len(self._picks) > self._limit:
            self._picks.popitem(last=False)

    def explain(self, request_id: str) -> router_pb2.ExplainResponse | None:
        """Why this request went where it went; `None` when it is not remembered."""
        known = self._picks.get(request_id)
        return None if known is None else _explained(known)

    def _current_names(self) -> dict[int, str]:
        if self._epoch != self._fleet.epoch:
            self._names = {slot: name for name, slot in self._fleet.workers().items()}
            self._epoch = self._fleet.epoch
        return self._names


def _explained(known: Remembered) -> router_pb2.ExplainResponse:
    pick, request, names = known.pick, known.request, known.names
    ordered = explain_candidates(pick)
    shown = ordered[:_SHOWN]
    if all(slot != pick.decode for slot, _ in shown):
        shown[-1] = (pick.decode, pick.score)
    return router_pb2.ExplainResponse(
        request_id=request.id,
        model=request.model,
        policy=pick.policy,
        reason=str(pick.reason),
        unit=pick.unit,
        candidates=[
            router_pb2.Candidate(worker=names[slot], score=score, picked=slot == pick.decode) for slot, score in shown
        ],
        candidate_count=len(ordered),
        picked_at_ms=known.at_ms,
        door="grpc",
        tenant=known.tenant,
        attempt=known.attempt,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        expected_hit_tokens=pick.expected_hit_tokens,
        predicted_ttft_ms=pick.predicted_ttft_ms,
        predicted_tpot_ms=pick.predicted_tpot_ms,
        prefill_worker="" if pick.prefill is None else names[pick.prefill],
    )
