"""However a stream is cut into pieces, the first content and the end are found."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.cli.replay_stream import StreamEnd, StreamWatch

EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "Été"}}]},
    {"choices": [{"delta": {"content": " x"}, "finish_reason": None}]},
    {"choices": [{"delta": {}, "finish_reason": "length"}]},
    {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}},
    },
]
STREAM = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in EVENTS) + b": ping\r\n\r\ndata: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_any_cutting_gives_the_same_facts(cuts: list[int]) -> None:
    watch = StreamWatch()
    first = STREAM.index(b"\n", STREAM.index(b"\\u00c9"))
    edges = [0, *cuts, len(STREAM)]
    expected_at = None
    for now, (start, end) in enumerate(pairwise(edges), start=1):
        watch.feed(STREAM[start:end], float(now))
        if expected_at is None and end > first:
            expected_at = float(now)
    assert watch.first_content_at == expected_at
    assert watch.end() == StreamEnd(True, "length", 7, 3, 9, None)


def test_a_long_stream_keeps_only_its_tail() -> None:
    watch = StreamWatch()
    for _ in range(10_000):
        watch.feed(b'data: {"choices":[{"text":"word"}]}\n\n', 1.0)
    assert len(watch._tail) <= 16 * 1024
    watch.feed(b'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n', 2.0)
    assert (watch.end().done, watch.end().finish_reason, watch.first_content_at) == (True, "stop", 1.0)


def test_usage_without_details_leaves_cached_tokens_unknown() -> None:
    watch = StreamWatch()
    watch.feed(
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":null}}\n\n', 1.0
    )
    assert watch.end() == StreamEnd(False, None, 1, None, 2, None)


def test_an_event_that_is_no_object_is_an_error() -> None:
    watch = StreamWatch()
    with pytest.raises(ValueError, match="no JSON object"):
        watch.feed(b"data: [1]\n\n", 1.0)
