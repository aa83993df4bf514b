"""Counting without slowing down: plain integers on the hot path, Prometheus forms only at scrape time.

`prometheus_client` takes a lock and walks labels for every observation, several microseconds each. A request
here costs a few dict increments; `Collector` turns them into metric families when somebody scrapes. What may go wrong
with a served model is shown as 0 before it first happens: Prometheus sees no increase in a series that begins at 1.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from penstock.core.fleet import Failure, Fleet, RejectReason
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector as PrometheusCollector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Histogram bounds for times, from a cache hit on a small model to a long generation."""

CODES = (200, 429, 499, 502, 503)
"""Status codes shown before they first happen."""
LEG_OUTCOMES = ("Held", "NothingHeld")

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Histogram:
    """Cumulative at scrape time, a single increment at observation time."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """Count into the buckets whose upper bounds these are."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus buckets: upper bound as text, values at or below it."""
        running, buckets = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(running)))
        return buckets


class Counters:
    """Everything the gateway counts. Keys are label values; only served models become labels."""

    def __init__(self) -> None:
        """Start at zero."""
        self.requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)  # model, policy, code
        self.rejected: defaultdict[tuple[str, str], int] = defaultdict(int)  # model, reason
        self.retries: defaultdict[tuple[str, str], int] = defaultdict(int)  # model, reason
        self.cut: defaultdict[tuple[str, str], int] = defaultdict(int)  # model, reason
        self.client_gone: defaultdict[str, int] = defaultdict(int)  # model
        self.picks: defaultdict[tuple[str, str], int] = defaultdict(int)  # policy, reason
        self.policy_errors: defaultdict[str, int] = defaultdict(int)  # policy, of those from files
        self.splits: defaultdict[tuple[str, str], int] = defaultdict(int)  # model, reason
        self.legs: defaultdict[tuple[str, str], int] = defaultdict(int)  # model, outcome
        self.leases: defaultdict[tuple[str, str], int] = defaultdict(int)  # model, reason
        self.continued: defaultdict[str, int] = defaultdict(int)  # model
        self.time_to_first_byte: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.duration: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.received_bytes = 0
        self.sent_bytes = 0
        self.connects: defaultdict[str, int] = defaultdict(int)  # outcome
        self.accepted_connections = 0


class Collector(PrometheusCollector):
    """Counters and live state as Prometheus metric families."""

    def __init__(self, counters: Counters, fleet: Fleet, gauges: Callable[[], dict[str, float]]) -> None:
        """`gauges` gives the gateway's own momentary numbers by name."""
        self._counters = counters
        self._fleet = fleet
        self._gauges = gauges

    def collect(self) -> Iterator[Family]:
        """All families, once per scrape."""
        yield from self._counted()
        yield from self._timed()
        yield from self._live()

    def _counted(self) -> Iterator[Family]:
        c = self._counters
        models = {self._fleet.worker(slot).model for slot in self._fleet.workers().values()}
        asked = {(model, policy, code): 0 for model, policy, _ in list(c.requests) if model for code in CODES}
        rejected = _zeros(models, RejectReason, c.rejected)
        retries, cut = _zeros(models, Failure, c.retries), _zeros(models, Failure, c.cut)
        yield _counter("requests", "Requests answered.", ("model", "policy", "code"), asked | c.requests)
        yield _counter("rejected", "Requests refused by the router itself.", ("model", "reason"), rejected)
        yield _counter("retries", "Attempts that failed before their first byte.", ("model", "reason"), retries)
        yield _counter("cut", "Responses that broke after their first byte.", ("model", "reason"), cut)
        yield _counter("picks", "Picks by policy and reason.", ("policy", "reason"), c.picks)
        wrong = "Answers of policies from files that could not be used; LeastLoaded picked instead."
        yield _counter("policy_errors", wrong, ("policy",), _single(c.policy_errors))
        split = "Attempts of models with prefill and decode workers, by why their prompt was split or was not."
        yield _counter("splits", split, ("model", "reason"), c.splits)
        going_on = "Streams carried on by another worker after theirs was lost."
        yield _counter("continued", going_on, ("model",), _single(dict.fromkeys(models, 0) | c.continued))
        legs = _zeros({model for model, _ in list(c.legs)}, LEG_OUTCOMES, c.legs)
        yield _counter("prefill_legs", "Prefill legs by outcome.", ("model", "outcome"), legs)
        yield _counter("leases_ended", "Leases of gRPC picks, by how they ended.", ("model", "reason"), c.leases)
        gone = _single(dict.fromkeys(models, 0) | c.client_gone)
        yield _counter("client_gone", "Requests whose client left.", ("model",), gone)
        yield _counter("upstream_connects", "Connections made to workers.", ("outcome",), _single(c.connects))
        yield _counter("connections", "Client connections accepted.", (), {(): c.accepted_connections})
        yield _counter("received_bytes", "Request body bytes received.", (), {(): c.received_bytes})
        yield _counter("sent_bytes", "Response bytes written to clients.", (), {(): c.sent_bytes})

    def _timed(self) -> Iterator[Family]:
        c = self._counters
        first = "Time from a request's last byte to its response's first body byte, as the gateway sees it."
        yield _histogram("time_to_first_byte_seconds", first, c.time_to_first_byte)
        yield _histogram("request_duration_seconds", "Time from a request's last byte to its end.", c.duration)

    def _live(self) -> Iterator[Family]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"penstock_router_{name}", "Momentary number of the gateway.", value=value)
        fleet = self._fleet
        labels = ("namespace", "deployment", "pool", "model", "worker")
        flight = GaugeMetricFamily("penstock_router_worker_in_flight_requests", "Reserved requests.", labels=labels)
        tokens = GaugeMetricFamily("penstock_router_worker_outstanding_tokens", "Reserved tokens.", labels=labels)
        in_rotation = GaugeMetricFamily("penstock_router_worker_in_rotation", "1 when it may be picked.", labels=labels)
        for slot in fleet.workers().values():
            w = fleet.worker(slot)
            values = (w.namespace, w.deployment, w.pool, w.model, w.name.rpartition("/")[2])
            flight.add_metric(values, float(fleet.in_flight[slot]))
            tokens.add_metric(values, float(fleet.outstanding_tokens[slot]))
            in_rotation.add_metric(values, float(slot in fleet.view().candidates(w.model)))
        yield from (flight, tokens, in_rotation)


def _zeros(
    models: Iterable[str], reasons: Iterable[str], counts: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int]:
    """`counts`, and 0 for what has not happened yet."""
    named = [str(reason) for reason in reasons]
    return {(model, reason): 0 for model in models for reason in named} | dict(counts)


def _single(counts: dict[str, int]) -> dict[tuple[object, ...], int]:
    return {(key,): count for key, count in counts.items()}


def _counter(name: str, text: str, labels: Sequence[str], counts: Mapping[Any, int]) -> Family:
    family = CounterMetricFamily(f"penstock_router_{name}", text, labels=labels)
    for key, count in list(counts.items()):
        family.add_metric([str(part) for part in key], float(count))
    return family


def _histogram(name: str, text: str, histograms: dict[str, Histogram]) -> Family:
    family = HistogramMetricFamily(f"penstock_router_{name}", text, labels=("model",))
    for model, histogram in list(histograms.items()):
        family.add_metric([model], histogram.cumulative(), sum_value=histogram.total)
    return family
