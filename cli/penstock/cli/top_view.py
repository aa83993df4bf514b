"""A frame of `penstock top` as tables."""

from __future__ import annotations

from penstock.cli.top_data import Deployment, Figures, Frame, Pool, Worker, figures
from penstock.cli.values import parse_duration
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_UNKNOWN = "-"
_COLUMNS = ("pool / worker", "role", "class", "state", "run", "wait", "kv", "TTFT", "TPOT", "hit", "tok/s")
_NUMBERS = frozenset(_COLUMNS[4:])


def render(frame: Frame, before: Frame | None, problem: str = "") -> RenderableType:
    """Everything of a frame; `problem` says why it is an old one."""
    parts: list[RenderableType] = []
    if problem:
        parts.append(Text(f"This is old: {problem}", style="yellow"))
    if not frame.deployments:
        parts.append(Text("No ModelDeployment here. Make one: kubectl apply -f examples/quickstart"))
    for deployment in frame.deployments:
        parts += [_headline(deployment, figures(deployment.workers, frame, before)), _table(deployment, frame, before)]
        if deployment.plan:
            parts.append(Text.assemble(("plan  ", "bold"), deployment.plan))
        parts.append(Text(""))
    return Group(*parts[:-1] if parts and frame.deployments else parts)


def _headline(deployment: Deployment, all_of_it: Figures) -> Text:
    line = Text()
    line.append(f"{deployment.namespace}/{deployment.name}", style="bold")
    line.append(f"  {deployment.model}  ")
    line.append(deployment.state, style="green" if deployment.state == "Ready" else "yellow")
    if deployment.mode:
        line.append(f"  autoscaling {deployment.mode}")
    for name, value in (("ttft", all_of_it.ttft), ("tpot", all_of_it.tpot)):
        line.append(f"  {name.upper()} ")
        line.append_text(_held_to(value, deployment.objectives.get(name)))
    line.append(f"  hit {_percent(all_of_it.hit_ratio)}  {_rate(all_of_it.tokens_per_second)} tok/s")
    return line


def _held_to(value: float | None, objective: str | None) -> Text:
    """A mean time beside what it should be, red where it is more."""
    shown = Text(_time(value))
    if objective:
        missed = value is not None and value > parse_duration(objective)
        shown.stylize("red" if missed else "green" if value is not None else "")
        shown.append(f" of {objective}", style="dim")
    return shown


def _table(deployment: Deployment, frame: Frame, before: Frame | None) -> Table:
    table = Table(box=None, pad_edge=False, expand=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
    shown: set[str] = set()
    for pool in deployment.pools:
        mine = [w for w in deployment.workers if (w.pool, w.accelerator) == (pool.name, pool.accelerator)]
        shown |= {w.uid for w in mine}
        _add(table, pool.name, pool.role, pool.accelerator, _count(pool), figures(mine, frame, before), None, "bold")
        for worker in mine:
            _add_worker(table, worker, frame, before)
    for worker in deployment.workers:
        if worker.uid not in shown:
            _add_worker(table, worker, frame, before)
    return table


def _add_worker(table: Table, worker: Worker, frame: Frame, before: Frame | None) -> None:
    usage = None if worker.sample is None else worker.sample.kv_usage
    alone = figures([worker], frame, before)
    _add(table, f"  {worker.name}", worker.role, worker.accelerator, worker.state, alone, usage, "")


def _add(
    table: Table, name: str, role: str, accelerator: str, state: str, f: Figures, usage: float | None, style: str
) -> None:
    times = (_time(f.ttft), _time(f.tpot), _percent(f.hit_ratio), _rate(f.tokens_per_second))
    row = (name, role, accelerator, state, _rate(f.running), _rate(f.waiting), _percent(usage), *times)
    table.add_row(*(Text(cell) for cell in row), style=style)


def _count(pool: Pool) -> str:
    """Ready and wanted workers, and how many the autoscaler would have where that is another number."""
    counted = f"{pool.ready}/{pool.wanted}"
    return counted if pool.planned in (None, pool.wanted) else f"{counted} -> {pool.planned}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else _fine(seconds)


def _fine(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share:.0%}"


def _rate(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0f}"
