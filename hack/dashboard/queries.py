"""The PromQL that several panels share.

Series of the autoscaler are taken as the maximum over its replicas, which all measure; counters of routers are summed.
Workers speak vLLM's names; `namespace`, `deployment`, `pool`, `role` and `worker` are put on them by the scrape.
"""

from dashboard.parts import GREEN, ORANGE, RED, Query

D = 'namespace="$namespace",deployment="$deployment"'
M = 'model="$model"'
Q = Query
WORST_FIRST = ((None, GREEN), (0.9, ORANGE), (1.0, RED))
"""Colours of a share of what is allowed."""
BEST_LAST = ((None, RED), (0.9, ORANGE), (0.95, GREEN))


def rate(series: str, labels: str, by: str = "", wrap: str = "sum") -> str:
    """Per second, summed over everything but `by`."""
    grouped = f" by ({by})" if by else ""
    return f"{wrap}{grouped} (rate({series}{{{labels}}}[$__rate_interval]))"


def quantile(q: float, series: str, labels: str, by: str = "") -> str:
    """A quantile of a histogram."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(series + '_bucket', labels, groups)})"


def quantiles(series: str, labels: str) -> tuple[Query, ...]:
    """The median, the tail and the far tail."""
    return tuple(Q(quantile(q, series, labels), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99))


def most(series: str, labels: str, by: str = "") -> str:
    """A gauge of the autoscaler, whichever replica tells it."""
    return f"max{f' by ({by})' if by else ''} ({series}{{{labels}}})"


TTFT, TPOT = "penstock_router_time_to_first_byte_seconds", "vllm:request_time_per_output_token_seconds"
A = "penstock_autoscaler"
TTFT_OWED = most(f"{A}_objective_ttft_seconds", D)
TPOT_OWED = most(f"{A}_objective_tpot_seconds", D)
SHARE_OWED = most(f"{A}_objective_attainment_ratio", D)


def within(series: str, labels: str, owed: str) -> str:
    """Share of a histogram's values that are at most what is owed."""
    return f"histogram_fraction(0, scalar({owed}), {rate(series + '_bucket', labels, 'le')})"


TTFT_MET, TPOT_MET = within(TTFT, M, TTFT_OWED), within(TPOT, D, TPOT_OWED)
BOTH_MET = f"clamp_min({TTFT_MET} + {TPOT_MET} - 1, 0)"
"""At least this share met both: what missed one may have missed the other too."""
OK_RATE = rate("penstock_router_requests_total", f'{M},code=~"2.."')
GOODPUT = f"{OK_RATE} * {BOTH_MET}"
READY = f'{A}_pool_workers{{{D},state="ready"}}'
