"""The vocabulary the dashboard is written in: a panel in a line or three, turned into Grafana's objects by its library.

Every query of a panel goes to the data source that the reader chose, and every panel says in its description what its
worst picture means and what to do about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as commons
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, ORANGE, RED, GREY = "green", "orange", "red", "text"
LIMITS = ("objective", "budget", "most", "fewest", "desired")
"""Legends that begin so name a limit: drawn as a dashed line without a fill."""
STATES = {"plan": "blue", "held": ORANGE, "degraded": RED}
"""Colours of states by the first word of their legend."""


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and the legend of its series; `{{label}}` in it is a label's value."""

    expr: str
    legend: str


Steps = Sequence[tuple[float | None, str]]
"""Colours from a value upwards; the first from None."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `kind` is `timeseries`, `stat`, `table` or `states`.

    `width` is in columns of 24, `height` in cells; a `stat` is 4 high.
    """

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: Steps = ()
    most: float | None = None
    stacked: bool = False
    runbook: str = ""
    """Where the runbook says more: an anchor of its page."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


Builder = timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel


def build(panel: Panel, number: int, runbook: str) -> Builder:
    """Grafana's panel, numbered so that links to it stay; `runbook` is the address of the runbook's page."""
    made = {"timeseries": _lines, "stat": _stat, "table": _table, "states": _states}[panel.kind](panel)
    made.id(number).title(panel.title).description(panel.text).datasource(DATASOURCE)
    made.span(panel.width).height(4 if panel.kind == "stat" else panel.height)
    for index, query in enumerate(panel.queries):
        made.with_target(_target(panel, query, chr(ord("A") + index)))
    if panel.runbook:
        link = dashboards.DashboardLink("Runbook").type(DashboardLinkType.LINK).url(f"{runbook}#{panel.runbook}")
        made.links([link.target_blank(True)])
    return made


def _target(panel: Panel, query: Query, letter: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(DATASOURCE)
    if panel.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    return target.range()


def _lines(panel: Panel) -> timeseries.Panel:
    legend = commons.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    made = (
        timeseries.Panel()
        .unit(panel.unit)
        .line_width(1)
        .fill_opacity(30 if panel.stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .axis_soft_min(0)
        .legend(legend.placement(common.LegendPlacement.BOTTOM))
        .tooltip(commons.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )
    if panel.most is not None:
        made.max(panel.most)
    if panel.stacked:
        made.stacking(commons.StackingConfig().mode(common.StackingMode.NORMAL))
    if panel.steps:
        made.thresholds(_thresholds(panel.steps))
        made.thresholds_style(commons.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    if any(query.legend.startswith(LIMITS) for query in panel.queries):
        dashes = {"fill": "dash", "dash": [8, 6]}
        looks = {"lineStyle": dashes, "fillOpacity": 0, "stacking": {"mode": "none"}}
        values = [DynamicConfigValue(id_val=f"custom.{name}", value=look) for name, look in looks.items()]
        made.override_by_regexp(f"/^({'|'.join(LIMITS)})/", values)
    return made


def _stat(panel: Panel) -> stat.Panel:
    made = stat.Panel().unit(panel.unit).color_mode(common.BigValueColorMode.VALUE).no_value("no data")
    made.graph_mode(common.BigValueGraphMode.AREA).reduce_options(commons.ReduceDataOptions().calcs(["lastNotNull"]))
    made.color_scheme(dashboards.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    return made.thresholds(_thresholds(panel.steps or ((None, GREY),)))


def _table(panel: Panel) -> table.Panel:
    """One row for each deployment: the queries' values side by side, named by their legends."""
    made = table.Panel().unit(panel.unit).filterable(True)
    hidden = {"Time": True, "model": True, **{f"Time {i}": True for i in range(1, len(panel.queries) + 1)}}
    names = {f"Value #{chr(ord('A') + i)}": query.legend for i, query in enumerate(panel.queries)}
    made.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    made.with_transformation(
        DataTransformerConfig(id_val="organize", options={"excludeByName": hidden, "renameByName": names})
    )
    if panel.steps:
        made.thresholds(_thresholds(panel.steps))
        made.override_by_regexp(
            "/objective/",
            [
                DynamicConfigValue(id_val="unit", value="percentunit"),
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
            ],
        )
    return made


def _states(panel: Panel) -> statetimeline.Panel:
    """A bar for each series while it is there, in the colour of the word its legend begins with."""
    made = statetimeline.Panel().line_width(0).fill_opacity(70).show_value(common.VisibilityMode.NEVER)
    made.legend(commons.VizLegendOptions().show_legend(False))
    for word, colour in STATES.items():
        value = DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        made.override_by_regexp(f"/^{word}/", [value])
    return made


def _thresholds(steps: Steps) -> dashboards.ThresholdsConfig:
    marks = [Threshold(value=value, color=colour) for value, colour in steps]
    return dashboards.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(marks)
