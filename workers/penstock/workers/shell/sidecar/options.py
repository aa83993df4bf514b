"""The sidecar's flags; each has an environment variable `PENSTOCK_<FLAG>` that it overrides."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from penstock.workers.decisions.sidecar.prefillers import Address, BadHeader, parse_address

MIB = 1 << 20
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Options:
    """How one sidecar runs. Times in seconds."""

    host: str = field(default="0.0.0.0", metadata={"help": "address both ports listen on"})
    port: int = field(default=8001, metadata={"help": "port for requests"})
    metrics_port: int = field(default=8002, metadata={"help": "port of /metrics and /healthz"})
    engine_host: str = field(default="127.0.0.1", metadata={"help": "the engine's host"})
    engine_port: int = field(default=8000, metadata={"help": "the engine's port"})
    prefill_service: Address | None = field(
        default=None,
        metadata={
            "help": "host name of the headless Service of the prefill workers, and their engines' port, as name:port"
        },
    )
    prefill_workers: tuple[Address, ...] = field(
        default=(), metadata={"help": "prefill workers known for good, host:port,..."}
    )
    kv_lease: float = field(
        default=30.0, metadata={"help": "how long a prefill worker holds blocks; the engines' kv_lease_duration"}
    )
    connect_timeout: float = field(default=2.0, metadata={"help": "time to connect to a worker"})
    response_timeout: float = field(default=600.0, metadata={"help": "time a worker has to start its response"})
    stream_timeout: float = field(
        default=300.0,
        metadata={"help": "longest silence of a worker, or wait for a client that does not read, in mid-response"},
    )
    retry_deadline: float = field(
        default=300.0, metadata={"help": "time after its arrival in which a request may be tried again"}
    )
    shutdown_timeout: float = field(
        default=30.0, metadata={"help": "time after SIGTERM in which the engine may go on before the sidecar ends"}
    )
    max_body_bytes: int = field(default=16 * MIB, metadata={"help": "largest request body; larger is answered 413"})
    max_buffered_bytes: int = field(
        default=128 * MIB,
        metadata={"help": "request bodies served at once, and as many arriving; more are answered 503"},
    )
    max_requests: int = field(default=1024, metadata={"help": "requests at once; more are answered 503"})
    max_connections: int = field(default=4096, metadata={"help": "client connections at once; more are closed"})
    log_level: str = field(default="info", metadata={"help": "debug, info, warning or error"})

    def __post_init__(self) -> None:
        """Refuse settings that could not work, naming the flag."""
        for option in fields(self):
            value = getattr(self, option.name)
            least = 0 if option.name in ("port", "metrics_port", "shutdown_timeout") else 1e-3
            if isinstance(value, int | float) and value < least:
                raise ValueError(f"{_name(option.name)} is {value}; it must be at least {least:g}")
        if self.log_level not in LEVELS:
            raise ValueError(f"--log-level is {self.log_level!r}; choose one of {', '.join(LEVELS)}")


def parse_options(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Options from a command line and an environment; ends the process with a sentence where one makes no sense."""
    parser = argparse.ArgumentParser("penstock.workers.sidecar", description="Prefill and decode legs for one engine.")
    for option in fields(Options):
        variable = "PENSTOCK_" + option.name.upper()
        default = environment.get(variable, option.default)
        text = f"{option.metadata['help']} [{variable}, default {option.default!r}]"
        parser.add_argument(
            _name(option.name), type=_TYPES.get(option.name, type(option.default)), default=default, help=text
        )
    chosen = vars(parser.parse_args(arguments))
    try:
        return Options(**chosen)
    except ValueError as bad:
        parser.error(str(bad))


def _name(option: str) -> str:
    return "--" + option.replace("_", "-")


def _address(text: str) -> Address | None:
    try:
        return parse_address(text) if text else None
    except BadHeader:
        raise argparse.ArgumentTypeError(f"{text!r} is not name:port") from None


def _addresses(text: str) -> tuple[Address, ...]:
    found = (_address(part.strip()) for part in text.split(",") if part.strip())
    return tuple(address for address in found if address is not None)


_TYPES: Mapping[str, Any] = {"prefill_service": _address, "prefill_workers": _addresses}
