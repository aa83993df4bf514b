"""Stripping transfer parameters from what clients send, and reading them from what workers send."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.wire import (
    PREFILL_LEG,
    WireError,
    decode_remote_blocks,
    strip_transfer_params,
    wants_decode_leg,
    wants_prefill_leg,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=12), values, max_size=5), values, st.booleans())
def test_the_field_goes_and_the_rest_stays(fields, params, escape):
    fields.pop("kv_transfer_params", None)
    body = json.dumps({**fields, "kv_transfer_params": params}, ensure_ascii=escape).encode("utf-8", "surrogatepass")
    if b"\\ud" in body or b"\xed" in body:
        return  # lone surrogates are no JSON text that a gateway accepts
    assert json.loads(strip_transfer_params(body)) == fields


@given(st.dictionaries(st.text(max_size=12).filter(lambda k: k != "kv_transfer_params"), values, max_size=5))
def test_a_body_without_it_is_not_touched(fields):
    body = json.dumps(fields).encode()
    if b"\\ud" not in body:
        assert strip_transfer_params(body) is body


def test_a_key_hidden_behind_escapes_is_found():
    body = b'{"model":"m","kv\\u005ftransfer_params":{"do_remote_prefill":true}}'
    assert json.loads(strip_transfer_params(body)) == {"model": "m"}


def test_a_repeated_key_is_found():
    body = b'{"kv_transfer_params":1,"model":"m","kv_transfer_params":{"do_remote_prefill":true}}'
    assert json.loads(strip_transfer_params(body)) == {"model": "m"}


def test_it_is_found_in_extra_arguments():
    body = b'{"model":"m","vllm_xargs":{"kv_transfer_params":{"do_remote_prefill":true},"x":1}}'
    assert strip_transfer_params(body) == b'{"model":"m","vllm_xargs":{"x":1}}'


@pytest.mark.parametrize("extra", ["[]", '"kv_transfer_params"', "null", '{"x":"kv_transfer_params"}'])
def test_extra_arguments_without_it_stay(extra):
    body = b'{"vllm_xargs":' + extra.encode() + b"}"
    assert strip_transfer_params(body) is body


HIDDEN = '{"model":"m","kv_transfer_params":{"do_remote_prefill":true}}'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_an_encoding_that_an_engine_reads_and_we_do_not_is_refused(encoding):
    body = HIDDEN.encode(encoding)
    assert "kv_transfer_params" in json.loads(body)  # as an engine would read it
    with pytest.raises(WireError):
        strip_transfer_params(body)


@pytest.mark.parametrize("key", [b"\\ud800", b"\xed\xa0\x80"])
def test_extra_arguments_that_an_engine_reads_and_we_do_not_are_refused(key):
    body = b'{"model":"m","vllm_xargs":{"' + key + b'":1,"kv_transfer_params":"x"}}'
    assert "kv_transfer_params" in json.loads(body)["vllm_xargs"]
    with pytest.raises(WireError):
        strip_transfer_params(body)


def test_null_is_removed_too():
    assert json.loads(strip_transfer_params(b'{"kv_transfer_params":null,"a":1}')) == {"a": 1}


def test_values_of_other_fields_stay_the_bytes_they_were():
    body = b'{"temperature":1.10000000000000000001,"kv_transfer_params":{}}'
    assert strip_transfer_params(body) == b'{"temperature":1.10000000000000000001}'


def test_the_words_inside_a_text_are_no_reason_to_change_anything():
    body = b'{"prompt":"what is kv_transfer_params?"}'
    assert strip_transfer_params(body) is body


@pytest.mark.parametrize("body", [b'["kv_transfer_params"]', b'{"kv_transfer_params":', b'"\\u0041"'])
def test_what_is_no_object_is_an_error(body):
    with pytest.raises(WireError, match="JSON object"):
        strip_transfer_params(body)


def test_legs_are_told_apart():
    assert wants_prefill_leg(PREFILL_LEG)
    assert not wants_decode_leg(PREFILL_LEG)
    for nothing in (None, {}, [], "x", {"do_remote_prefill": "yes"}):
        assert not wants_prefill_leg(nothing)
        assert not wants_decode_leg(nothing)


def test_a_leg_without_an_address_is_refused_by_name():
    with pytest.raises(WireError, match="do_remote_decode"):
        decode_remote_blocks({"do_remote_prefill": True})
