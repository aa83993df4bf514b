"""Draw the dashboard's panels from answers that a real Prometheus gave, where there is no Grafana to look at.

`PENSTOCK_ANSWERS=answers.json make e2e ARGS="-k dashboard"` keeps the answers; then
`hack/draw_dashboard.py answers.json picture.png --rows 1,2` draws the second and third row.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # Before pyplot: there is no screen.
from generated import ROOT
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

DASHBOARD = ROOT / "charts" / "penstock" / "dashboards" / "penstock.json"
COLUMNS = 24
"""Of Grafana's grid."""
UNIT_INCHES = (0.75, 0.36)
"""Width and height of a cell of the grid."""
LIMITS = re.compile(r"^(objective|budget|most|fewest|desired)")
Panel = dict[str, Any]
Answer = dict[str, Any]


def rows(dashboard: Panel) -> list[tuple[str, list[Panel]]]:
    """Title and panels of each row."""
    found: list[tuple[str, list[Panel]]] = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            found.append((panel["title"], []))
        else:
            found[-1][1].append(panel)
    return found


def draw(chosen: list[tuple[str, list[Panel]]], answers: dict[str, list[Answer]]) -> Figure:
    """One figure with the panels where Grafana would have them."""
    height = sum(1 + _height(panels) for _, panels in chosen)
    figure = pyplot.figure(figsize=(COLUMNS * UNIT_INCHES[0], height * UNIT_INCHES[1] + 0.2), dpi=70)
    grid = figure.add_gridspec(height, COLUMNS, left=0.01, right=0.99, top=0.995, bottom=0.005, wspace=0, hspace=0)
    top = 0
    for title, panels in chosen:
        heading = figure.add_subplot(grid[top, :])
        heading.axis("off")
        heading.text(0, 0.3, title.replace("$deployment", "llama-70b"), fontsize=15, fontweight="bold")
        first = panels[0]["gridPos"]["y"]
        for panel in panels:
            place = panel["gridPos"]
            y = top + 1 + place["y"] - first
            cell = figure.add_subplot(grid[y : y + place["h"], place["x"] : place["x"] + place["w"]])
            _shrink(cell, panel)
            _KINDS[panel["type"]](cell, panel, answers[panel["title"]])
        top += 1 + _height(panels)
    return figure


def _height(panels: list[Panel]) -> int:
    return int(max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) - panels[0]["gridPos"]["y"])


def _shrink(cell: Axes, panel: Panel) -> None:
    """Room inside a cell for title, ticks and legend, in inches of the cell."""
    box = cell.get_position()
    inches = cell.figure.get_figwidth(), cell.figure.get_figheight()
    left, right = (0.75 if panel["type"] == "timeseries" else 0.1) / inches[0], 0.15 / inches[0]
    below, above = (0.62 if panel["type"] == "timeseries" else 0.1) / inches[1], 0.35 / inches[1]
    if panel["type"] == "state-timeline":
        left, below = 1.7 / inches[0], 0.3 / inches[1]
    cell.set_position((box.x0 + left, box.y0 + below, box.width - left - right, box.height - below - above))
    cell.set_title(panel["title"], fontsize=10, loc="left")


def _series(answers: list[Answer]) -> list[tuple[str, list[float], list[float]]]:
    """Legend, seconds since the first sample, values."""
    starts = [float(s["values"][0][0]) for answer in answers for s in answer["series"]]
    begin = min(starts, default=0.0)
    found = []
    for answer in answers:
        for series in answer["series"]:
            legend = re.sub(r"\{\{(\w+)\}\}", lambda m, s=series: s["metric"].get(m[1], ""), answer["legend"])
            times = [float(at) - begin for at, _ in series["values"]]
            found.append((legend, times, [float(value) for _, value in series["values"]]))
    return found


def _lines(cell: Axes, panel: Panel, answers: list[Answer]) -> None:
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
    below: dict[float, float] = defaultdict(float)
    for legend, times, values in _series(answers):
        limit = LIMITS.match(legend) is not None
        tops = values
        if stacked and not limit:
            bottoms = [below[at] for at in times]
            tops = [value + bottom for value, bottom in zip(values, bottoms, strict=True)]
            below.update(zip(times, tops, strict=True))
            cell.fill_between(times, bottoms, tops, alpha=0.3)
        cell.plot(times, tops, label=legend, linewidth=1.1, linestyle="--" if limit else "-")
    _mark_thresholds(cell, panel)
    most = panel["fieldConfig"]["defaults"].get("max")
    cell.set_ylim(bottom=0, top=most and most * 1.03)  # A line at the top would lie under the frame.
    cell.yaxis.set_major_formatter(FuncFormatter(lambda value, _: humane(value, unit)))
    cell.tick_params(labelsize=8)
    cell.grid(alpha=0.25)
    lines, names = cell.get_legend_handles_labels()
    if lines:
        columns = 1 if max(map(len, names)) > 30 else 3
        legend = cell.legend(lines[:9], names[:9], fontsize=7, ncol=columns, frameon=False, loc="upper left")
        legend.set_bbox_to_anchor((-0.05, -0.1), transform=cell.transAxes)
    else:
        cell.text(0.5, 0.5, "no data", ha="center", transform=cell.transAxes, color="grey")


