"""The two legs' request bodies, made from the client's: bytes in, bytes out.

Only the fields that make a leg are touched; every other value stays the bytes it was, so that both engines see the
very same prompt. A decode engine ends with an assertion when the prompts differ.
"""

import msgspec
from penstock.core.wire.kv_transfer import FIELD, PREFILL_LEG

_PREFILL_PARAMS = msgspec.Raw(msgspec.json.encode(PREFILL_LEG))
_ONE, _FALSE = msgspec.Raw(b"1"), msgspec.Raw(b"false")
_NOT_IN_FIRST_LEG = ("stream_options", "min_tokens", "max_completion_tokens")

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Form(msgspec.Struct):
    """What decides whether a request can have legs."""

    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None


class _FirstAnswer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw()


class _Params(msgspec.Struct):
    do_remote_prefill: bool | None = None


_form = msgspec.json.Decoder(_Form, strict=False)
_answer = msgspec.json.Decoder(_FirstAnswer)
_params = msgspec.json.Decoder(_Params)


def can_split(body: bytes) -> bool:
    """Whether a request can be prefilled on one worker and decoded on another: one prompt, one choice.

    Several choices would each pull the same blocks, of which the first to finish lets go; prompt logprobs need the
    prompt computed where they are read. A body of an odd form is left whole: the engine says what is wrong with it.
    """
    try:
        # The form passes over names it does not know, but the legs are made of all of them.
        form = _form.decode(body if body.isascii() else body.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if not (_is_one_prompt(bytes(form.prompt)) or bytes(form.messages)[:1] == b"["):
        return False
    if (form.n or 1) > 1 or (form.best_of or 1) > 1:
        return False
    return not (form.echo or form.use_beam_search) and form.prompt_logprobs is None


def _is_one_prompt(raw: bytes) -> bool:
    """Whether a JSON value is a text or a list of token ids, seen from its first characters."""
    return raw[:1] == b'"' or (raw[:1] == b"[" and raw[1:].lstrip()[:1].isdigit())


def first_leg(body: bytes) -> bytes:
    """The body for the prefill worker: one token, not streamed, its blocks to be held."""
    fields = _object.decode(body)
    for name in _NOT_IN_FIRST_LEG:
        fields.pop(name, None)
    fields |= {"max_tokens": _ONE, "stream": _FALSE, FIELD: _PREFILL_PARAMS}
    return msgspec.json.encode(fields)


def second_leg(body: bytes, params: bytes) -> bytes:
    """The body for the decode worker: the client's, and what the first leg's answer said, untouched."""
    return msgspec.json.encode(_object.decode(body) | {FIELD: msgspec.Raw(params)})


def held_params(answer: bytes) -> bytes | None:
    """`kv_transfer_params` of a first leg's answer; None where it says nothing that a second leg could use."""
    try:
        raw = bytes(_answer.decode(answer).kv_transfer_params)
        return raw if raw and _params.decode(raw).do_remote_prefill else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
