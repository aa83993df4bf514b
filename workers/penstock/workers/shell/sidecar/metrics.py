"""What the sidecar counts, under the names `penstock_workers_sidecar_<noun>_<unit>`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

IN_FLIGHT = "penstock_workers_sidecar_in_flight_requests"
"""The drain of the engine beside us reads it: a first leg under way is work that the engine does not see yet."""


class Metrics:
    """The sidecar's series, in a registry of their own."""

    def __init__(self, in_flight: Callable[[], int]) -> None:
        """Everything at zero; `in_flight` says how many requests are being served."""
        self.registry = registry = CollectorRegistry()
        Gauge(IN_FLIGHT, "Requests being served", registry=registry).set_function(in_flight)
        self.requests = Counter(
            "penstock_workers_sidecar_requests_total",
            "Requests answered, by status; 499: the client left",
            ["code"],
            registry=registry,
        )
        self.legs = Counter(
            "penstock_workers_sidecar_legs_total",
            "First legs sent to prefill workers, by what came of them: Held, NothingHeld, or a failure",
            ["reason"],
            registry=registry,
        )
        self.decodes = Counter(
            "penstock_workers_sidecar_decodes_total",
            "Attempts at the engine, by where the prompt is computed: Transferred (elsewhere, as asked), "
            "Fallback (here, though a prefill worker was named), Local (here; none was named)",
            ["reason"],
            registry=registry,
        )
        self.refused = Counter(
            "penstock_workers_sidecar_refused_prefillers_total",
            "Addresses in x-prefiller-host-port that were not contacted: UnknownWorker, Malformed",
            ["reason"],
            registry=registry,
        )
        self.stripped = Counter(
            "penstock_workers_sidecar_stripped_requests_total",
            "Requests that brought KV-transfer parameters of their own, which were taken out",
            registry=registry,
        )
        self.cut = Counter(
            "penstock_workers_sidecar_cut_answers_total",
            "Answers that broke after their first byte",
            ["reason"],
            registry=registry,
        )

    def page(self) -> bytes:
        """The page Prometheus reads."""
        return generate_latest(self.registry)
