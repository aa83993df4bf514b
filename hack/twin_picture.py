"""Draws docs/images/twin-report.svg: the plots of the report of docs/concepts/twin-spikes.yaml, played over five seeds.

python hack/twin_picture.py
"""

from __future__ import annotations

from pathlib import Path

from penstock.core.traces import Trace
from penstock.simulator.files import Traces, parse_scenario
from penstock.simulator.pages.canvas import sheet
from penstock.simulator.pages.plots import course_plots, latency_plots, scale_plot
from penstock.simulator.study import play_all

ROOT = Path(__file__).resolve().parents[1]
SCENARIO = ROOT / "docs" / "concepts" / "twin-spikes.yaml"
SEEDS = range(5)


def no_trace(file: str, skip_bad: bool) -> Trace:
    """The scenario draws its load."""
    raise FileNotFoundError(file)


def main() -> None:
    """Play and draw."""
    form = parse_scenario(SCENARIO.read_text(encoding="utf-8"), SCENARIO.name)
    reports = play_all([(form, seed) for seed in SEEDS], Traces(no_trace))
    named = [(SCENARIO.stem, reports)]
    drawing = sheet([scale_plot(named), latency_plots(named)[0], *course_plots(reports[0])])
    (ROOT / "docs" / "images" / "twin-report.svg").write_bytes(drawing)


if __name__ == "__main__":
    main()
