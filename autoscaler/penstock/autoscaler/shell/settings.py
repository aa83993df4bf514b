"""What can be set about an autoscaler: flags and their environment variables (`--log-level`, `PENSTOCK_LOG_LEVEL`).

A flag wins over its variable. Durations are written as in manifests: `5s`, `500ms`, `1m`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.api.quantities import parse_duration
from penstock.autoscaler.decisions.planners import DEFAULT_PLANNER

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
    cycle_interval_s: float = 5.0
    """Between two scaling cycles."""
    time_scale: float = 1.0
    """Multiplies the guard's windows, for clusters whose engines run faster or slower than real ones."""
    scale_in_window_s: float = 300.0
    """Scale-in goes no lower than the largest wish of this long (times the time scale)."""
    leader_election: bool = True
    namespace: str = "default"
    """Where the Lease is; the pod's own in a cluster."""
    identity: str = ""
    """Who we are in the Lease and in Events; the pod's name in a cluster."""
    host: str = "0.0.0.0"
    health_port: int = 8081
    metrics_port: int = 9090
    log_level: str = "info"
    record: str = ""
    """Folder that every cycle is recorded in; empty: none is."""
    planner: str = DEFAULT_PLANNER
    """Who sizes pools whose load and speed are known."""
    policy_files: tuple[str, ...] = ()
    """Python files that bring planners."""


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment; ends the process with a sentence when one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock.autoscaler",
        description="Measures the workers of every pool, plans how many there should be, and in mode Auto scales them.",
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
    flag("cycle-interval", _positive, "5s", "time between two scaling cycles")
    flag("time-scale", _factor, "1", "factor on the guard's windows, for simulated engines that run faster or slower")
    flag("scale-in-window", _positive, "300s", "how long the load must have been lower before workers go")
    flag("leader-election", _switch, "true", "true or false: elect one writer among several by a Lease")
    flag("namespace", str, environment.get("POD_NAMESPACE", "default"), "namespace of the Lease")
    flag("identity", str, environment.get("POD_NAME", ""), "name in the Lease and in Events; empty: the host's")
    flag("host", str, default.host, "address to listen on")
    flag("health-port", _port, str(default.health_port), "port of /healthz and /readyz")
    flag("metrics-port", _port, str(default.metrics_port), "port of /metrics")
    flag("log-level", _level, default.log_level, "debug, info, warning or error")
    flag("record", str, default.record, "folder to record every cycle in, 32 MiB at most; empty records none")
    flag("planner", str, default.planner, "who sizes pools: TargetTracking, or a planner that --policy-file brings")
    flag("policy-file", _names, "", "Python files that bring planners, with commas between")
    given = parser.parse_args(arguments)
    if given.signal_window < 2 * given.scrape_interval:
        parser.error("--signal-window must hold at least two scrapes: raise it, or lower --scrape-interval")
    return Settings(
        watch_namespaces=given.watch_namespaces,
        scrape_interval_s=given.scrape_interval,
        scrape_timeout_s=given.scrape_timeout,
        signal_window_s=given.signal_window,
        max_scrapes=given.max_scrapes,
        cycle_interval_s=given.cycle_interval,
        time_scale=given.time_scale,
        scale_in_window_s=given.scale_in_window,
        leader_election=given.leader_election,
        namespace=given.namespace,
        identity=given.identity,
        host=given.host,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        log_level=given.log_level,
        record=given.record,
        planner=given.planner,
        policy_files=given.policy_file,
    )


def _positive(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be longer than nothing")
    return seconds


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.001 to 1000")
    return value


def _switch(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


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
