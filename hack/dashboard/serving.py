"""What clients see of one deployment: what it owes them, what becomes of their requests, where the time goes."""

from dashboard.parts import GREEN, RED, Panel, Row
from dashboard.queries import (
    BEST_LAST,
    BOTH_MET,
    GOODPUT,
    OK_RATE,
    READY,
    SHARE_OWED,
    TPOT,
    TPOT_MET,
    TPOT_OWED,
    TTFT,
    TTFT_MET,
    TTFT_OWED,
    WORST_FIRST,
    A,
    D,
    M,
    Q,
    quantile,
    quantiles,
    rate,
)

OWED = Row(
    "$deployment: what it owes",
    (
        Panel(
            "TTFT p95 / objective",
            "Above 100 % more than one request in twenty waits too long for its first byte. Look at prefill queues "
            "below, then at what holds the plan back.",
            (Q(f"{quantile(0.95, TTFT, M)} / {TTFT_OWED}", "of the objective"),),
            kind="stat",
            unit="percentunit",
            width=4,
            steps=WORST_FIRST,
            runbook="objectives-are-missed",
        ),
        Panel(
            "TPOT p95 / objective",
            "Above 100 % tokens come too slowly: batches are too large. Look at running requests and KV usage of the "
            "workers that decode.",
            (Q(f"{quantile(0.95, TPOT, D)} / {TPOT_OWED}", "of the objective"),),
            kind="stat",
            unit="percentunit",
            width=4,
            steps=WORST_FIRST,
            runbook="objectives-are-missed",
        ),
        Panel(
            "Attainment, at least",
            "Share of requests that met both objectives. Latencies are counted apart, so this is the least it can be.",
            (Q(BOTH_MET, "met both"),),
            kind="stat",
            unit="percentunit",
            width=4,
            steps=BEST_LAST,
            runbook="objectives-are-missed",
        ),
        Panel(
            "Goodput, at least",
            "Requests per second that met both objectives.",
            (Q(GOODPUT, "goodput"),),
            kind="stat",
            unit="reqps",
            width=4,
        ),
        Panel(
            "Workers ready",
            "Over all pools of the deployment. Zero: requests are refused.",
            (Q(f"sum({READY})", "ready"),),
            kind="stat",
            width=4,
            steps=((None, RED), (1, GREEN)),
        ),
        Panel(
            "Cost per hour",
            "Of all pods that hold or await accelerators, those on their way out included.",
            (Q(f"sum(max by (worker_pool) ({A}_held_cost_per_hour{{{D}}}))", "per hour"),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Time to first byte, at the gateway",
            "What clients of the gateway wait for, prefill on another worker included. Answers that are not streamed "
            "count whole. p95 above the objective: see the queues of the workers that prefill.",
            (*quantiles(TTFT, M), Q(TTFT_OWED, "objective")),
            unit="s",
            runbook="objectives-are-missed",
        ),
        Panel(
            "Time per output token, at the engines",
            "As vLLM counts it. p95 above the objective: batches are larger than the profile foresaw; see running "
            "requests and preemptions.",
            (*quantiles(TPOT, D), Q(TPOT_OWED, "objective")),
            unit="s",
            runbook="objectives-are-missed",
        ),
        Panel(
            "Attainment",
            "Share of requests within each objective. Below the dashed line for longer than the objectives' window, "
            "the deployment does not keep its word.",
            (Q(TTFT_MET, "TTFT met"), Q(TPOT_MET, "TPOT met"), Q(SHARE_OWED, "objective")),
            unit="percentunit",
            most=1,
            runbook="objectives-are-missed",
        ),
    ),
)

REQUESTS = Row(
    "$deployment: requests",
    (
        Panel(
            "Answers by status",
            "429: all workers were full. 502: every attempt failed. 503: no worker. 499: the client left. 200 alone is "
            "well.",
            (Q(rate("penstock_router_requests_total", M, "code") + " > 0", "{{code}}"),),
            unit="reqps",
            stacked=True,
            runbook="requests-fail",
        ),
        Panel(
            "Arriving, answered and good",
            "Demand as the autoscaler counts it, answers of the gateway, and the part that met both objectives. A gap "
            "between the first two is a queue that grows.",
            (
                Q(f"max(max by (role) ({A}_demand_requests_per_second{{{D}}}))", "demand"),
                Q(OK_RATE, "answered"),
                Q(GOODPUT, "goodput, at least"),
            ),
            unit="reqps",
        ),
        Panel(
            "Refused, retried, broken, continued",
            "Retries and continued streams cost clients a pause, refusals and breaks an error. Steady retries: the "
            "reason names how workers fail.",
            (
                Q(rate("penstock_router_rejected_total", M, "reason") + " > 0", "refused {{reason}}"),
                Q(rate("penstock_router_retries_total", M, "reason") + " > 0", "retried {{reason}}"),
                Q(rate("penstock_router_cut_total", M, "reason") + " > 0", "broken {{reason}}"),
                Q(rate("penstock_router_continued_total", M), "continued elsewhere"),
                Q(rate("penstock_router_client_gone_total", M), "client left"),
            ),
            unit="reqps",
            runbook="requests-fail",
        ),
        Panel(
            "Picks by policy and reason",
            "Over all models of the routers. LeastViolation and LeastHarm under KVAware: no worker would meet the "
            "objectives, so more of them are needed.",
            (Q(rate("penstock_router_picks_total", "", "policy, reason") + " > 0", "{{policy}} {{reason}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "At the gateway now",
            "Requests in flight and connections over all models of the routers.",
            (
                Q("sum(penstock_router_in_flight_requests)", "requests in flight"),
                Q("sum(penstock_router_client_connections)", "client connections"),
                Q("sum(penstock_router_idle_upstream_connections)", "idle connections to workers"),
            ),
        ),
        Panel(
            "Tokens",
            "Prompt tokens by where their KV cache came from, and tokens generated.",
            (
                Q(rate("vllm:prompt_tokens_by_source_total", D, "source"), "prompt, {{source}}"),
                Q(rate("vllm:generation_tokens_total", D), "generated"),
            ),
            unit="short",
        ),
    ),
)

APART = Row(
    "$deployment: prefill and decode",
    (
        Panel(
            "Prompts split, or not, and why",
            "Of a deployment with workers of both roles: how many prompts were computed on one worker and decoded on "
            "another. Empty where one worker does both.",
            (Q(rate("penstock_router_splits_total", M, "reason") + " > 0", "{{reason}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Prefill legs by outcome",
            "Held: the blocks wait for the decode worker. Anything else computed the prompt twice; steadily, look at "
            "the prefill workers' logs.",
            (Q(rate("penstock_router_prefill_legs_total", M, "outcome") + " > 0", "{{outcome}}"),),
            unit="reqps",
            stacked=True,
            runbook="prompts-are-computed-twice",
        ),
        Panel(
            "Prefill leg, transfer, decode leg: p95",
            "Where the time of a request goes. A transfer that takes as long as its prefill: wrong link, or prompts "
            "too short to be worth splitting.",
            (
                Q(quantile(0.95, "vllm:request_prefill_time_seconds", f'{D},role="Prefill"'), "prefill leg"),
                Q(quantile(0.95, "vllm:nixl_xfer_time_seconds", D), "KV transfer"),
                Q(quantile(0.95, "vllm:request_decode_time_seconds", f'{D},role!="Prefill"'), "decode leg"),
            ),
            unit="s",
        ),
        Panel(
            "Legs run by sidecars",
            "For clients of gRPC picks and of Envoy-based gateways, whose requests reach the decode worker's sidecar. "
            "Refused: somebody names prefill workers that are none.",
            (
                Q(rate("penstock_workers_sidecar_legs_total", D, "reason"), "leg {{reason}}"),
                Q(rate("penstock_workers_sidecar_decodes_total", D, "reason"), "decode {{reason}}"),
                Q(rate("penstock_workers_sidecar_refused_prefillers_total", D, "reason"), "refused {{reason}}"),
                Q(rate("penstock_workers_sidecar_cut_answers_total", D, "reason"), "broken {{reason}}"),
            ),
            unit="reqps",
            width=6,
        ),
        Panel(
            "Workers: prefill to decode",
            "Ready prefill workers for each ready decode worker. It follows the mix of tokens and should hold still "
            "while both scale.",
            (
                Q(
                    f'sum({A}_pool_workers{{{D},role="Prefill",state="ready"}})'
                    f' / sum({A}_pool_workers{{{D},role="Decode",state="ready"}})',
                    "prefill : decode",
                ),
            ),
            width=6,
        ),
        Panel(
            "KV cache moved between workers",
            "Bytes per second pulled by decode workers, over all of them.",
            (Q(rate("vllm:nixl_bytes_transferred_sum", D), "moved"),),
            unit="Bps",
            width=6,
        ),
        Panel(
            "Transfers that failed or came too late",
            "Failed: the peer was away. Expired: no decode worker fetched the blocks within their lease. Each costs a "
            "prefill.",
            (
                Q(rate("vllm:nixl_num_failed_transfers_total", D), "failed"),
                Q(rate("vllm:nixl_num_kv_expired_reqs_total", D), "expired unread"),
            ),
            unit="ops",
            width=6,
            runbook="prompts-are-computed-twice",
        ),
    ),
)