def _mark_thresholds(cell: Axes, panel: Panel) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("thresholdsStyle", {}).get("mode") in (None, "off"):
        return
    top = cell.get_ylim()[1]
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is not None and step["value"] <= top:
            cell.axhline(step["value"], color=step["color"], linestyle=":", linewidth=1)


def _stat(cell: Axes, panel: Panel, answers: list[Answer]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    cell.axis("off")
    found = _series(answers)
    steps = defaults.get("thresholds", {}).get("steps", [])
    for index, (legend, _, values) in enumerate(found):
        passed = [s["color"] for s in steps if s["value"] is None or values[-1] >= s["value"]]
        colour = passed[-1] if passed else "black"
        x = (index + 0.5) / len(found)
        text = humane(values[-1], defaults.get("unit", "short"))
        cell.text(x, 0.5, text, ha="center", fontsize=20, color="black" if colour == "text" else colour)
        cell.text(x, 0.15, legend, ha="center", fontsize=8, color="grey")
    if not found:
        cell.text(0.5, 0.5, "no data", ha="center", color="grey")


def _states(cell: Axes, panel: Panel, answers: list[Answer]) -> None:
    found = _series(answers)
    colours = {"plan": "tab:blue", "held": "orange", "degraded": "red"}
    for index, (legend, times, _) in enumerate(found):
        step = min((b - a for a, b in pairwise(times)), default=1.0)
        cell.broken_barh([(at, step) for at in times], (index - 0.35, 0.7), color=colours[legend.split()[0]])
    cell.set_yticks(range(len(found)), [legend for legend, _, _ in found], fontsize=8)
    cell.tick_params(axis="x", labelsize=8)
    cell.invert_yaxis()


def _table(cell: Axes, panel: Panel, answers: list[Answer]) -> None:
    cell.axis("off")
    names: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for answer in answers:
        for series in answer["series"]:
            key = series["metric"].get("namespace", ""), series["metric"].get("deployment", "")
            unit = "percentunit" if "objective" in answer["legend"] else "short"
            names[key][answer["legend"]] = humane(float(series["values"][-1][1]), unit)
    columns = [answer["legend"] for answer in answers]
    lines = [[*key, *(row.get(column, "") for column in columns)] for key, row in sorted(names.items())]
    if lines:
        made = cell.table(lines, colLabels=["namespace", "deployment", *columns], loc="upper left", cellLoc="left")
        made.auto_set_column_width(list(range(len(columns) + 2)))
        made.scale(1, 1.6)


_KINDS = {"timeseries": _lines, "stat": _stat, "state-timeline": _states, "table": _table}


def humane(value: float, unit: str) -> str:
    """A value with its unit, as Grafana would write it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    suffix = {"bytes": "B", "Bps": "B/s", "reqps": "/s", "ops": "/s"}.get(unit, "")
    for factor, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {name}{suffix}"
    return f"{value:.3g} {suffix}".strip()


def main() -> int:
    """Draw; the exit status."""
    parser = argparse.ArgumentParser(description="Draw the dashboard's panels from answers of a real Prometheus.")
    parser.add_argument("answers", type=Path)
    parser.add_argument("picture", type=Path, help="a .png or .svg")
    parser.add_argument("--rows", default="", help="numbers of the rows to draw, from 0; all by default")
    options = parser.parse_args()
    answers: dict[str, list[Answer]] = defaultdict(list)
    for answer in json.loads(options.answers.read_text()):
        answers[answer["panel"]].append(answer)
    found = rows(json.loads(DASHBOARD.read_text()))
    chosen = [found[int(number)] for number in options.rows.split(",")] if options.rows else found
    smaller = {"pil_kwargs": {"optimize": True}} if options.picture.suffix == ".png" else {}
    draw(chosen, answers).savefig(options.picture, **smaller)
    return 0


if __name__ == "__main__":
    sys.exit(main())
