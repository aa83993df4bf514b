"""The page of one scenario, over one seed or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from penstock.core.reports import Report, Summary
from penstock.simulator.pages.html import cards, figures, fold, page, section, table
from penstock.simulator.pages.plots import course_plots, latency_plots, scale_plot
from penstock.simulator.pages.scaled import power_section, scaling_section
from penstock.simulator.pages.words import amount, interval_words, metric_words, share, time_words
from penstock.simulator.study import METRICS, spreads

__all__ = ["run_page"]


def run_page(name: str, reports: Sequence[Report]) -> str:
    """HTML of a scenario's runs, one for each seed; tables and plots of time are of the first."""
    report = reports[0]
    seeds = [run.run.get("seed") for run in reports]
    lead = f"{report.run['model']}, policy {report.run['policy']}, " + (
        f"seed {seeds[0]}." if len(seeds) == 1 else f"{len(seeds)} seeds; figures of one run are of seed {seeds[0]}."
    )
    return page(
        f"Penstock twin: {name}",
        lead,
        (
            cards(_summary(report)),
            section("What users saw", _sent(report), table(("", "mean", "p50", "p90", "p99"), _latencies(report))),
            section(
                "Over seeds",
                "Means with the 95 % confidence interval of the mean (Student's t over seeds).",
                table(("metric", "mean", "95 % interval"), _over_seeds(reports)),
            ),
            section(
                "Objectives",
                "Left: the share of requests within both objectives when these are scaled together; the dashed line "
                "marks what was asked. Beside it how latencies are spread.",
                figures([scale_plot([(name, reports)]), *latency_plots([(name, reports)])]),
            ),
            section("Course of the run", "", figures(course_plots(report))),
            scaling_section(report),
            section(
                "What it took", "Energy is the accelerators' alone.", table(_USE_HEAD, _use(report.run["resources"]))
            ),
            power_section(report),
            _groups("Tenants", report.run.get("tenants", {})),
            _groups("Models", report.run.get("models", {})),
            fold("The cluster and its workload", _scenario(report)),
        ),
    )


def _summary(report: Report) -> list[tuple[str, str]]:
    use, goals = report.run["resources"]["total"], report.objectives
    wanted = f"within TTFT {time_words(goals.get('ttft_seconds'))} and TPOT {time_words(goals.get('tpot_seconds'))}"
    return [
        (share(report.attainment), wanted),
        (amount(report.run["rates"]["goodput_per_s"], "req/s"), "goodput: requests within both objectives"),
        (time_words(report.ttft_seconds.p99), "TTFT p99"),
        (time_words(report.tpot_seconds.p99), "TPOT p99"),
        (share(use["busy_share"]), f"utilisation of {use['accelerators']} accelerators"),
        (amount(use["cost_usd"], "USD"), f"for {use['gpu_hours']:.2f} GPU hours"),
        (amount(use["joules"], "J"), "energy"),
    ]


def _sent(report: Report) -> str:
    counts = report.requests
    errors = "".join(f"; {number} x {kind}" for kind, number in report.errors.items())
    return (
        f"{counts.total} requests sent: {counts.completed} completed, {counts.failed} failed, {counts.rejected} "
        f"rejected{errors}. {report.output_tokens:,} output tokens in {report.duration_seconds:,.1f} s; "
        f"{share(report.prefix_hit_ratio)} of prompt tokens came from prefix caches."
    )


def _latencies(report: Report) -> list[list[str]]:
    rows = (("TTFT", report.ttft_seconds), ("TPOT", report.tpot_seconds), ("E2E", report.e2e_seconds))
    return [[name, *_times(summary)] for name, summary in rows]


def _times(summary: Summary) -> list[str]:
    return [time_words(value) for value in (summary.mean, summary.p50, summary.p90, summary.p99)]


def _over_seeds(reports: Sequence[Report]) -> list[list[str]]:
    if len(reports) < 2:
        return []
    found = spreads(reports)
    return [
        [metric.name, metric_words(metric, found[metric.name].mean), interval_words(metric, found[metric.name])]
        for metric in METRICS
        if metric.name in found
    ]


_USE_HEAD = (
    "class", "workers", "accelerators", "busy", "prefill", "decode", "GPU hours", "cost", "energy",
)  # fmt: skip


def _use(resources: Mapping[str, Any]) -> list[list[str]]:
    rows = [_use_row(name, use) for name, use in resources["classes"].items()]
    return rows if len(rows) == 1 else [*rows, _use_row("all", resources["total"])]


def _use_row(name: str, use: Mapping[str, Any]) -> list[str]:
    busy = use["prefill_seconds"] + use["decode_seconds"]
    return [
        name,
        str(use["workers"]),
        str(use["accelerators"]),
        share(use["busy_share"]),
        share(use["prefill_seconds"] / busy if busy else None),
        share(use["decode_seconds"] / busy if busy else None),
        f"{use['gpu_hours']:.2f}",
        amount(use["cost_usd"], "USD"),
        amount(use["joules"], "J"),
    ]


def _groups(title: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("", "requests", "completed", "attainment", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99")
    rows = [
        [
            name or "(none)",
            str(one["requests"]),
            str(one["completed"]),
            share(one["attainment"]),
            *(
                time_words(one[which][percentile])
                for which in ("ttft_seconds", "tpot_seconds")
                for percentile in ("p50", "p99")
            ),
        ]
        for name, one in found.items()
    ]
    return section(title, "", table(head, rows))


def _scenario(report: Report) -> str:
    workers = "\n".join(f"# {line}" for line in report.run["workers"])
    return f"{workers}\n{yaml.safe_dump(report.run['scenario'], sort_keys=False)}"
