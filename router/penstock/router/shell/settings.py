"""What can be set about a router: flags, their environment variables, defaults and limits.

One dataclass field is one flag (`max_body_bytes` is `--max-body-bytes` and `PENSTOCK_MAX_BODY_BYTES`); the
flag wins over the environment. Times are seconds, sizes bytes.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from penstock.core.wire.block_hash import DEFAULT_SEED
from penstock.router.decisions import DEFAULT_POLICY, find_policy

MIB = 1024 * 1024
_LEAST_INDEX = 4 * MIB
_AT_LEAST_ONE = (
    "max_body_bytes",
    "max_buffered_bytes",
    "max_header_bytes",
    "max_connections",
    "attempts",
    "grpc_max_message_bytes",
    "grpc_max_calls",
    "grpc_max_streams",
    "max_leases",
)


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class Settings:
    """The router's settings. Every default is meant for production."""

    host: str = _flag("0.0.0.0", "address the gateway, health and metrics ports listen on")
    port: int = _flag(8000, "port of the OpenAI gateway")
    health_port: int = _flag(8081, "port of /healthz and /readyz; 0 turns it off")
    metrics_port: int = _flag(9090, "port of /metrics; 0 turns it off")
    log_level: str = _flag("info", "debug, info, warning or error")
    access_log: bool = _flag(False, "log one line for every request")

    workers: str = _flag("", "fixed workers, model=http://host:port,...; instead of Kubernetes")
    watch_namespaces: str = _flag("", "comma-separated namespaces to watch; empty means all")
    policy: str = _flag(DEFAULT_POLICY, "policy of models whose deployment names none")
    policy_file: str = _flag("", "comma-separated Python files that bring policies; NAME=FILE must bring that one")
    adapter_interval: float = _flag(5.0, "seconds between two questions which LoRA adapters a worker has; 0: none")
    scrape_interval: float = _flag(5.0, "seconds between two looks at a worker's own load; 0 turns it off")

    max_body_bytes: int = _flag(16 * MIB, "largest request body; larger is answered 413")
    max_buffered_bytes: int = _flag(256 * MIB, "request bodies held at once, over all clients")
    max_header_bytes: int = _flag(32 * 1024, "largest request head; larger is answered 431")
    max_headers: int = _flag(100, "most request header fields; more are answered 431")
    max_connections: int = _flag(8192, "client connections at once; more are answered 503")
    max_pipelined: int = _flag(16, "requests a client may send ahead on one connection before we stop reading")
    max_in_flight: int = _flag(1024, "requests at one worker; when all are full, 429")

    header_timeout: float = _flag(10.0, "time a client has to send a request head; then 408")
    body_timeout: float = _flag(30.0, "longest silence while a request body is sent; then 408")
    receive_timeout: float = _flag(300.0, "longest time a whole request body may take; then 408")
    keepalive_timeout: float = _flag(75.0, "how long an idle client connection is kept")
    send_timeout: float = _flag(300.0, "how long a client may leave its response unread before it is cut")
    connect_timeout: float = _flag(2.0, "time to connect to a worker")
    response_timeout: float = _flag(600.0, "time a worker has to start its response")
    stream_timeout: float = _flag(300.0, "longest silence of a worker in the middle of a response")
    pool_timeout: float = _flag(4.0, "how long an idle worker connection is kept; vLLM closes after 5 s")
    retry_deadline: float = _flag(300.0, "time after its arrival in which a request may be tried again")
    attempts: int = _flag(4, "attempts of one request in all, before its first byte")

    split_tokens: int = _flag(256, "prompt tokens from which prefill and decode may run on two workers")
    kv_lease: float = _flag(30.0, "how long a prefill worker holds blocks for its peer; the engines' kv_lease_duration")

    model_folders: str = _flag("", "comma-separated folders with models' tokenizer files, or hub caches")
    kv_index_bytes: int = _flag(256 * MIB, "most bytes of one model's KV index; a quarter more for our own picks")
    kv_hash_seed: str = _flag(
        DEFAULT_SEED, "the engines' PYTHONHASHSEED where they have one: block hashes start from it"
    )

    grpc_port: int = _flag(0, "port of gRPC (penstock.router.v1.Router); 0 turns it off")
    grpc_tls_cert: str = _flag("", "PEM file of the gRPC port's certificate chain; empty: no TLS")
    grpc_tls_key: str = _flag("", "PEM file of its private key")
    grpc_client_ca: str = _flag("", "PEM file of the authority whose certificate every gRPC client must show")
    grpc_token_file: str = _flag("", "file of bearer tokens, one a line; empty: gRPC callers need none")
    grpc_max_message_bytes: int = _flag(4 * MIB, "largest gRPC message")
    grpc_max_calls: int = _flag(1024, "gRPC calls at once; more are RESOURCE_EXHAUSTED")
    grpc_max_streams: int = _flag(256, "PickStream and Watch calls at once; more are RESOURCE_EXHAUSTED")
    max_leases: int = _flag(65536, "picks over gRPC held at once; more are RESOURCE_EXHAUSTED")
    lease_seconds: float = _flag(300.0, "time after which an unreleased pick is given up, where its caller names none")
    max_lease_seconds: float = _flag(3600.0, "longest such time a caller may name")
    explain_picks: int = _flag(4096, "picks that Explain remembers; 0 remembers none")

    record: str = _flag("", "folder to record every pick in, 32 MiB at most; empty records none and costs nothing")

    drain_lag: float = _flag(3.0, "time between turning unready and refusing connections at SIGTERM")
    drain_grace: float = _flag(600.0, "time running requests have to finish at SIGTERM")

    def __post_init__(self) -> None:
        """Refuse settings that could not work, naming the flag."""
        if not self.policy_file:  # else what there is is known only when the files have been run
            find_policy(self.policy)
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{flag_name(name)} must be at least 1, got {getattr(self, name)}")
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{flag_name(option.name)} must not be negative, got {value}")
        if bool(self.grpc_tls_cert) != bool(self.grpc_tls_key):
            raise ValueError("--grpc-tls-cert and --grpc-tls-key go together: give both or none")
        if self.grpc_client_ca and not self.grpc_tls_cert:
            raise ValueError("--grpc-client-ca needs --grpc-tls-cert and --grpc-tls-key: without TLS nobody shows one")
        if self.kv_index_bytes < _LEAST_INDEX:
            raise ValueError(f"--kv-index-bytes must be at least {_LEAST_INDEX}, got {self.kv_index_bytes}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"--log-level must be debug, info, warning or error, got {self.log_level!r}")


def flag_name(option: str) -> str:
    """`max_body_bytes` -> `--max-body-bytes`."""
    return "--" + option.replace("_", "-")


def variable_name(option: str) -> str:
    """`max_body_bytes` -> `PENSTOCK_MAX_BODY_BYTES`."""
    return "PENSTOCK_" + option.upper()


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from a command line and an environment; exits with a sentence on a bad one."""
    parser = argparse.ArgumentParser(prog="penstock-router", description="Penstock's router: the OpenAI gateway.")
    for option in fields(Settings):
        _add(parser, option.name, option.default, option.metadata["help"], environment)
    chosen = vars(parser.parse_args(arguments))
    try:
        return Settings(**chosen)
    except ValueError as bad:
        parser.error(str(bad))


def _add(parser: argparse.ArgumentParser, option: str, default: Any, text: str, environment: Mapping[str, str]) -> None:
    flag, variable = flag_name(option), variable_name(option)
    given = environment.get(variable)
    described = f"{text} [{variable}, default {default!r}]"
    if isinstance(default, bool):
        if given is not None and given.lower() not in ("true", "false"):
            parser.error(f"{variable} must be true or false, got {given!r}")
        value = default if given is None else given.lower() == "true"
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value, help=described)
        return
    # A string default is converted by argparse like a flag's value, so a bad variable is a usage error too.
    parser.add_argument(flag, type=type(default), default=default if given is None else given, help=described)
