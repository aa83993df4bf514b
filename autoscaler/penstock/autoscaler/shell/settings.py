"""What can be set about an autoscaler: flags and their environment variables (`--log-level`, `PENSTOCK_LOG_LEVEL`).

A flag wins over its variable. Durations are written as in manifests: `5s`, `500ms`, `1m`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.api.quantities import parse_duration

_PREFIX = "PENSTOCK_"


@dataclass(frozen=True, slots=True)
class Settings:
    """The autoscaler's settings. Durations in seconds."""

    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose workers are watched; none means all of them."""
    scrape_interval_s: float = 5.0
    scrape_timeout_s: float = 2.0
    signal_window_s: float = 60.0
    max_scrapes: int = 128
    """Scrapes at the same time."""
    host: str = "0.0.0.0"
    health_port: int = 8081
    metrics_port: int = 9090
    log_level: str = "info"


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment; ends the process with a sentence when one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock.autoscaler",
        description="Measures the workers of every pool and exports what it measured; moves nothing.",
        epilog="Every flag can also be given as an environment variable: --log-level is PENSTOCK_LOG_LEVEL.",
    )
    default = Settings()

    def flag(name: str, read: Callable[[str], Any], value: object, text: str) -> None:
        variable = _PREFIX + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", type=read, default=environment.get(variable, value), help=text)

    flag("watch-namespaces", _names, "", "namespaces to watch, with commas between; empty watches all")
    flag("scrape-interval", _positive, "5s", "time between two scrapes of a worker")
    flag("scrape-timeout", _positive, "2s", "how long a worker may take to answer one")
    flag("signal-window", _positive, "60s", "time over which rates and means are taken")
    flag("max-scrapes", _count, str(default.max_scrapes), "scrapes at the same time")
    flag("host", str, default.host, "address to listen on")
    flag("health-port", _port, str(default.health_port), "port of /healthz and /readyz")
    flag("metrics-port", _port, str(default.metrics_port), "port of /metrics")
    flag("log-level", _level, default.log_level, "debug, info, warning or error")
    given = parser.parse_args(arguments)
    if given.signal_window < 2 * given.scrape_interval:
        parser.error("--signal-window must hold at least two scrapes: raise it, or lower --scrape-interval")
    return Settings(
        watch_namespaces=given.watch_namespaces,
        scrape_interval_s=given.scrape_interval,
        scrape_timeout_s=given.scrape_timeout,
        signal_window_s=given.signal_window,
        max_scrapes=given.max_scrapes,
        host=given.host,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        log_level=given.log_level,
    )


def _positive(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be longer than nothing")
    return seconds


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str) -> int:
    return _whole(text, 1, 10_000)


def _port(text: str) -> int:
    return _whole(text, 0, 65_535)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def _level(text: str) -> str:
    if text.lower() not in {"debug", "info", "warning", "error"}:
        raise argparse.ArgumentTypeError(f"{text!r} is none of debug, info, warning, error")
    return text.lower()
