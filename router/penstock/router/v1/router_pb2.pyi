from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_COMPLETED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_CONNECT_REFUSED: _ClassVar[Outcome]
    OUTCOME_CONNECT_TIMEOUT: _ClassVar[Outcome]
    OUTCOME_RESET: _ClassVar[Outcome]
    OUTCOME_BAD_RESPONSE: _ClassVar[Outcome]
    OUTCOME_RESPONSE_TIMEOUT: _ClassVar[Outcome]
    OUTCOME_UNAVAILABLE: _ClassVar[Outcome]
    OUTCOME_CUT: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_COMPLETED: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_CONNECT_REFUSED: Outcome
OUTCOME_CONNECT_TIMEOUT: Outcome
OUTCOME_RESET: Outcome
OUTCOME_BAD_RESPONSE: Outcome
OUTCOME_RESPONSE_TIMEOUT: Outcome
OUTCOME_UNAVAILABLE: Outcome
OUTCOME_CUT: Outcome

class Worker(_message.Message):
    __slots__ = ("name", "address", "namespace", "deployment", "pool", "role", "accelerator", "domain")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    namespace: str
    deployment: str
    pool: str
    role: str
    accelerator: str
    domain: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., namespace: _Optional[str] = ..., deployment: _Optional[str] = ..., pool: _Optional[str] = ..., role: _Optional[str] = ..., accelerator: _Optional[str] = ..., domain: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockHashes(_message.Message):
    __slots__ = ("hashes", "prompt_tokens")
    HASHES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    prompt_tokens: int
    def __init__(self, hashes: _Optional[_Iterable[bytes]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class PickRequest(_message.Message):
    __slots__ = ("request_id", "model", "token_ids", "block_hashes", "prompt_tokens", "text", "max_tokens", "priority", "tenant", "deadline_ms", "lease_ttl_ms", "exclude_workers")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_WORKERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    token_ids: TokenIds
    block_hashes: BlockHashes
    prompt_tokens: int
    text: str
    max_tokens: int
    priority: int
    tenant: str
    deadline_ms: int
    lease_ttl_ms: int
    exclude_workers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., block_hashes: _Optional[_Union[BlockHashes, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., text: _Optional[str] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., lease_ttl_ms: _Optional[int] = ..., exclude_workers: _Optional[_Iterable[str]] = ...) -> None: ...

class PickResponse(_message.Message):
    __slots__ = ("request_id", "lease_id", "lease_ttl_ms", "worker", "prefill_worker", "expected_hit_tokens", "predicted_ttft_ms", "predicted_tpot_ms", "policy", "reason", "runner_up", "prompt_tokens", "address", "headers")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lease_id: str
    lease_ttl_ms: int
    worker: Worker
    prefill_worker: Worker
    expected_hit_tokens: int
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    policy: str
    reason: str
    runner_up: str
    prompt_tokens: int
    address: str
    headers: _containers.ScalarMap[str, str]
    def __init__(self, request_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., lease_ttl_ms: _Optional[int] = ..., worker: _Optional[_Union[Worker, _Mapping]] = ..., prefill_worker: _Optional[_Union[Worker, _Mapping]] = ..., expected_hit_tokens: _Optional[int] = ..., predicted_ttft_ms: _Optional[float] = ..., predicted_tpot_ms: _Optional[float] = ..., policy: _Optional[str] = ..., reason: _Optional[str] = ..., runner_up: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., address: _Optional[str] = ..., headers: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease_id", "outcome", "usage", "prefilled")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    outcome: Outcome
    usage: Usage
    prefilled: bool
    def __init__(self, lease_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., prefilled: _Optional[bool] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: _Optional[bool] = ...) -> None: ...

class PickStreamRequest(_message.Message):
    __slots__ = ("correlation_id", "pick", "release")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    PICK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    pick: PickRequest
    release: ReleaseRequest
    def __init__(self, correlation_id: _Optional[int] = ..., pick: _Optional[_Union[PickRequest, _Mapping]] = ..., release: _Optional[_Union[ReleaseRequest, _Mapping]] = ...) -> None: ...

class PickStreamResponse(_message.Message):
    __slots__ = ("correlation_id", "pick", "release", "error")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    PICK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    pick: PickResponse
    release: ReleaseResponse
    error: Refusal
    def __init__(self, correlation_id: _Optional[int] = ..., pick: _Optional[_Union[PickResponse, _Mapping]] = ..., release: _Optional[_Union[ReleaseResponse, _Mapping]] = ..., error: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("worker", "score", "picked", "terms")
    class TermsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PICKED_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    score: float
    picked: bool
    terms: _containers.ScalarMap[str, float]
    def __init__(self, worker: _Optional[str] = ..., score: _Optional[float] = ..., picked: _Optional[bool] = ..., terms: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ExplainedPick(_message.Message):
    __slots__ = ("attempt", "policy", "reason", "unit", "worker", "prefill_worker", "runner_up", "candidates", "prefill_candidates", "candidate_count", "age_ms", "prompt_tokens", "max_tokens", "expected_hit_tokens", "predicted_ttft_ms", "predicted_tpot_ms", "objective_ttft_ms", "objective_tpot_ms", "measured_hit_tokens")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    RUNNER_UP_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_COUNT_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    policy: str
    reason: str
    unit: str
    worker: str
    prefill_worker: str
    runner_up: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    prefill_candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    candidate_count: int
    age_ms: int
    prompt_tokens: int
    max_tokens: int
    expected_hit_tokens: int
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    objective_ttft_ms: float
    objective_tpot_ms: float
    measured_hit_tokens: int
    def __init__(self, attempt: _Optional[int] = ..., policy: _Optional[str] = ..., reason: _Optional[str] = ..., unit: _Optional[str] = ..., worker: _Optional[str] = ..., prefill_worker: _Optional[str] = ..., runner_up: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., prefill_candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., candidate_count: _Optional[int] = ..., age_ms: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., expected_hit_tokens: _Optional[int] = ..., predicted_ttft_ms: _Optional[float] = ..., predicted_tpot_ms: _Optional[float] = ..., objective_ttft_ms: _Optional[float] = ..., objective_tpot_ms: _Optional[float] = ..., measured_hit_tokens: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "model", "picks")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PICKS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    picks: _containers.RepeatedCompositeFieldContainer[ExplainedPick]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., picks: _Optional[_Iterable[_Union[ExplainedPick, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("model", "interval_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    interval_ms: int
    def __init__(self, model: _Optional[str] = ..., interval_ms: _Optional[int] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("worker", "ready", "withdrawn", "in_rotation", "in_flight", "outstanding_tokens", "foreign_requests", "kv_usage", "sample_age_ms")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    IN_ROTATION_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    worker: Worker
    ready: bool
    withdrawn: bool
    in_rotation: bool
    in_flight: int
    outstanding_tokens: int
    foreign_requests: float
    kv_usage: float
    sample_age_ms: int
    def __init__(self, worker: _Optional[_Union[Worker, _Mapping]] = ..., ready: _Optional[bool] = ..., withdrawn: _Optional[bool] = ..., in_rotation: _Optional[bool] = ..., in_flight: _Optional[int] = ..., outstanding_tokens: _Optional[int] = ..., foreign_requests: _Optional[float] = ..., kv_usage: _Optional[float] = ..., sample_age_ms: _Optional[int] = ...) -> None: ...

class ModelState(_message.Message):
    __slots__ = ("name", "policy", "workers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerState]
    def __init__(self, name: _Optional[str] = ..., policy: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerState, _Mapping]]] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("epoch", "models")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    models: _containers.RepeatedCompositeFieldContainer[ModelState]
    def __init__(self, epoch: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelState, _Mapping]]] = ...) -> None: ...
