"""Write the chart's Grafana dashboard (part of `make generate`): the rows of the folder `dashboard`, in order.

With `--check` nothing is written.
"""

import sys
from pathlib import Path

from dashboard import control, serving, workers
from dashboard.parts import DATASOURCE, build
from generated import ROOT, run
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableHide,
    VariableRefresh,
    VariableSort,
)

PATH = ROOT / "charts" / "penstock" / "dashboards" / "penstock.json"
ROWS = (
    control.OVERVIEW,
    serving.OWED,
    serving.REQUESTS,
    serving.APART,
    workers.WORKERS,
    workers.CACHE,
    control.SCALING,
    control.CONTROL,
)
"""In the order of looking: is anything wrong, what is missed, for whom, where, and why it is not mended."""
RUNBOOK = "RUNBOOK_URL"
"""Stands for the address of the runbook until the chart puts the value `runbookUrl` in its place."""
_KNOWN = "penstock_autoscaler_objective_ttft_seconds"
"""A series that every deployment has, whether it has workers or not."""


def dashboard() -> dashboards.Dashboard:
    """The whole dashboard."""
    runbook = dashboards.DashboardLink("Runbook").type(DashboardLinkType.LINK).url(RUNBOOK).target_blank(True)
    made = (
        dashboards.Dashboard("Penstock")
        .uid("penstock")
        .description("Model deployments: what they owe, what they do, and why. Generated; changes are overwritten.")
        .tags(["penstock", "llm", "inference"])
        .timezone("browser")
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(runbook)
    )
    for variable in _variables():
        made.with_variable(variable)
    number = 0
    for row in ROWS:
        number += 1
        made.with_row(dashboards.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made.with_panel(build(panel, number, RUNBOOK))
    return made


def _variables() -> tuple[dashboards.DatasourceVariable | dashboards.QueryVariable, ...]:
    ask = f'label_values({_KNOWN}{{namespace="$namespace",deployment="$deployment"}}, model)'
    return (
        dashboards.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        _query("namespace", "Namespace", f"label_values({_KNOWN}, namespace)"),
        _query("deployment", "Deployment", f'label_values({_KNOWN}{{namespace="$namespace"}}, deployment)'),
        _query("model", "Model", ask).hide(VariableHide.HIDE_VARIABLE),
    )


def _query(name: str, label: str, query: str) -> dashboards.QueryVariable:
    return (
        dashboards.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def render() -> dict[Path, str]:
    """Path and content of the dashboard."""
    return {PATH: JSONEncoder(sort_keys=True, indent=1).encode(dashboard().build()) + "\n"}


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    return run("Write the chart's Grafana dashboard.", render(), (), arguments)


if __name__ == "__main__":
    sys.exit(main())
