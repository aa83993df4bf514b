"""What the autoscaler did in a run, on the run's page: wanted beside ready, each change with its reason, watts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.core.reports import Report
from penstock.simulator.pages.canvas import Draw, colour, tidy
from penstock.simulator.pages.html import figures, section, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["change_cells", "power_section", "scaling_facts", "scaling_section"]


def scaling_section(report: Report) -> str:
    """HTML: for each pool what was wanted and what was there, and why; nothing where nobody scaled."""
    scaling: Mapping[str, Any] | None = report.run.get("scaling")
    if scaling is None:
        return ""
    plots = [_pool_plot(scaling, at, name) for at, name in enumerate(scaling["pools"])]
    rows = [change_cells(change) for change in scaling["changes"]]
    said = "Nothing was changed. " if not rows else ""
    lead = f"{said}{_sentence('; '.join(scaling_facts(scaling)))}"
    changes = table(("at", "pool", "workers", "why"), rows, words=("why",))
    return section("What the autoscaler did", lead, figures(plots) + changes)


def power_section(report: Report) -> str:
    """HTML: watts of each domain against its budget; nothing where no domain was named."""
    rows = [
        [
            use["name"],
            f"{use['mean_w']:,.0f} W",
            f"{use['peak_w']:,.0f} W",
            "-" if use["budget_w"] is None else f"{use['budget_w']:,.0f} W",
            "-" if use["budget_w"] is None else f"{use['over_s']:,.0f} s",
            "-" if use["budget_w"] is None else f"{use['longest_over_s']:,.0f} s",
        ]
        for use in report.run.get("power", ())
    ]
    head = ("domain", "mean", "peak", "budget", "above it", "longest above")
    return section("Power domains", "Metered, accelerators alone; nothing is held to a budget.", table(head, rows))


def change_cells(change: Mapping[str, Any]) -> list[str]:
    """A change as a row: when, which pool, from how many to how many, and the reason without what the row says."""
    moved = f"scaled {change['pool']} from {change['before']} to {change['after']}"
    why = change["why"].removeprefix(moved).lstrip(": ")
    return [f"{change['at_s']:.0f} s", change["pool"], f"{change['before']} to {change['after']}", why]


def scaling_facts(scaling: Mapping[str, Any]) -> list[str]:
    """What the changes do not say: the most that was held, nodes, what the guard held back and how often."""
    facts = [f"at most {scaling['most_accelerators']} accelerators held"]
    facts += [f"{_count(number, 'node')} of {name} added" for name, number in scaling["nodes_added"].items()]
    if scaling["overdue"]:
        facts.append(f"{_count(scaling['overdue'], 'worker')} at work at the end of the grace")
    facts += [f"held by {name} in {_count(number, 'cycle')}" for name, number in scaling["refusals"].items()]
    return facts


def _pool_plot(scaling: Mapping[str, Any], at: int, name: str) -> Draw:
    """Wanted, ready and existing workers of one pool."""

    def draw(_: Figure, axes: Axes) -> None:
        looks: Sequence[Mapping[str, Any]] = scaling["looks"]
        times = [look["at_s"] for look in looks]
        lines = (("wanted", "replicas", "-"), ("ready", "ready", "-"), ("pods", "pods", ":"))
        for number, (said, key, style) in enumerate(lines):
            values = [look[key][at] for look in looks]
            axes.step(times, values, style, where="post", color=colour(number), label=said, lw=1.5)
        axes.set_ylim(0, 1.1 * max(axes.get_ylim()[1], 1.0))
        axes.locator_params(axis="y", integer=True)
        tidy(axes, f"Workers of {name}", "seconds")
        axes.set_xlim(left=0.0)
        axes.legend(loc="lower right", ncols=3, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1, handlelength=1.4)

    return draw


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
