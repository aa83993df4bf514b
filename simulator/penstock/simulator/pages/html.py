"""The frame of every page, and the few elements in it. Whatever comes from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from html import escape

from penstock.simulator.pages.canvas import Draw, picture

__all__ = ["cards", "figures", "fold", "page", "section", "table"]

_STYLE = """
:root { --ink: #1d252c; --quiet: #5b6770; --line: #e3e7ea; --tint: #f5f7f8; --accent: #0b6e99; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 24px 60px; color: var(--ink); background: #fff;
  font: 14px/1.5 "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 34px 0 10px; }
p { margin: 4px 0 10px; color: var(--quiet); max-width: 78ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 10px; margin: 18px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px;
  background: var(--tint); }
.card b { display: block; font-size: 20px; font-weight: 600; white-space: nowrap; }
.card span { color: var(--quiet); font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 50%; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; font-size: 12.5px; }
th:first-child, td:first-child, th.words, td.words { text-align: left; }
td.words { white-space: normal; }
tr.better td:last-child { color: #2f7d32; font-weight: 600; }
tr.worse td:last-child { color: #b23b1e; font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 16px 22px; }
.figures svg { width: 100%; height: auto; }
details { margin-top: 26px; } summary { cursor: pointer; color: var(--quiet); }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  font: 12.5px/1.45 ui-monospace, Menlo, Consolas, monospace; }
@media print { .figures { grid-template-columns: 1fr 1fr; } details { display: none; } }
"""


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """A whole page; `parts` are HTML already, title and lead are text."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, lead: str, content: str) -> str:
    """A heading, what the reader must know, and HTML below; nothing where there is no content."""
    if not content:
        return ""
    said = f"<p>{escape(lead)}</p>\n" if lead else ""
    return f"<h2>{escape(title)}</h2>\n{said}{content}"


def cards(figures_said: Sequence[tuple[str, str]]) -> str:
    """(figure, what it is) in large type."""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in figures_said
    )
    return f'<div class="cards">{inner}</div>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] = (), words: Sequence[str] = ()
) -> str:
    """A table of text; `marks` are classes of its rows, `words` the columns of sentences. Nothing without rows."""
    if not rows:
        return ""
    kinds = [' class="words"' if name in words else "" for name in head]
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, head, strict=True))
    lines = []
    for number, row in enumerate(rows):
        mark = f' class="{escape(marks[number])}"' if marks else ""
        lines.append(f"<tr{mark}>" + _cells(kinds, row) + "</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def figures(drawings: Sequence[Draw], *, width: float = 5.6, height: float = 3.0) -> str:
    """Plots side by side; nothing without any. Ids within one drawing are told apart from those of the others."""
    if not drawings:
        return ""
    drawn = (picture(draw, width=width, height=height).decode() for draw in drawings)
    return '<div class="figures">' + "\n".join(map(_own_ids, drawn)) + "</div>"


def fold(title: str, text: str) -> str:
    """Text that is there when asked for."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _cells(kinds: Sequence[str], row: Sequence[str]) -> str:
    return "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))


def _own_ids(svg: str) -> str:
    """Every drawing numbers its parts from 1, and a page has one space of ids: they get the drawing's hash before."""
    name = "f" + blake2b(svg.encode(), digest_size=6).hexdigest()
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    return svg
