"""What is known of the workers' caches, as Prometheus metric families, made when somebody scrapes."""

from collections.abc import Callable, Iterator

from penstock.router.decisions.kv_index import IndexStats, Knowledge
from penstock.router.shell.kv_events import KvEvents, StreamStats
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_WORKER = ("namespace", "deployment", "pool", "model", "worker", "rank")

_STREAM_COUNTERS: dict[str, tuple[str, Callable[[StreamStats], float]]] = {
    "kv_event_batches": ("Batches of KV events applied.", lambda s: s.batches),
    "kv_events": ("KV events applied.", lambda s: s.events),
    "kv_event_blocks": ("Blocks in the KV events applied.", lambda s: s.blocks),
    "kv_event_gaps": ("Times batches were missing.", lambda s: s.gaps),
    "kv_event_resyncs": (
        "Times a worker had to be cleared because its events could not be followed.",
        lambda s: s.resyncs,
    ),
    "kv_event_duplicates": ("Batches that had been applied before.", lambda s: s.duplicates),
    "kv_event_unreadable": ("Messages that could not be read.", lambda s: s.unreadable),
}

_INDEX_GAUGES: dict[str, tuple[str, Callable[[IndexStats], float]]] = {
    "kv_index_blocks": ("Distinct blocks in the KV index.", lambda s: s.blocks),
    "kv_index_bytes": ("Estimated memory of the KV index.", lambda s: s.bytes),
    "kv_index_budget_bytes": ("Memory the KV index may take.", lambda s: s.budget),
    "kv_index_torn_lanes": (
        "Caches with gaps in their chains, which are matched block by block.",
        lambda s: s.torn_lanes,
    ),
}

_INDEX_COUNTERS: dict[str, tuple[str, Callable[[IndexStats], float]]] = {
    "kv_index_evicted_blocks": ("Blocks forgotten to stay within the budget.", lambda s: s.evicted),
    "kv_index_unknown_removals": ("Removals of blocks that were not known.", lambda s: s.unknown_removals),
}

Family = CounterMetricFamily | GaugeMetricFamily


class KvEventCollector(Collector):
    """Streams and indexes as metric families. Scraped from another thread: reads only whole values."""

    def __init__(self, events: KvEvents) -> None:
        """Show these."""
        self._events = events

    def collect(self) -> Iterator[Family]:
        """All families, once per scrape."""
        streams = self._events.stats()
        for name, (text, value) in _STREAM_COUNTERS.items():
            counter = CounterMetricFamily(f"penstock_router_{name}", text, labels=_WORKER)
            for stream in streams:
                counter.add_metric(_labels(stream), float(value(stream)))
            yield counter
        yield from self._momentary(streams)
        yield from self._indexes()

    def _momentary(self, streams: list[StreamStats]) -> Iterator[Family]:
        lag = GaugeMetricFamily(
            "penstock_router_kv_event_lag_seconds", "Age of the last batch when read.", labels=_WORKER
        )
        known = GaugeMetricFamily(
            "penstock_router_kv_cache_known", "1 for how much of a cache is known.", labels=(*_WORKER, "reason")
        )
        age = GaugeMetricFamily("penstock_router_kv_cache_known_age_seconds", "How long it is so.", labels=_WORKER)
        for stream in streams:
            labels = _labels(stream)
            if stream.lag is not None:
                lag.add_metric(labels, stream.lag)
            if stream.age is not None:
                age.add_metric(labels, stream.age)
            for knowledge in Knowledge:
                known.add_metric([*labels, knowledge.value], float(stream.knowledge is knowledge))
        silent = GaugeMetricFamily("penstock_router_kv_silent_workers", "Workers without KV events.", labels=("model",))
        models = [worker.model for worker in self._events.silent()]
        for model in {*models, *self._events.indexes()}:
            silent.add_metric([model], float(models.count(model)))
        yield from (lag, known, age, silent)

    def _indexes(self) -> Iterator[Family]:
        stats = {model: index.stats() for model, index in self._events.indexes().items()}
        for name, (text, value) in _INDEX_GAUGES.items():
            gauge = GaugeMetricFamily(f"penstock_router_{name}", text, labels=("model",))
            for model, each in stats.items():
                gauge.add_metric([model], float(value(each)))
            yield gauge
        for name, (text, value) in _INDEX_COUNTERS.items():
            counter = CounterMetricFamily(f"penstock_router_{name}", text, labels=("model",))
            for model, each in stats.items():
                counter.add_metric([model], float(value(each)))
            yield counter


def _labels(stream: StreamStats) -> tuple[str, ...]:
    w = stream.worker
    return (w.namespace, w.deployment, w.pool, w.model, w.name.rpartition("/")[2], str(stream.rank))
