"""Flags, their variables, and sentences for what cannot be."""

from __future__ import annotations

import pytest
from penstock.autoscaler.shell.settings import Settings, parse_settings


def test_defaults() -> None:
    assert parse_settings([], {}) == Settings()


def test_a_flag_wins_over_its_variable() -> None:
    env = {"PENSTOCK_SCRAPE_INTERVAL": "10s", "PENSTOCK_WATCH_NAMESPACES": "a, b"}
    settings = parse_settings(["--scrape-interval", "500ms"], env)
    assert (settings.scrape_interval_s, settings.watch_namespaces) == (0.5, ("a", "b"))
    assert parse_settings([], env).scrape_interval_s == 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scrape-interval", "5 days"], "is not a duration"),
        (["--scrape-timeout", "0s"], "longer than nothing"),
        (["--health-port", "99999"], "whole number from 0 to 65535"),
        (["--log-level", "loud"], "none of debug"),
        (["--scrape-interval", "60s"], "at least two scrapes"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(arguments, {})
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
