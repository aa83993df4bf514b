"""The page of all results: Markdown from statements and records, and nothing that is in neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from penstock.simulator.results.record import Figure, Record, Shift, digits
from penstock.simulator.results.statements import Kind, Statement, Statements

__all__ = ["NOT_RUN", "render_page", "verdict_of"]

NOT_RUN = "not run"

_INTRO = """\
# Published results, run again

What others measured and published, set up again in the [twin](../concepts/twin.md). A **gate** judges us: its set-up
was committed before its first run and is not edited with the policy it judges; a bound on one side needs the whole 95 %
interval there, a band the mean inside. A **report** measures: outside the expected range is something to explain. An
**identity** follows from its inputs and is a unit test. Ratios and shapes are compared, never milliseconds: engines,
models and lengths differ, and each section says how. Intervals are Student's t over seeds.

Rendered by `penstock results --render` from [data](data/) and the statements in the package; do not edit by hand."""


def render_page(statements: Statements, records: Mapping[str, Record], root: str | None = "../../") -> str:
    """The page. `root` is the way from it to the repository; None where it is not in one: then paths are no links."""
    parts = [_INTRO, _summary(statements, records)]
    parts += [_section(one, records.get(one.name), root) for one in statements.results]
    parts += [_identities(statements, root), _unmodelled(statements)]
    return "\n\n".join(parts) + "\n"


def verdict_of(statement: Statement, record: Record | None) -> str:
    """One word or two on how a result stands."""
    if record is None:
        return NOT_RUN
    if record.holds is None:
        return "measured"
    if record.left and record.holds:
        return "run in part"
    if statement.kind is Kind.GATE:
        return "holds" if record.holds else "misses"
    return "as expected" if record.holds else "outside the expected range"


def _summary(statements: Statements, records: Mapping[str, Record]) -> str:
    rows = [
        (
            f"[{one.title}](#{_anchor(one.title)})",
            one.kind.value.lower(),
            verdict_of(one, records.get(one.name)),
            _headline(records.get(one.name)),
        )
        for one in statements.results
    ]
    return _table(("result", "kind", "stands", "first figure"), rows)


def _headline(record: Record | None) -> str:
    return "" if record is None else f"{record.figures[0].name}: {_ours(record.figures[0])}"


def _section(statement: Statement, record: Record | None, root: str | None) -> str:
    scenario = statement.scenario
    where = f"`{scenario}`" if root is None else f"[`{scenario.rpartition('/')[2]}`]({root}{scenario})"
    seeds = "" if record is None else f" Seeds: {', '.join(map(str, record.seeds))}."
    lines = [
        f"## {statement.title}",
        f"**{statement.kind}: {verdict_of(statement, record)}.** {statement.asks}",
        f"Source: {statement.source}",
        f"Set-up: {where}.{seeds} Run: `{statement.command}`.",
    ]
    if record is not None:
        lines.append(f"![{statement.title}]({statement.name}.svg)")
        lines.append(_figures(record))
        if record.checks:
            lines.append("\n".join(f"- {one.says}: **{'yes' if one.holds else 'no'}**" for one in record.checks))
    if record is not None and record.left:
        lines.append(f"Not run: {'; '.join(record.left)}.")
    lines += statement.reading
    lines.append("What differs from the source:\n\n" + "\n".join(f"- {one}" for one in statement.differs))
    if record is not None and record.shifts:
        lines.append(_sensitivity(record))
    return "\n\n".join(lines)


def _figures(record: Record) -> str:
    rows = [
        (
            one.name,
            one.published or "-",
            "-" if one.expected is None else str(one.expected),
            f"**{_ours(one)}**",
            {None: "", True: "yes", False: "**no**"}[one.holds],
        )
        for one in record.figures
    ]
    return _table(("figure", "published", "expected", "ours (95 % interval)", "holds"), rows)


def _ours(figure: Figure) -> str:
    mean, low, high = figure.spread
    return digits(mean) if not math.isfinite(low) else f"{digits(mean)} ({digits(low)} to {digits(high)})"


def _sensitivity(record: Record) -> str:
    """A row for each constant and factor, a column for each figure; the first row is the same seeds as they are."""
    figures = list(dict.fromkeys(shift.figure for shift in record.shifts))
    found = {(shift.constant, shift.factor, shift.figure): shift for shift in record.shifts}
    known = {one.name: one for one in record.figures}
    usual = [known[name].values for name in figures]
    places = [record.seeds.index(seed) for seed in record.shift_seeds]
    rows = [("as it is", "", *(digits(sum(values[at] for at in places) / len(places)) for values in usual))]
    for constant, factor in dict.fromkeys((shift.constant, shift.factor) for shift in record.shifts):
        rows.append((constant, f"{factor:g}", *(_shifted(found.get((constant, factor, name))) for name in figures)))
    seeds = ("seeds " if len(places) > 1 else "seed ") + ", ".join(map(str, record.shift_seeds))
    said = f"What it rests on: one assumed constant at a time times a factor, {seeds}, means.\n\n"
    return said + _table(("constant", "times", *figures), rows)


def _shifted(shift: Shift | None) -> str:
    return "-" if shift is None else digits(sum(shift.values) / len(shift.values))


def _identities(statements: Statements, root: str | None) -> str:
    rows = [
        f"- {one.says}: `{one.test}`" if root is None else f"- {one.says}: [`{one.test}`]({root}{one.test})"
        for one in statements.identities
    ]
    return "## Identities\n\n" + "\n".join(rows)


def _unmodelled(statements: Statements) -> str:
    said = "Results that the twin cannot run as they were found; a figure would be made up.\n\n"
    rows = [(one.title, one.source, one.because) for one in statements.unmodelled]
    return "## Not modelled\n\n" + said + _table(("result", "source", "because"), rows)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _anchor(title: str) -> str:
    """The name that renderers of Markdown give a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")
