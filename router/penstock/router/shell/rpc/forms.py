"""Messages into what decisions read, and decisions into messages. Bad input is refused here, by field."""

import math
from dataclasses import dataclass, replace

import msgspec
from penstock.core.fleet import Failure, Fleet, Pick, Request, Scores, Slots, Worker
from penstock.core.fleet.picks import Term
from penstock.router.decisions.explain import Explained
from penstock.router.decisions.leases import Ending, Lease
from penstock.router.shell.forms import BYTES_PER_TOKEN, DEFAULT_MAX_TOKENS
from penstock.router.shell.models import ServedModel
from penstock.router.shell.rpc.refusals import invalid
from penstock.router.v1 import router_pb2

PREFILLER_HEADER = "x-prefiller-host-port"
"""What the Gateway API Inference Extension's and llm-d's convention calls the prefill worker's address."""
_MAX_NAME = 128
_MAX_EXCLUDED = 64
_SHOWN = 64
"""Candidates an explanation lists."""
_MAX_TOKENS = 1 << 30
_HASH_BYTES = (8, 32)
"""Lengths of a block hash: vLLM's 64-bit form and its 32-byte form."""

_ENDINGS: dict[int, Ending | Failure] = {
    router_pb2.OUTCOME_UNSPECIFIED: Ending.CANCELLED,
    router_pb2.OUTCOME_COMPLETED: Ending.COMPLETED,
    router_pb2.OUTCOME_CANCELLED: Ending.CANCELLED,
    router_pb2.OUTCOME_CONNECT_REFUSED: Failure.CONNECT_REFUSED,
    router_pb2.OUTCOME_CONNECT_TIMEOUT: Failure.CONNECT_TIMEOUT,
    router_pb2.OUTCOME_RESET: Failure.RESET,
    router_pb2.OUTCOME_BAD_RESPONSE: Failure.BAD_RESPONSE,
    router_pb2.OUTCOME_RESPONSE_TIMEOUT: Failure.RESPONSE_TIMEOUT,
    router_pb2.OUTCOME_UNAVAILABLE: Failure.UNAVAILABLE,
    router_pb2.OUTCOME_CUT: Ending.CUT,
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of a prompt: its tokens (perhaps an estimate) and its block hashes (perhaps none)."""

    tokens: int
    exact: bool
    hashes: tuple[bytes, ...] = ()


def check_request(message: router_pb2.PickRequest) -> None:
    """Refuse what no model could make sense of; raises `Refused` that names the field which is wrong."""
    if not message.model:
        raise invalid("model is empty; give the served name of a model")
    if len(message.tenant) > _MAX_NAME:
        raise invalid(f"tenant has {len(message.tenant)} characters; at most {_MAX_NAME} are taken")
    if message.max_tokens > _MAX_TOKENS:
        raise invalid(f"max_tokens is {message.max_tokens}; at most {_MAX_TOKENS} are taken")
    if len(message.exclude_workers) > _MAX_EXCLUDED:
        raise invalid(f"exclude_workers has {len(message.exclude_workers)} names; at most {_MAX_EXCLUDED} are taken")


def read_request(message: router_pb2.PickRequest, model: ServedModel, made_id: str, deadline: float | None) -> Request:
    """A pick's question as a request; raises `Refused` that names the field which is wrong."""
    prompt = read_prompt(message)
    return Request(
        id=_read_id(message.request_id) or made_id,
        model=model.name,
        prompt_tokens=prompt.tokens,
        max_tokens=message.max_tokens or DEFAULT_MAX_TOKENS,
        priority=message.priority,
        exact_tokens=prompt.exact,
        block_hashes=prompt.hashes,
        deadline=deadline,
        ttft_ms=model.ttft_ms,
        tpot_ms=model.tpot_ms,
    )


def _read_id(text: str) -> str:
    if len(text) > _MAX_NAME or not all("!" <= c <= "~" for c in text):
        raise invalid(
            f"request_id {text[:40]!r} is not of at most {_MAX_NAME} printable ASCII characters without spaces"
        )
    return text


def read_prompt(message: router_pb2.PickRequest) -> Prompt:
    """The prompt in whichever form it came; raises `Refused` when it is none of them or makes no sense."""
    form = message.WhichOneof("prompt")
    if form == "token_ids":
        return Prompt(_some(len(message.token_ids.ids), "token_ids.ids"), exact=True)
    if form == "prompt_tokens":
        return Prompt(_some(message.prompt_tokens, "prompt_tokens"), exact=True)
    if form == "text":
        size = len(message.text.encode())
        return Prompt(_some(size, "text") // BYTES_PER_TOKEN + 1, exact=False)
    if form == "block_hashes":
        return _read_hashes(message.block_hashes)
    raise invalid("prompt is not set; give one of token_ids, block_hashes, prompt_tokens or text")


def completion_body(message: router_pb2.PickRequest) -> bytes | None:
    """The prompt as the completion request that carries it, for a tokenizer; None where only numbers or hashes came."""
    form = message.WhichOneof("prompt")
    if form == "text":
        return msgspec.json.encode({"model": message.model, "prompt": message.text})
    if form == "token_ids":
        return msgspec.json.encode({"model": message.model, "prompt": list(message.token_ids.ids)})
    return None


def _read_hashes(message: router_pb2.BlockHashes) -> Prompt:
    hashes = tuple(message.hashes)
    if any(len(h) not in _HASH_BYTES for h in hashes):
        raise invalid("block_hashes.hashes holds a hash that has neither 8 nor 32 bytes")
    tokens = _some(message.prompt_tokens, "block_hashes.prompt_tokens")
    if len(hashes) > tokens:
        raise invalid(f"block_hashes has {len(hashes)} hashes for {tokens} tokens; a block holds at least one token")
    return Prompt(tokens, exact=True, hashes=hashes)


def _some(count: int, field: str) -> int:
    if not 0 < count <= _MAX_TOKENS:
        raise invalid(f"{field} counts {count}; a prompt has between 1 and {_MAX_TOKENS}")
    return count


def read_ending(message: router_pb2.ReleaseRequest) -> Ending | Failure:
    """How a request ended; raises `Refused` for an outcome this router does not know."""
    if not message.lease_id:
        raise invalid("lease_id is empty; give the one that Pick answered")
    ending = _ENDINGS.get(message.outcome)
    if ending is None:
        known = ", ".join(router_pb2.Outcome.keys())
        raise invalid(f"outcome {message.outcome} is not known; known are {known}")
    return ending


def worker_message(worker: Worker) -> router_pb2.Worker:
    """A worker as callers see it."""
    return router_pb2.Worker(
        name=worker.name,
        address=worker.address,
        namespace=worker.namespace,
        deployment=worker.deployment,
        pool=worker.pool,
        role=worker.role.api_name,
        accelerator=worker.accelerator,
        domain=worker.domain,
    )


def _errand(worker: Worker, prefill: Worker | None) -> tuple[str, dict[str, str] | None]:
    """Where a picked request is to be sent, and with which header fields."""
    if prefill is None or worker.sidecar_port is None:
        return worker.address, None
    return replace(worker, port=worker.sidecar_port).address, {PREFILLER_HEADER: prefill.address}


def pick_message(lease: Lease, ttl: float, fleet: Fleet) -> router_pb2.PickResponse:
    """The answer to a pick."""
    pick, request = lease.pick, lease.request
    runner_up = _runner_up(pick)
    worker = fleet.worker(pick.decode)
    prefill = None if lease.prefill is None else fleet.worker(lease.prefill)
    address, headers = _errand(worker, prefill)
    return router_pb2.PickResponse(
        request_id=request.id,
        lease_id=lease.id,
        lease_ttl_ms=round(ttl * 1000),
        worker=worker_message(worker),
        prefill_worker=None if prefill is None else worker_message(prefill),
        expected_hit_tokens=pick.expected_hit_tokens,
        predicted_ttft_ms=pick.predicted_ttft_ms,
        predicted_tpot_ms=pick.predicted_tpot_ms,
        policy=pick.policy,
        reason=str(pick.reason),
        runner_up="" if runner_up is None else fleet.worker(runner_up).name,
        prompt_tokens=request.prompt_tokens,
        address=address,
        headers=headers,
    )


def _runner_up(pick: Pick) -> int | None:
    """As `Pick.runner_up`, without sorting a thousand losers for the sake of one."""
    others = pick.candidates != pick.decode
    return int(pick.candidates[others][pick.scores[others].argmin()]) if others.any() else None


def worker_state(fleet: Fleet, slot: int, rotation: frozenset[int], now: float) -> router_pb2.WorkerState:
    """What is known of one worker now; numbers it never reported stay unset."""
    at = float(fleet.sampled_at[slot])
    usage = float(fleet.kv_usage[slot])
    sampled = not math.isnan(at)
    return router_pb2.WorkerState(
        worker=worker_message(fleet.worker(slot)),
        ready=bool(fleet.ready[slot]),
        withdrawn=bool(fleet.withdrawn[slot]),
        in_rotation=slot in rotation,
        in_flight=int(fleet.in_flight[slot]),
        outstanding_tokens=int(fleet.outstanding_tokens[slot]),
        foreign_requests=float(fleet.foreign_requests[slot]) if sampled else None,
        kv_usage=None if math.isnan(usage) else usage,
        sample_age_ms=max(0, round((now - at) * 1000)) if sampled else None,
    )


def explanation_message(known: list[Explained], now: float) -> router_pb2.ExplainResponse:
    """Every remembered pick of one request; there is at least one."""
    request = known[0].request
    return router_pb2.ExplainResponse(
        request_id=request.id, model=request.model, picks=[_explained(each, now) for each in known]
    )


def _explained(known: Explained, now: float) -> router_pb2.ExplainedPick:
    pick, request, names = known.pick, known.request, known.names
    runner_up = _runner_up(pick)
    others = pick.prefills
    return router_pb2.ExplainedPick(
        attempt=known.attempt,
        policy=pick.policy,
        reason=str(pick.reason),
        unit=pick.unit,
        worker=names[pick.decode],
        prefill_worker="" if pick.prefill is None else names[pick.prefill],
        runner_up="" if runner_up is None else names[runner_up],
        candidates=_candidates(pick.candidates, pick.scores, pick.terms, pick.decode, names),
        prefill_candidates=[]
        if others is None
        else _candidates(others.candidates, others.scores, others.terms, pick.prefill, names),
        candidate_count=int(pick.candidates.size),
        age_ms=max(0, round((now - known.at) * 1000)),
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        expected_hit_tokens=pick.expected_hit_tokens,
        measured_hit_tokens=known.measured_hit_tokens,
        predicted_ttft_ms=pick.predicted_ttft_ms,
        predicted_tpot_ms=pick.predicted_tpot_ms,
        objective_ttft_ms=request.ttft_ms,
        objective_tpot_ms=request.tpot_ms,
    )


def _candidates(
    slots: Slots, scores: Scores, terms: tuple[Term, ...], picked: int | None, names: dict[int, str]
) -> list[router_pb2.Candidate]:
    """The picked one and the best others."""
    order = sorted(range(slots.size), key=lambda i: (slots[i] != picked, scores[i], slots[i]))
    return [
        router_pb2.Candidate(
            worker=names[int(slots[i])],
            score=float(scores[i]),
            picked=int(slots[i]) == picked,
            terms={name: float(values[i]) for name, values in terms if not math.isnan(values[i])},
        )
        for i in order[:_SHOWN]
    ]
