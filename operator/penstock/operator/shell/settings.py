"""Command-line flags; each has an environment variable `PENSTOCK_<FLAG>` that it overrides."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.operator.shell.kube import own_namespace

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """How this process runs."""

    namespace: str
    """Where the Lease is kept: the release's namespace."""
    watch_namespaces: tuple[str, ...]
    """Namespaces whose ModelDeployments are served; empty: all."""
    leader_election: bool
    health_port: int
    metrics_port: int
    workers: int
    """Reconciles at the same time, of different deployments."""
    endpoint: str
    """Base address of the OpenAI endpoint, to be shown in status; empty: not shown."""
    sidecar_image: str
    """Image of the P/D sidecar that decode workers get; empty: none."""
    routing_policies: frozenset[str]
    """Policies that routers have from files, beside those that ship."""
    identity: str
    log_level: str


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags and environment. Ends the process with a sentence where one makes no sense."""
    env = os.environ if environment is None else environment
    parser = argparse.ArgumentParser("penstock.operator", description=__doc__)

    def default(flag: str, otherwise: str) -> str:
        return env.get("PENSTOCK_" + flag.upper().replace("-", "_"), otherwise)

    parser.add_argument(
        "--namespace", default=default("namespace", own_namespace() or "default"), help="namespace of the Lease"
    )
    parser.add_argument(
        "--watch-namespaces",
        default=default("watch-namespaces", ""),
        help="comma-separated namespaces to serve; empty: all",
    )
    parser.add_argument(
        "--leader-election",
        action=argparse.BooleanOptionalAction,
        default=_truth(parser, default("leader-election", "true")),
        help="elect one writer among several operators",
    )
    parser.add_argument("--health-port", type=int, default=default("health-port", "8081"))
    parser.add_argument("--metrics-port", type=int, default=default("metrics-port", "9090"))
    parser.add_argument("--workers", type=int, default=default("workers", "8"), help="reconciles at the same time")
    parser.add_argument("--endpoint", default=default("endpoint", ""), help="OpenAI base address shown in status")
    parser.add_argument(
        "--sidecar-image", default=default("sidecar-image", ""), help="P/D sidecar of decode workers; empty: none"
    )
    parser.add_argument(
        "--routing-policies",
        default=default("routing-policies", ""),
        help="comma-separated policies that the routers have from files, beside those that ship",
    )
    parser.add_argument("--log-level", choices=LEVELS, default=default("log-level", "info"))
    given = parser.parse_args(arguments)
    if given.workers < 1:
        parser.error(f"--workers is {given.workers}; at least 1 reconcile must be allowed")
    identity = env.get("PENSTOCK_IDENTITY") or f"{env.get('HOSTNAME') or socket.gethostname()}-{os.getpid()}"
    return Settings(
        namespace=given.namespace,
        watch_namespaces=tuple(name.strip() for name in given.watch_namespaces.split(",") if name.strip()),
        leader_election=given.leader_election,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        workers=given.workers,
        endpoint=given.endpoint,
        sidecar_image=given.sidecar_image,
        routing_policies=frozenset(name.strip() for name in given.routing_policies.split(",") if name.strip()),
        identity=identity,
        log_level=given.log_level,
    )


def _truth(parser: argparse.ArgumentParser, text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        parser.error(f"PENSTOCK_LEADER_ELECTION is {text!r}; use true or false")
    return word in TRUE
