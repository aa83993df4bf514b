"""The fuzzer against a whole router, for a few seconds; `make fuzz` lets it run for ten minutes."""

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import grpc
import msgspec
import pytest
from grpc_stage import serving
from penstock.core.tokens.errors import PromptError
from penstock.core.tokens.requests import read_request
from penstock.core.wire import WireError, decode_changes, strip_transfer_params
from penstock.router.decisions.leg_forms import can_split

SECONDS = 120.0 if os.environ.get("PENSTOCK_FULL") == "1" else 6.0


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """The fuzzer as a module."""
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "hack/fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


async def test_a_router_holds_against_events_messages_and_bodies(fuzz: ModuleType) -> None:
    told = await fuzz.attack(SECONDS, seed=7)
    assert told["faults"] == []
    # Each input was attacked, and something of it was well enough to be taken.
    assert min(told["sent"][kind] for kind in ("events", "proto", "gateway", "sockets")) > 10
    assert {"HTTP 200", "HTTP 400", "gRPC OK", "gRPC INVALID_ARGUMENT"} <= told["answers"].keys()


def test_the_fuzzer_tears_and_twists(fuzz: ModuleType) -> None:
    rng = random.Random(1)
    assert len({fuzz.torn(rng, b"some bytes to be torn") for _ in range(50)}) > 20
    assert len({repr(fuzz.twisted(rng, {"a": [1, {"b": 2}], "c": "d"})) for _ in range(50)}) > 20


BAD_UTF8 = b'{"model":"m","prompt":"' + b"x" * 9 + b'","\xad":1,"kv_transfer_params":{}}'


def test_bad_utf8_is_an_error_of_the_callers_everywhere() -> None:
    with pytest.raises(WireError):
        strip_transfer_params(BAD_UTF8)
    assert not can_split(BAD_UTF8)
    with pytest.raises(PromptError):
        read_request(b'{"model":"m","prompt":"\xad"}', chat=False)
    event = msgspec.msgpack.encode([1.0, [{"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}], 0])
    with pytest.raises(WireError):
        decode_changes(event.replace(b"GPU", b"G\xadU"))


@pytest.mark.parametrize("method", ["Pick", "Release", "Explain", "Watch"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(method: str) -> None:
    async with serving(workers=1) as here, grpc.aio.insecure_channel(here.address) as channel:
        path = f"/penstock.router.v1.Router/{method}"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            if method == "Watch":
                await anext(aiter(channel.unary_stream(path)(b"\xff", timeout=10)))
            else:
                await channel.unary_unary(path)(b"\xff", timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"no {method}Request" in str(refused.value.details())
