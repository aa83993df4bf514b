"""The legs of a prefill/decode pair: what `kv_transfer_params` holds on the way out, back and on.

Leg 1 asks the prefill worker to keep its blocks; the answer names them; leg 2 hands that answer, untouched, to the
decode worker, which pulls. Clients must never reach these fields: a bare `{"do_remote_prefill": true}` ends a real
engine, and a forged address would make a worker read somebody else's blocks.
"""

from typing import Any

import msgspec
from penstock.core.wire.errors import WireError

FIELD = "kv_transfer_params"
_FIELD_BYTES = FIELD.encode()
_EXTRA = "vllm_xargs"
"""Where vLLM takes further arguments from, these among them."""

PREFILL_LEG: dict[str, bool] = {"do_remote_decode": True, "do_remote_prefill": False}
"""`kv_transfer_params` of leg 1."""


class RemoteBlocks(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Leg 1's answer and leg 2's `kv_transfer_params`: where the prompt's blocks lie."""

    do_remote_prefill: bool
    do_remote_decode: bool
    remote_block_ids: list[list[int]]
    """Per KV cache group, the block numbers on the prefill worker."""
    remote_engine_id: str
    remote_request_id: str
    remote_host: str
    remote_port: int
    tp_size: int = 1
    dcp_size: int = 1
    pp_size: int = 1
    remote_num_tokens: int | None = None
    """Prompt tokens the blocks cover."""
    remote_blocks_expiry_time: float | None = None
    transfer_mode: str = "pull"
    remote_prefill_cached_tokens: int | None = None


def decode_remote_blocks(params: Any) -> RemoteBlocks:
    """Read leg 2's parameters from decoded JSON; raises `WireError` naming the field that is wrong or missing."""
    try:
        return msgspec.convert(params, RemoteBlocks)
    except msgspec.ValidationError as error:
        raise WireError(f"{FIELD} of a decode leg cannot be used: {error}") from error


def wants_prefill_leg(params: Any) -> bool:
    """Whether decoded `kv_transfer_params` ask this worker to keep the prompt's blocks for a peer."""
    return isinstance(params, dict) and params.get("do_remote_decode") is True


def wants_decode_leg(params: Any) -> bool:
    """Whether decoded `kv_transfer_params` ask this worker to pull the prompt's blocks from a peer."""
    return isinstance(params, dict) and params.get("do_remote_prefill") is True


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def strip_transfer_params(body: bytes) -> bytes:
    """A client's JSON request body without `kv_transfer_params`, at the top or hidden in `vllm_xargs`.

    It is the very same object where it has none, which is nearly always. A key can hide behind JSON escapes, so a
    body with a `\\u` escape is looked at as well. Values of other fields stay the bytes they were. Raises `WireError`
    where the body must be looked at and is not a JSON object, and where an engine could read what is not seen here:
    Python's `json.loads` takes UTF-16, UTF-32 and lone surrogates, too.
    """
    if 0 in body[:4]:
        raise WireError("the request body is not UTF-8; send JSON in UTF-8")
    if _FIELD_BYTES not in body and b"\\u" not in body:
        return body
    try:
        fields = _fields.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"the request body is not a JSON object: {error}") from error
    found = fields.pop(FIELD, None) is not None
    extra = _extra_arguments(fields.get(_EXTRA))
    if extra is not None and extra.pop(FIELD, None) is not None:
        found, fields[_EXTRA] = True, msgspec.Raw(msgspec.json.encode(extra))
    return msgspec.json.encode(fields) if found else body


def _extra_arguments(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw] | None:
    if raw is None:
        return None
    try:
        return _fields.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if bytes(raw).lstrip().startswith(b"{"):
            raise WireError(f"{_EXTRA} cannot be read: {error}") from error
        return None  # not an object: the engine will say so
