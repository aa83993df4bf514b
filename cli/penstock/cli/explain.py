"""`penstock explain`: why a request went where it went, asked of every router."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer
from penstock.cli.cluster_reader import ClusterError, ClusterReader, find_kubeconfig
from penstock.cli.top import BoxOption, ContextOption, KubeconfigOption, sentences
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_ROUTERS = "app.kubernetes.io/name=penstock,app.kubernetes.io/component=router"
_METRICS_PORT = 9090
_PIPE_WIDTH = 160
_UNKNOWN = "-"

Pick = dict[str, Any]


def explain(
    request_id: Annotated[str, typer.Argument(help="The request's id: the X-Request-Id of its response.")],
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    name: BoxOption = None,
) -> None:
    """Show every worker that could have served a request, with the terms of its score, and why one was picked."""
    if output not in ("table", "json"):
        raise typer.BadParameter(f"{output!r} is neither table nor json", param_hint="--output")
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    with sentences():
        picks = asyncio.run(_find(ClusterReader(find_kubeconfig(kubeconfig, name), context), request_id))
    if output == "json":
        sys.stdout.write(json.dumps(picks, indent=2) + "\n")
    else:
        console.print(Group(*(view(pick) for pick in picks)))


async def _find(reader: ClusterReader, request_id: str) -> list[Pick]:
    """The picks of a request; raises `ClusterError` when no router remembers it."""
    async with reader:
        routers = await reader.objects("/api/v1/pods", _ROUTERS)
        if not routers:
            raise ClusterError("there is no router in this cluster; is Penstock installed?")
        answers = await asyncio.gather(
            *(_ask(reader, router["metadata"], request_id) for router in routers), return_exceptions=True
        )
    said: list[str] = []
    for answer in answers:
        if isinstance(answer, list):
            return answer
        if not isinstance(answer, ClusterError):
            raise answer
        said.append(f"router {len(said) + 1} of {len(routers)}: {answer.said or answer}")
    raise ClusterError("; ".join(said))


async def _ask(reader: ClusterReader, router: dict[str, Any], request_id: str) -> list[Pick]:
    path = f"/penstock/v1/explain/{quote(request_id, safe='')}"
    answer = json.loads(await reader.page(router["namespace"], router["name"], _METRICS_PORT, path))
    return [dict(pick) for pick in answer["picks"]]


def view(pick: Pick) -> RenderableType:
    """One decision: a sentence, then the candidates."""
    title = Text.assemble((f"{pick['requestId']}", "bold"), f"  attempt {pick['attempt']}  model {pick['model']}")
    chosen = pick["worker"] if not pick.get("prefillWorker") else f"{pick['worker']} (prefill {pick['prefillWorker']})"
    second = f", ahead of {pick['runnerUp']}" if pick.get("runnerUp") else ""
    why = Text.assemble((chosen, "green"), f" by {pick['policy']}: {pick['reason']}{second}")
    known = [
        f"prompt {pick['promptTokens']} tokens, {_number(pick.get('expectedHitTokens'))} expected in cache, "
        f"{_number(pick.get('measuredHitTokens'))} found",
        f"TTFT {_held(pick, 'predictedTtftMs', 'ttftMs')}",
        f"TPOT {_held(pick, 'predictedTpotMs', 'tpotMs')}",
    ]
    parts: list[RenderableType] = [title, why, Text("; ".join(known)), _table(pick["candidates"], pick["unit"])]
    if pick.get("prefillCandidates"):
        parts += [Text("for the prefill half:"), _table(pick["prefillCandidates"], pick["unit"])]
    return Group(*parts)


def _held(pick: Pick, predicted: str, objective: str) -> str:
    target = (pick.get("objectives") or {}).get(objective)
    shown = f"{_number(pick.get(predicted))} ms predicted"
    return shown if target is None else f"{shown} of {_number(target)} ms"


def _table(candidates: list[Pick], unit: str) -> Table:
    names = list(dict.fromkeys(name for candidate in candidates for name in candidate.get("terms") or ()))
    table = Table("", "worker", box=None, pad_edge=False)
    for column in (f"score ({unit})", *names):
        table.add_column(column, justify="right")
    for candidate in candidates:
        terms = candidate.get("terms") or {}
        cells = [_number(candidate["score"]), *(_number(terms.get(name)) for name in names)]
        table.add_row("*" if candidate["picked"] else "", candidate["worker"], *cells)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
