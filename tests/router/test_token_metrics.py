"""Tokens and cache hits as metrics, and the alarm's two sentences in the log."""

from __future__ import annotations

import logging

import pytest
from penstock.core.tokens.ledger import AlarmRule
from penstock.router.shell.tokens import HitBooks, TokenCollector, TokenCounts
from prometheus_client import CollectorRegistry, generate_latest

RULE = AlarmRule(window=10, least=2)


def page(counts: TokenCounts, books: HitBooks) -> list[str]:
    registry = CollectorRegistry()
    registry.register(TokenCollector(counts, books))
    return generate_latest(registry).decode().splitlines()


def test_every_number_is_on_the_page() -> None:
    counts, books = TokenCounts(), HitBooks(RULE)
    counts.tokenized["m", "files"] += 3
    counts.unknown["m", "NoEngine"] += 1
    counts.loads["m", "ok"] += 1
    books.record("m", 100, 48, 32)
    books.record("m", 100, 48, None)
    lines = page(counts, books)
    for line in (
        'penstock_router_tokenized_requests_total{model="m",source="files"} 3.0',
        'penstock_router_untokenized_requests_total{model="m",reason="NoEngine"} 1.0',
        'penstock_router_tokenizer_loads_total{model="m",outcome="ok"} 1.0',
        'penstock_router_hit_measured_requests_total{model="m"} 1.0',
        'penstock_router_hit_unmeasured_requests_total{model="m"} 1.0',
        'penstock_router_hit_prompt_tokens_total{model="m"} 100.0',
        'penstock_router_hit_predicted_tokens_total{model="m"} 48.0',
        'penstock_router_hit_measured_tokens_total{model="m"} 32.0',
        'penstock_router_hit_predicted_ratio{model="m"} 0.48',
        'penstock_router_hit_measured_ratio{model="m"} 0.32',
        'penstock_router_hit_error_ratio{model="m"} 0.16',
        'penstock_router_hit_alarm{model="m"} 0.0',
    ):
        assert line in lines


def test_a_ratio_of_nothing_is_absent_not_zero() -> None:
    books = HitBooks(RULE)
    books.record("m", 100, 48, None)
    lines = page(TokenCounts(), books)
    assert not [line for line in lines if line.startswith("penstock_router_hit_measured_ratio{")]


def test_the_alarm_is_told_when_it_rises_and_when_it_clears(caplog: pytest.LogCaptureFixture) -> None:
    books = HitBooks(RULE)
    with caplog.at_level(logging.INFO, "penstock.router.tokens"):
        for _ in range(5):
            books.record("m", 100, 0, 64)
        assert 'penstock_router_hit_alarm{model="m"} 1.0' in page(TokenCounts(), books)
        for _ in range(10):
            books.record("m", 100, 64, 64)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert 'penstock_router_hit_alarm{model="m"} 0.0' in page(TokenCounts(), books)
    books.forget("m")
    assert books.readings() == {}


def test_what_cannot_be_is_taken_as_not_told() -> None:
    books = HitBooks(RULE)
    for prompt, predicted, measured in [(100, 48, 101), (100, 48, -1), (0, 0, 0), (100, 48, None)]:
        books.record("m", prompt, predicted, measured)
    assert (books.readings()["m"].requests, books.readings()["m"].unmeasured) == (0, 3)
    books.record("m", 100, 112, 96)
    assert books.readings()["m"].predicted_tokens == 100
