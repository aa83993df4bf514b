"""The workers of one deployment and what their caches hold, as engines and routers see it."""

from dashboard.parts import GREEN, ORANGE, RED, Panel, Row
from dashboard.queries import D, M, Q, most, rate

WORKERS = Row(
    "$deployment: workers",
    (
        Panel(
            "Running",
            "Requests in each worker's batch. One worker far above the others: see its prefix hits, or whether it is "
            "slow.",
            (Q(f"sum by (worker) (vllm:num_requests_running{{{D}}})", "{{worker}}"),),
        ),
        Panel(
            "Waiting",
            "Requests that wait for a place in the batch. Steady waiting on all workers of a role: too few of them.",
            (Q(f"sum by (worker) (vllm:num_requests_waiting{{{D}}})", "{{worker}}"),),
            runbook="objectives-are-missed",
        ),
        Panel(
            "KV cache in use",
            "Share of blocks. Near 100 % requests are preempted, which shows on the right.",
            (Q(f"max by (worker) (vllm:kv_cache_usage_perc{{{D}}})", "{{worker}}"),),
            unit="percentunit",
            most=1,
            steps=((None, GREEN), (0.95, RED)),
        ),
        Panel(
            "Reserved by the router",
            "Tokens that picks have promised to each worker, as the router of most of them sees it.",
            (Q(f"max by (worker) (penstock_router_worker_outstanding_tokens{{{D}}})", "{{worker}}"),),
        ),
        Panel(
            "Out of rotation",
            "Workers the router knows and does not pick: unready, withdrawn or avoided after failures. Above 0 for "
            "minutes: describe those pods.",
            (Q(f"sum by (pool) (1 - min by (pool, worker) (penstock_router_worker_in_rotation{{{D}}}))", "{{pool}}"),),
            steps=((None, GREEN), (1, ORANGE)),
        ),
        Panel(
            "Preemptions, and requests refused by engines",
            "Requests thrown out of a batch for want of KV blocks are computed again. Steadily: more workers, or a "
            "shorter model.maxContextTokens.",
            (
                Q(rate("vllm:num_preemptions_total", D, "pool"), "preempted {{pool}}"),
                Q(rate("vllm:admission_rejections_total", D, "pool"), "refused {{pool}}"),
            ),
            unit="ops",
        ),
    ),
)

CACHE = Row(
    "$deployment: prefix cache",
    (
        Panel(
            "Hits: predicted and measured",
            "Share of prompt tokens that picks expected in the worker's cache, and what the engine found. The lines "
            "lie on each other when the KV index is right. What a prefill worker sends counts as cached where it is "
            "decoded.",
            (
                Q(most("penstock_router_hit_predicted_ratio", M), "predicted"),
                Q(most("penstock_router_hit_measured_ratio", M), "measured"),
            ),
            unit="percentunit",
            most=1,
            runbook="cache-hits-are-not-as-predicted",
        ),
        Panel(
            "Error of the prediction",
            "Mean difference over the last requests. The alarm rises when it stays too large; then picks follow caches "
            "that are not there.",
            (
                Q(most("penstock_router_hit_error_ratio", M), "error"),
                Q(most("penstock_router_hit_alarm", M), "alarm stands"),
            ),
            unit="percentunit",
            steps=((None, GREEN), (0.02, ORANGE)),
            runbook="cache-hits-are-not-as-predicted",
        ),
        Panel(
            "Workers whose cache is not wholly known",
            "By what is known of them. Silent ones send no KV events: is --kv-events-config set? Unknown or Partial "
            "for minutes: see gaps.",
            (
                Q(
                    f'sum by (reason) (penstock_router_kv_cache_known{{{D},reason!="Complete"}})',
                    "{{reason}}",
                ),
                Q(most("penstock_router_kv_silent_workers", M), "silent"),
            ),
            runbook="cache-hits-are-not-as-predicted",
        ),
        Panel(
            "KV events",
            "Blocks stored and removed per second, and batches missed. A gap is replayed or the worker's cache is "
            "learnt anew (resync).",
            (
                Q(rate("penstock_router_kv_event_blocks_total", D), "blocks"),
                Q(rate("penstock_router_kv_event_gaps_total", D), "gaps"),
                Q(rate("penstock_router_kv_event_resyncs_total", D), "resyncs"),
                Q(rate("penstock_router_kv_event_unreadable_total", D), "unreadable"),
            ),
            unit="ops",
        ),
        Panel(
            "Delay of KV events",
            "Age of the last batch when the router read it. Seconds: the router has too little CPU.",
            (Q(f"max by (pool) (penstock_router_kv_event_lag_seconds{{{D}}})", "{{pool}}"),),
            unit="s",
            steps=((None, GREEN), (1, ORANGE)),
        ),
        Panel(
            "Memory of the KV index",
            "Of the largest router. At the budget the oldest blocks are forgotten and hits are lost: raise "
            "--kv-index-bytes and the router's memory.",
            (
                Q(most("penstock_router_kv_index_bytes", M), "used"),
                Q(most("penstock_router_kv_index_budget_bytes", M), "budget"),
            ),
            unit="bytes",
        ),
        Panel(
            "Who made the tokens",
            "`files` and `built-in`: the router itself; `ids`: the client sent tokens; `engine`: asked of a worker's "
            "/tokenize. What stays unknown is picked without its prefix.",
            (
                Q(rate("penstock_router_tokenized_requests_total", M, "source") + " > 0", "{{source}}"),
                Q(rate("penstock_router_untokenized_requests_total", M, "reason") + " > 0", "unknown: {{reason}}"),
            ),
            unit="reqps",
            stacked=True,
            width=12,
        ),
        Panel(
            "Hits at the engines, by worker",
            "Share of looked-up prompt tokens found in the worker's own prefix cache.",
            (
                Q(
                    f"{rate('vllm:prefix_cache_hits_total', D, 'worker')}"
                    f" / {rate('vllm:prefix_cache_queries_total', D, 'worker')}",
                    "{{worker}}",
                ),
            ),
            unit="percentunit",
            most=1,
            width=12,
        ),
    ),
)
