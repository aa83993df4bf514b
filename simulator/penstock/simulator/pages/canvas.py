"""Plots as SVG for a page. matplotlib takes a second to load, so it is loaded when the first plot is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Draw", "colour", "picture", "sheet", "tidy"]

COLOURS = ("#0b6e99", "#d1603d", "#4f8a3c", "#8a5fb0", "#b8860b", "#5b6770")
"""Told apart by the colour-blind too, and in print."""

Draw = Callable[["Figure", "Axes"], None]

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "penstock",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949c",
    "axes.labelcolor": "#39434b",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#5b6770",
    "ytick.color": "#5b6770",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
}


def colour(number: int) -> str:
    """One of a few colours, over and over."""
    return COLOURS[number % len(COLOURS)]


def picture(draw: Draw, *, width: float = 6.4, height: float = 3.2, kind: str = "svg") -> bytes:
    """What `draw` makes of an empty figure, in inches; `kind` is `svg` or `png`. The same drawing, the same bytes."""
    with _style():
        return _written([draw], 1, width, height, kind)


def sheet(drawings: Sequence[Draw], columns: int = 2, *, width: float = 9.6, height: float = 2.6) -> bytes:
    """Several drawings in one SVG, row by row; `height` is that of one row."""
    with _style():
        return _written(drawings, columns, width, height * -(-len(drawings) // columns), "svg")


def _written(drawings: Sequence[Draw], columns: int, width: float, height: float, kind: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    places = figure.subplots(-(-len(drawings) // columns), columns, squeeze=False).flat
    for draw, axes in zip(drawings, places, strict=False):
        draw(figure, axes)
    written = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": "Penstock"} if kind == "svg" else {"Software": "Penstock"}
    figure.savefig(written, format=kind, metadata=metadata, dpi=130)
    return _bare(written.getvalue()) if kind == "svg" else written.getvalue()


def tidy(axes: Axes, title: str, across: str = "", up: str = "") -> None:
    """Title and labels of one plot."""
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(x=0.01)


@contextmanager
def _style() -> Iterator[None]:
    """Our settings and nothing of a user's own."""
    import matplotlib as mpl

    plain: Any = {name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"} | _STYLE
    with mpl.rc_context(plain):
        yield


def _bare(svg: bytes) -> bytes:
    """The `svg` element alone, as it stands within a page."""
    return svg[svg.index(b"<svg") :]
