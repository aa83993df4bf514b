"""What tokens and cache hits look like to Prometheus: who made tokens, why not, and predicted against measured hits.

The alarm is a gauge (`penstock_router_hit_alarm`, 1 while it stands), so that an alerting rule needs no arithmetic; it
is also logged when it rises and when it clears.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.core.tokens.ledger import AlarmRule, HitLedger, HitReading
from penstock.router.shell.tokens.service import TokenCounts
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger("penstock.router.tokens")

Family = CounterMetricFamily | GaugeMetricFamily


class HitBooks:
    """A ledger per model. Only names of served models may come here: each becomes a label."""

    def __init__(self, rule: AlarmRule | None = None) -> None:
        """`rule`: when the alarm rises; the same for every model."""
        self._rule = rule
        self._ledgers: dict[str, HitLedger] = {}

    def record(self, model: str, prompt_tokens: int, predicted: int, measured: int | None) -> None:
        """One finished request, as `HitLedger.record` takes it; says so when the alarm rises or clears.

        What an engine reports is a peer's word: a count that cannot be is taken as not told, never as an error here.
        """
        if prompt_tokens < 1:
            return
        if measured is not None and not 0 <= measured <= prompt_tokens:
            log.debug("an impossible hit", extra={"model": model, "measured": measured, "prompt": prompt_tokens})
            measured = None
        ledger = self._ledgers.get(model)
        if ledger is None:
            ledger = self._ledgers[model] = HitLedger(self._rule)
        before = ledger.alarm
        ledger.record(prompt_tokens, max(0, min(predicted, prompt_tokens)), measured)
        if ledger.alarm != before:
            told = log.warning if ledger.alarm else log.info
            told("cache hits %s", ledger.reading().message, extra={"model": model, "alarm": ledger.alarm})

    def forget(self, model: str) -> None:
        """The model is served no more."""
        self._ledgers.pop(model, None)

    def readings(self) -> dict[str, HitReading]:
        """What each model's ledger says."""
        return {model: ledger.reading() for model, ledger in self._ledgers.items()}


class TokenCollector(Collector):
    """Counts and ledgers as metric families."""

    def __init__(self, counts: TokenCounts, books: HitBooks) -> None:
        """Read anew at each scrape."""
        self._counts, self._books = counts, books

    def collect(self) -> Iterator[Family]:
        """All families, once per scrape."""
        c = self._counts
        yield _counter("tokenized_requests", "Requests made into tokens, by who did it.", "source", c.tokenized)
        yield _counter("untokenized_requests", "Requests whose tokens stayed unknown.", "reason", c.unknown)
        yield _counter("tokenizer_loads", "Models' tokenizer files loaded.", "outcome", c.loads)
        yield from self._hits(self._books.readings())

    def _hits(self, readings: Mapping[str, HitReading]) -> Iterator[Family]:
        for name, text, field in _TOTALS:
            family = CounterMetricFamily(f"penstock_router_{name}", text, labels=("model",))
            for model, reading in readings.items():
                family.add_metric((model,), float(getattr(reading, field)))
            yield family
        for name, text, field in _SHARES:
            gauge = GaugeMetricFamily(f"penstock_router_{name}", text, labels=("model",))
            for model, reading in readings.items():
                value = getattr(reading, field)
                if value is not None:
                    gauge.add_metric((model,), float(value))
            yield gauge


_TOTALS = (
    ("hit_measured_requests", "Requests whose cache hits were predicted and measured.", "requests"),
    ("hit_unmeasured_requests", "Requests whose engine did not report its cache hits.", "unmeasured"),
    ("hit_prompt_tokens", "Prompt tokens of measured requests.", "prompt_tokens"),
    ("hit_predicted_tokens", "Of these, predicted at the pick to be cached.", "predicted_tokens"),
    ("hit_measured_tokens", "Of these, found cached by the engine.", "measured_tokens"),
)
_SHARES = (
    ("hit_predicted_ratio", "Predicted share of cached prompt tokens, over the last requests.", "predicted_ratio"),
    ("hit_measured_ratio", "Measured share of cached prompt tokens, over the last requests.", "measured_ratio"),
    ("hit_error_ratio", "Mean error of the prediction, over the last requests.", "error"),
    ("hit_alarm", "1 while predicted and measured hits are too far apart.", "alarm"),
)


def _counter(name: str, text: str, label: str, counts: Mapping[Any, int]) -> Family:
    family = CounterMetricFamily(f"penstock_router_{name}", text, labels=("model", label))
    for key, count in list(counts.items()):
        family.add_metric([str(part) for part in key], float(count))
    return family
