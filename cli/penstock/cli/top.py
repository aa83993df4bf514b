"""`penstock top`: deployments, pools and workers, live."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from penstock.cli.cluster_reader import ClusterError, ClusterReader, find_kubeconfig
from penstock.cli.top_data import Frame, gather
from penstock.cli.top_view import render
from penstock.cli.values import parse_duration
from rich.console import Console
from rich.live import Live

_PIPE_WIDTH = 160

KubeconfigOption = Annotated[Path | None, typer.Option(help="Kubeconfig to use (left out: as kubectl, else a box's).")]
ContextOption = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
BoxOption = Annotated[str | None, typer.Option("--name", help="Box to look at, instead of a kubeconfig.")]


@contextmanager
def sentences() -> Iterator[None]:
    """Errors of the cluster become one sentence and exit code 1."""
    console = Console(stderr=True)
    try:
        yield
    except ClusterError as error:
        console.print(f"penstock: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def top(
    namespace: Annotated[str | None, typer.Option("-n", "--namespace", help="Only this namespace.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end; averages are since start.")] = False,
    interval: Annotated[str, typer.Option(help="Time between two frames; what averages and rates are over.")] = "2s",
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    name: BoxOption = None,
) -> None:
    """Show deployments, pools and workers with their load, latency against objectives, cache hits and plan."""
    try:
        seconds = parse_duration(interval)
    except ValueError as bad:
        raise typer.BadParameter(str(bad), param_hint="--interval") from None
    if seconds < 0.2:
        raise typer.BadParameter("a frame takes a look at every worker; leave at least 200ms", param_hint="--interval")
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    with sentences():
        reader = ClusterReader(find_kubeconfig(kubeconfig, name), context)
        if once:
            console.print(render(asyncio.run(_first(reader, namespace)), None))
        else:
            asyncio.run(_follow(console, reader, namespace, seconds))


async def _first(reader: ClusterReader, namespace: str | None) -> Frame:
    async with reader:
        return await gather(reader, namespace, time.monotonic)


async def _follow(console: Console, reader: ClusterReader, namespace: str | None, seconds: float) -> None:
    """Draw frames until interrupted; one that cannot be had leaves the last on the screen, and says so."""
    async with reader:
        frame, before = await gather(reader, namespace, time.monotonic), None
        with Live(render(frame, before), console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                live.refresh()
                await asyncio.sleep(seconds)
                try:
                    frame, before = await gather(reader, namespace, time.monotonic), frame
                    live.update(render(frame, before))
                except ClusterError as problem:
                    live.update(render(frame, before, str(problem)))
