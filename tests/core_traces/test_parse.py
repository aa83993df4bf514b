"""Each written form is known by its content, read exactly, and a bad line is named by number and reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.traces import BadLineError, TraceFormat, TraceRequest, UnknownTraceError, parse_trace

AZURE = [
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n",
    "2023-11-16 18:15:46.6805900,374,44\r\n",
    "2023-11-16 18:15:50.9951690,396,109\r\n",
]
MOONCAKE = [
    '{"timestamp": 0, "input_length": 513, "output_length": 500, "hash_ids": [0, 1]}\n',
    '{"timestamp": 2999, "input_length": 512, "output_length": 490, "hash_ids": [0]}\n',
]
OWN = ['{"penstock_trace": 1, "block_tokens": 16}\n', '{"timestamp_ms": 5.5, "input_tokens": 9, "output_tokens": 2}\n']


def test_azure_times_are_counted_from_the_first_row() -> None:
    parsed = parse_trace(AZURE)
    assert parsed.format is TraceFormat.AZURE_CSV
    first, second = parsed.trace.requests
    assert first == TraceRequest(0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579, abs=2e-6)
    assert (parsed.trace.input_tokens, parsed.trace.output_tokens) == (770, 153)


def test_azure_times_with_an_offset_and_a_byte_order_mark_are_read() -> None:
    lines = ["\ufeff" + AZURE[0], "2024-05-10 00:00:00.009930+00:00,1,1", "2024-05-10 02:00:00.509930+02:00,1,1"]
    assert parse_trace(lines).trace.duration_s == pytest.approx(0.5)


def test_mooncake_blocks_are_kept() -> None:
    parsed = parse_trace(MOONCAKE)
    assert parsed.format is TraceFormat.MOONCAKE_JSONL
    assert parsed.trace.requests == (TraceRequest(0.0, 513, 500, (0, 1)), TraceRequest(2.999, 512, 490, (0,)))
    assert parsed.trace.block_tokens == 512


def test_own_form_with_a_header_sets_the_block_size() -> None:
    parsed = parse_trace(OWN)
    assert parsed.format is TraceFormat.PENSTOCK_JSONL
    assert parsed.trace.block_tokens == 16
    assert parsed.trace.requests == (TraceRequest(0.0, 9, 2),)


def test_own_form_without_a_header_uses_512() -> None:
    parsed = parse_trace(OWN[1:])
    assert parsed.trace.block_tokens == 512


BURST = [
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
    "5,ChatGPT,472,18,490,Conversation log\n",
    "45,ChatGPT,1087,0,1087,Conversation log\n",
    "118.5,GPT-4,417,276,693,API log\n",
]


def test_burstgpt_rows_are_read_and_failed_ones_left_out_and_counted() -> None:
    parsed = parse_trace(BURST)
    assert parsed.format is TraceFormat.BURSTGPT_CSV
    assert parsed.trace.requests == (
        TraceRequest(0.0, 472, 18, model="ChatGPT"),
        TraceRequest(113.5, 417, 276, model="GPT-4"),
    )
    assert (parsed.unanswered, parsed.skipped) == (1, ())


def test_burstgpt_columns_go_by_name() -> None:
    later = [
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "7,31,4.2,GPT-4,12,34,46,API log",
    ]
    assert parse_trace(later).trace.requests == (TraceRequest(0.0, 12, 34, model="GPT-4"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("5,ChatGPT,472,18", "line 3: has 4 columns"),
        ("soon,ChatGPT,472,18,490,API log", "line 3: Timestamp is 'soon'"),
        ("-1,ChatGPT,472,18,490,API log", "line 3: Timestamp is '-1'"),
        ("5,ChatGPT,many,18,490,API log", "line 3: Request tokens is 'many'"),
        ("5,ChatGPT,0,18,18,API log", "line 3: Request tokens is 0"),
    ],
)
def test_a_bad_burstgpt_row_is_named(row: str, reason: str) -> None:
    with pytest.raises(BadLineError, match=reason):
        parse_trace([*BURST[:2], row])
    assert len(parse_trace([*BURST[:2], row], skip_bad=True).trace.requests) == 1


def test_own_form_may_say_who_asked_for_what() -> None:
    line = '{"timestamp_ms": 0, "input_tokens": 9, "output_tokens": 2, "tenant": "a", "priority": -1, "model": "m"}'
    assert parse_trace([line]).trace.requests == (TraceRequest(0.0, 9, 2, (), "a", -1, "m"),)


@pytest.mark.parametrize("extra", ['"tenant": 5', '"priority": "high"', '"priority": true', '"model": []'])
def test_own_form_refuses_names_that_are_none(extra: str) -> None:
    with pytest.raises(BadLineError, match=extra.split('"')[1]):
        parse_trace(['{"timestamp_ms": 0, "input_tokens": 9, "output_tokens": 2, ' + extra + "}"])


def test_rows_out_of_order_are_sorted() -> None:
    parsed = parse_trace(list(reversed(MOONCAKE)))
    assert [r.arrival_s for r in parsed.trace.requests] == [0.0, 2.999]


BAD = [
    ([*AZURE[:2], "2023-11-16 18:15:50.99,abc,1"], 3, "ContextTokens is 'abc'"),
    ([*AZURE[:2], "2023-11-16 18:15:50.99,1"], 3, "2 columns"),
    ([*AZURE[:2], "yesterday,1,1"], 3, "TIMESTAMP is 'yesterday'"),
    ([*AZURE[:2], "2023-11-16 18:15:50.99,7,0"], 3, "GeneratedTokens is 0"),
    ([*AZURE[:2], "2023-11-16 18:15:50.99,7,-3"], 3, "GeneratedTokens is '-3'"),
    ([*AZURE[:2], "2023-11-16 18:15:50.99,999999999,3"], 3, "ContextTokens is 999999999"),
    ([MOONCAKE[0], "\n", "{broken"], 3, "is not JSON"),
    ([MOONCAKE[0], "[1]"], 2, "not a JSON object"),
    ([MOONCAKE[0], MOONCAKE[0].replace("[0, 1]", "[0]")], 2, "hash_ids has 1 ids"),
    ([MOONCAKE[0], MOONCAKE[0].replace("[0, 1]", '["a", 1]')], 2, "hash_ids must be a list"),
    ([MOONCAKE[0], MOONCAKE[0].replace('"timestamp": 0', '"timestamp": -1')], 2, "timestamp is -1"),
    ([MOONCAKE[0], MOONCAKE[0].replace('"timestamp": 0', '"timestamp": NaN')], 2, "timestamp is nan"),
    ([MOONCAKE[0], MOONCAKE[0].replace("513", "true")], 2, "input_length is True"),
    ([MOONCAKE[0], MOONCAKE[0].replace("513", "513.0")], 2, "input_length is 513.0"),
    ([MOONCAKE[0], '{"timestamp": 0, "output_length": 3}'], 2, "input_length is missing"),
    (
        [*OWN, '{"timestamp_ms": 0, "input_tokens": 9, "output_tokens": 2, "prefix_blocks": [1, 2]}'],
        3,
        "more than the 9",
    ),
    (['{"penstock_trace": 2}', OWN[1]], 1, "penstock_trace is 2"),
    (['{"penstock_trace": 1}', OWN[1]], 1, "block_tokens is missing"),
]


@pytest.mark.parametrize(("lines", "number", "reason"), BAD)
def test_a_bad_line_is_named_by_number_and_reason(lines: list[str], number: int, reason: str) -> None:
    with pytest.raises(BadLineError) as caught:
        parse_trace(lines)
    assert caught.value.bad.number == number
    assert reason in caught.value.bad.reason


def test_skip_bad_goes_on_and_lists_what_it_left_out() -> None:
    lines = ["garbage", *AZURE[:2], "2023-11-16 18:15:47,x,1", AZURE[2]]
    with pytest.raises(UnknownTraceError):
        parse_trace(lines)
    parsed = parse_trace(lines, skip_bad=True)
    assert [bad.number for bad in parsed.skipped] == [1, 4]
    assert len(parsed.trace.requests) == 2


@pytest.mark.parametrize("lines", [[], ["\n"], ["a,b,c", "1,2,3"], ['{"a": 1}'], ["[]"], ["\x00\x01"]])
def test_text_that_is_no_trace_is_refused(lines: list[str]) -> None:
    with pytest.raises(UnknownTraceError, match="no trace in a form we know"):
        parse_trace(lines)


def test_a_header_alone_is_no_trace() -> None:
    with pytest.raises(ValueError, match="holds no request"):
        parse_trace(AZURE[:1])


rows = st.lists(
    st.tuples(
        st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**5), st.lists(st.integers(0, 9), max_size=3)
    ),
    min_size=1,
    max_size=30,
)


@given(rows)
def test_every_row_written_is_read_back(data: list[tuple[int, int, int, list[int]]]) -> None:
    lines = ['{"penstock_trace": 1, "block_tokens": 1}'] + [
        json.dumps({"timestamp_ms": t, "input_tokens": i, "output_tokens": o, "prefix_blocks": b[:i]})
        for t, i, o, b in data
    ]
    requests = parse_trace(lines).trace.requests
    start = min(t for t, *_ in data) / 1000
    expected = sorted((t / 1000 - start, i, o, tuple(b[:i])) for t, i, o, b in data)
    assert sorted((r.arrival_s, r.input_tokens, r.output_tokens, r.prefix_blocks) for r in requests) == expected
    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)


@given(st.lists(st.text(max_size=80), max_size=20))
def test_arbitrary_text_is_refused_in_our_own_words(lines: list[str]) -> None:
    with pytest.raises(ValueError):
        parse_trace(lines, skip_bad=True)
