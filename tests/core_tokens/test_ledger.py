"""The hit ledger tells what was predicted and found, rises when they part, and clears when they meet again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.tokens.ledger import AlarmRule, HitLedger, usable_tokens

RULE = AlarmRule(window=20, least=5, rise=0.10, clear=0.05)


def told(ledger: HitLedger, predicted: int, measured: int | None, times: int) -> bool:
    for _ in range(times):
        ledger.record(100, predicted, measured)
    return ledger.reading().alarm


def test_agreement_is_quiet_and_ratios_are_shares_of_prompts() -> None:
    ledger = HitLedger(RULE)
    assert not told(ledger, 48, 48, 30)
    reading = ledger.reading()
    assert (reading.requests, reading.prompt_tokens, reading.predicted_tokens) == (30, 3000, 1440)
    assert reading.predicted_ratio == reading.measured_ratio == 0.48
    assert reading.error == 0
    assert reading.message == "predicted hit ratio 0.480, measured 0.480"


def test_lost_events_raise_the_alarm_and_agreement_clears_it() -> None:
    ledger = HitLedger(RULE)
    assert not told(ledger, 0, 64, 4), "too few requests to say anything"
    assert told(ledger, 0, 64, 1)
    assert "check that engines publish KV events" in ledger.reading().message
    assert told(ledger, 64, 64, 18), "a window with two errors of 64 is above where it clears"
    assert not told(ledger, 64, 64, 2)


def test_between_its_two_limits_the_alarm_stays_as_it_is() -> None:
    quiet, loud = HitLedger(RULE), HitLedger(RULE)
    assert told(loud, 0, 64, 20)
    assert not told(quiet, 8, 0, 20)
    assert told(loud, 8, 0, 20)


def test_errors_of_both_signs_do_not_cancel() -> None:
    ledger = HitLedger(RULE)
    for _ in range(10):
        told(ledger, 0, 64, 1)
        told(ledger, 64, 0, 1)
    reading = ledger.reading()
    assert reading.predicted_ratio == reading.measured_ratio
    assert reading.alarm


def test_what_an_engine_does_not_say_is_not_zero() -> None:
    ledger = HitLedger(RULE)
    assert not told(ledger, 64, None, 50)
    reading = ledger.reading()
    assert (reading.requests, reading.unmeasured, reading.measured_ratio) == (0, 50, None)
    assert reading.message == "no request's cache hits were measured yet"


entries = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50)), max_size=60)


@given(entries)
def test_the_window_is_what_a_naive_sum_says(given_entries) -> None:
    ledger = HitLedger(RULE)
    kept = [(n, min(p, n), min(m, n)) for n, p, m in given_entries]
    for entry in kept:
        ledger.record(*entry)
    reading, last = ledger.reading(), kept[-RULE.window :]
    total = sum(n for n, _, _ in last)
    assert reading.requests == len(kept)
    assert reading.error == (sum(abs(p - m) for _, p, m in last) / total if last else None)
    assert reading.measured_tokens == sum(m for _, _, m in kept)


@pytest.mark.parametrize("entry", [(0, 0, 0), (10, 11, 0), (10, 0, 11), (10, -1, 0), (10, 0, -1)])
def test_counts_that_cannot_be_are_refused(entry) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        HitLedger().record(*entry)


@pytest.mark.parametrize("rule", [{"least": 0}, {"least": 300}, {"clear": 0.2}, {"clear": -1.0}])
def test_rules_that_could_not_work_are_refused(rule) -> None:
    with pytest.raises(ValueError, match="must lie from"):
        AlarmRule(**rule)


@pytest.mark.parametrize(
    ("blocks", "tokens", "usable"),
    [(0, 40, 0), (2, 40, 32), (2, 33, 32), (2, 32, 16), (1, 16, 0), (9, 40, 32), (3, 0, 0)],
)
def test_the_last_token_is_always_computed(blocks: int, tokens: int, usable: int) -> None:
    assert usable_tokens(blocks, 16, tokens) == usable
