"""All deployments at a glance, how one of them scales, and how the control plane itself is doing."""

from dashboard.parts import GREEN, ORANGE, RED, Panel, Row
from dashboard.queries import TPOT, TTFT, WORST_FIRST, A, D, Q, most

OVERVIEW = Row(
    "All deployments",
    (
        Panel(
            "Alerts firing",
            "Penstock's own alerts that fire now. Each has an entry in the runbook; begin there.",
            (Q('count(ALERTS{alertname=~"Penstock.+",alertstate="firing"}) or vector(0)', "alerts"),),
            kind="stat",
            width=4,
            steps=((None, GREEN), (1, RED)),
            runbook="alerts",
        ),
        Panel(
            "Routers, operators, autoscalers up",
            "Processes that answer their scrape. Fewer than were installed: look at the pods of the release.",
            (Q('sum by (component) (up{component=~"router|operator|autoscaler"})', "{{component}}"),),
            kind="stat",
            width=8,
            steps=((None, RED), (1, GREEN)),
        ),
        Panel(
            "Operators that lead",
            "Must be 1. None: nothing is reconciled. Two: the Lease is broken.",
            (Q("sum(penstock_operator_leader_bool)", "leaders"),),
            kind="stat",
            width=4,
            steps=((None, RED), (1, GREEN), (2, RED)),
            runbook="the-operator",
        ),
        Panel(
            "Requests, all models",
            "Answers per second over all routers, refusals and failures included.",
            (Q("sum(rate(penstock_router_requests_total[$__rate_interval]))", "answers/s"),),
            kind="stat",
            unit="reqps",
            width=4,
        ),
        Panel(
            "Cost, all deployments",
            "Money per hour of all pods that hold or await accelerators, at the prices of the AcceleratorClasses.",
            (Q(f"sum(max by (namespace, worker_pool) ({A}_held_cost_per_hour))", "per hour"),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Deployments",
            "p95 latency as a share of the objective (above 100 % it is missed), load, workers and accelerators. "
            "Choose the worst one above, under Deployment.",
            (
                Q(
                    f"histogram_quantile(0.95, sum by (le, model) (rate({TTFT}_bucket[$__rate_interval])))"
                    f" / on (model) group_right () max by (namespace, deployment, model) ({A}_objective_ttft_seconds)",
                    "TTFT p95 / objective",
                ),
                Q(
                    "histogram_quantile(0.95, sum by (le, namespace, deployment)"
                    f" (rate({TPOT}_bucket[$__rate_interval])))"
                    f" / on (namespace, deployment) max by (namespace, deployment) ({A}_objective_tpot_seconds)",
                    "TPOT p95 / objective",
                ),
                Q(
                    f"max by (namespace, deployment) ({A}_deployment_finished_requests_per_second)",
                    "requests/s ended",
                ),
                Q(f'sum by (namespace, deployment) ({A}_pool_workers{{state="ready"}})', "workers ready"),
                Q(
                    "sum by (namespace, deployment) (max by (namespace, deployment, worker_pool)"
                    f" ({A}_held_accelerators))",
                    "accelerators held",
                ),
            ),
            kind="table",
            width=24,
            height=6,
            steps=WORST_FIRST,
        ),
    ),
)

SCALING = Row(
    "$deployment: scaling",
    (
        Panel(
            "Workers by pool",
            "Ready and starting, what the forecast asks for, and the bounds. Desired above ready for long: what holds "
            "the plan back stands on the right.",
            (
                Q(
                    f'sum by (pool, accelerator) ({A}_pool_workers{{{D},state="ready"}})',
                    "ready {{pool}} {{accelerator}}",
                ),
                Q(
                    f'sum by (pool, accelerator) ({A}_pool_workers{{{D},state="starting"}})',
                    "starting {{pool}} {{accelerator}}",
                ),
                Q(most(f"{A}_desired_replicas", D, "pool, accelerator"), "desired {{pool}} {{accelerator}}"),
                Q(most(f"{A}_min_replicas", D, "pool, accelerator"), "fewest {{pool}} {{accelerator}}"),
                Q(most(f"{A}_max_replicas", D, "pool, accelerator"), "most {{pool}} {{accelerator}}"),
            ),
            width=12,
            runbook="workers-do-not-follow-the-load",
        ),
        Panel(
            "Why the plan is so, and what holds it back",
            "Plan: Load, AtLeast, AtMost, or why it is not known. Held: what the guard refuses now; OtherWriter, "
            "SignalsMissing and GaveUp want somebody to look.",
            (
                Q(most(f"{A}_plan", D, "reason"), "plan {{reason}}"),
                Q(most(f"{A}_held_back", D, "reason"), "held {{reason}}"),
                Q(most(f"{A}_degraded", D, "reason"), "degraded {{reason}}"),
            ),
            kind="states",
            width=12,
            runbook="workers-do-not-follow-the-load",
        ),
        Panel(
            "Demand and forecast",
            "Requests that arrive, and the upper quantile that workers are made ready for. Demand above the forecast "
            "for minutes: a step that no history foretold.",
            (
                Q(most(f"{A}_demand_requests_per_second", D, "role"), "demand {{role}}"),
                Q(most(f"{A}_forecast_requests_per_second", D, "role"), "forecast {{role}}"),
            ),
            unit="reqps",
        ),
        Panel(
            "Accelerators",
            "Held by pods or promised to them, by class, against the budget. At the budget no worker is added.",
            (
                Q(
                    f"sum by (accelerator) (max by (accelerator, worker_pool) ({A}_held_accelerators{{{D}}}))",
                    "{{accelerator}}",
                ),
                Q(most(f"{A}_budget_accelerators", D), "budget"),
            ),
            stacked=True,
        ),
        Panel(
            "Cost by class",
            "Per hour, at the prices of the AcceleratorClasses, against the budget.",
            (
                Q(
                    f"sum by (accelerator) (max by (accelerator, worker_pool) ({A}_held_cost_per_hour{{{D}}}))",
                    "{{accelerator}}",
                ),
                Q(most(f"{A}_budget_cost_per_hour", D), "budget"),
            ),
            stacked=True,
        ),
        Panel(
            "Changes and refusals",
            "Of the autoscaler, over all deployments: ScaledOut and ScaledIn are changes, the rest what the guard did "
            "not allow, counted at every cycle.",
            (Q("sum by (reason) (rate(penstock_autoscaler_decisions_total[$__rate_interval])) > 0", "{{reason}}"),),
            unit="ops",
        ),
        Panel(
            "Signals: age",
            "Of the oldest sample used. Above 20 s nothing is taken away any more.",
            (Q(most(f"{A}_pool_signal_age_seconds", D, "pool"), "{{pool}}"),),
            unit="s",
            steps=((None, GREEN), (20, RED)),
        ),
        Panel(
            "Signals: share of the workers that answer",
            "Below 90 % nothing is taken away any more. See why scrapes fail: NetworkPolicy, hung engines.",
            (Q(f"min by (pool) ({A}_pool_signal_coverage_ratio{{{D}}})", "{{pool}}"),),
            unit="percentunit",
            most=1,
        ),
    ),
)

CONTROL = Row(
    "The control plane",
    (
        Panel(
            "Reconciles",
            "Time of one reconcile, writes included. Seconds: the API server is slow.",
            tuple(
                Q(
                    f"histogram_quantile({q}, sum by (le)"
                    " (rate(penstock_operator_reconcile_seconds_bucket[$__rate_interval])))",
                    f"p{round(q * 100)}",
                )
                for q in (0.5, 0.99)
            ),
            unit="s",
            runbook="the-operator",
        ),
        Panel(
            "Reconcile errors and writes",
            "Errors by what went wrong, writes by status. Errors that go on: the ModelDeployment's condition Ready "
            "says which object.",
            (
                Q("sum by (reason) (rate(penstock_operator_errors_total[$__rate_interval]))", "error {{reason}}"),
                Q("sum by (code) (rate(penstock_operator_writes_total[$__rate_interval]))", "write {{code}}"),
            ),
            unit="ops",
            runbook="the-operator",
        ),
        Panel(
            "Queue, and watches begun anew",
            "Deployments that wait to be reconciled; above 0 for minutes the API server or the operator is too slow.",
            (
                Q("sum(penstock_operator_queue_deployments)", "waiting"),
                Q("sum(increase(penstock_operator_watch_restarts_total[$__rate_interval]))", "watch restarts"),
            ),
            steps=((None, GREEN), (10, ORANGE)),
            runbook="the-operator",
        ),
        Panel(
            "CPU",
            "Cores used by each process. A router at 1 core is at its limit: add a replica.",
            (
                Q(
                    'sum by (component, pod) (rate(process_cpu_seconds_total{component=~"router|operator|autoscaler"}'
                    "[$__rate_interval]))",
                    "{{pod}}",
                ),
            ),
            steps=((None, GREEN), (0.9, ORANGE)),
        ),
        Panel(
            "Memory",
            "Resident. The limits stand in the chart's values; the KV index is most of a router's.",
            (
                Q(
                    'sum by (component, pod) (process_resident_memory_bytes{component=~"router|operator|autoscaler"})',
                    "{{pod}}",
                ),
            ),
            unit="bytes",
        ),
        Panel(
            "The autoscaler's own looks at workers",
            "Scrapes by how they ended. Anything but Ok lowers the coverage of signals.",
            (Q("sum by (reason) (rate(penstock_autoscaler_scrapes_total[$__rate_interval])) > 0", "{{reason}}"),),
            unit="ops",
            stacked=True,
        ),
    ),
)
