"""`penstock up`, `down`, `status`, `logs`, `kubeconfig`, `binaries`: a whole cluster on this machine."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.box.binaries import ALL_PROGRAMS, PROMETHEUS_PROGRAMS, ensure_programs
from penstock.box.errors import BoxError
from penstock.box.install import Deployment, find_example, install, stream_tokens
from penstock.box.lifecycle import Box, BoxOptions, await_ready, exclusive, find_box, require_box, start_box, stop_box
from penstock.box.nodes import DEFAULT_NODES, parse_nodes
from penstock.box.stages import Stages
from penstock.cli.progress import TerminalReporter
from rich.console import Console
from rich.table import Table

_FOLLOW_SECONDS = 0.3
_INTERRUPTED = 130
_START_STAGES = 3
"""Programs, control plane, nodes; a box that runs is waited for in one."""
_INSTALL_STAGES = 4
"""Install, example, available, first tokens."""

_Name = Annotated[str, typer.Option(help="Name of the box; several can run side by side.")]
_Nodes = Annotated[
    str | None, typer.Option(help=f"Accelerator classes, as CLASS=NODESxGPUS,... (default {DEFAULT_NODES}).")
]
_NoInstall = Annotated[bool, typer.Option("--no-install", help="Only the cluster: no chart, no example.")]
_TimeScale = Annotated[
    float, typer.Option(min=0.001, max=1000.0, help="Wall-clock seconds per modelled second of a simulated engine.")
]
_Example = Annotated[str, typer.Option("--model-example", help="Example to apply: a shipped one's name, or a path.")]
_ApiPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Host port of the API server (6443 when free).")]
_Prometheus = Annotated[bool, typer.Option("--prometheus", help="Prometheus and promtool as well.")]
_GatewayPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Host port of the gateway (8000 when free).")]


@contextmanager
def _sentences(console: Console) -> Iterator[None]:
    """Errors of a box become one sentence and exit code 1."""
    try:
        yield
    except BoxError as error:
        console.print(f"penstock: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("penstock: interrupted", style="red")
        raise typer.Exit(_INTERRUPTED) from None


def up(
    nodes: _Nodes = None,
    name: _Name = "default",
    no_install: _NoInstall = False,
    time_scale: _TimeScale = 1.0,
    model_example: _Example = "quickstart",
    api_port: _ApiPort = None,
    gateway_port: _GatewayPort = None,
) -> None:
    """Start a real Kubernetes on this machine, install Penstock into it, and stream the first tokens."""
    console = Console()
    reporter = TerminalReporter(console)
    stages = Stages(reporter)
    with _sentences(console), exclusive(name):
        try:
            example = None if no_install else find_example(model_example)
            box = _running(console, name, nodes, api_port, gateway_port)
            reporter.stages = (_START_STAGES if box is None else 1) + (0 if no_install else _INSTALL_STAGES)
            if box is None:
                box = start_box(BoxOptions(name, nodes or DEFAULT_NODES, api_port, gateway_port), stages)
            else:
                await_ready(box, stages)
            deployment = None
            if example is not None:
                deployment = install(box, stages, time_scale=f"{time_scale:g}", example=example)
                with stages.stage("first tokens"):
                    reporter.close()
                    _print_tokens(console, box, deployment)
            stages.write(box.paths.stages)
            _print_next(console, box, deployment)
        finally:
            reporter.close()


def _running(
    console: Console, name: str, nodes: str | None, api_port: int | None, gateway_port: int | None
) -> Box | None:
    """The box that runs already, if any; raises BoxError when other things were asked for than it has."""
    if nodes is not None:
        parse_nodes(nodes)
    box = find_box(name)
    if box is None:
        return None
    asked = (("--nodes", nodes, box.settings.nodes), ("--api-port", api_port, box.settings.api_port))
    for option, wanted, has in (*asked, ("--gateway-port", gateway_port, box.settings.gateway_port)):
        if wanted is not None and wanted != has:
            raise BoxError(f"the box {name!r} runs with {option} {has}; `penstock down` first to have {wanted}")
    console.print(f"The box {name!r} is already running; refreshing what is installed.", highlight=False)
    return box


def _print_tokens(console: Console, box: Box, deployment: Deployment) -> None:
    console.print(f"{deployment.model} says: ", end="", highlight=False, markup=False)
    for text in stream_tokens(box, deployment):
        console.print(text, end="", style="cyan", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _print_next(console: Console, box: Box, deployment: Deployment | None) -> None:
    kubectl = box.program("kubectl")
    lines = ["", "What next:", f"  export KUBECONFIG={box.kubeconfig}", f"  alias kubectl={kubectl}"]
    if deployment is None:
        lines += ["  kubectl get nodes"]
    else:
        lines += [
            f"  kubectl get mdep,wpool,pods -n {deployment.namespace}",
            f"  kubectl describe mdep {deployment.name} -n {deployment.namespace}",
            f"  curl -N {box.gateway_url}/v1/completions -H 'Content-Type: application/json' \\",
            f'    -d \'{{"model": "{deployment.model}", "prompt": "Hello", "max_tokens": 32, "stream": true}}\'',
        ]
    lines += [f"  {called()} down{'' if box.settings.name == 'default' else f' --name {box.settings.name}'}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def called() -> str:
    """What to type to get here again: `penstock` where the shell finds it, else its path as it was given."""
    program = sys.argv[0]
    found = shutil.which("penstock")
    if found is not None and Path(found).resolve() == Path(program).resolve():
        return "penstock"
    return program if Path(program).name == "penstock" else f"{sys.executable} -m penstock.cli.main"


def down(name: _Name = "default") -> None:
    """End a box: every process in it, and every file of it but the cached programs."""
    console = Console()
    with _sentences(console), exclusive(name):
        started = time.monotonic()
        existed = stop_box(name)
        said = (
            f"The box {name!r} is gone ({time.monotonic() - started:.1f} s)."
            if existed
            else f"There is no box {name!r}."
        )
        console.print(said, highlight=False)


def status(name: _Name = "default") -> None:
    """Show a box's components, nodes and addresses. Exit code 1 when it does not run or something in it is not well."""
    console = Console()
    with _sentences(console):
        box = require_box(name)
        processes = box.processes()
        with box.kube() as kube:
            api = kube.ok("/readyz")
            ready = kube.ready_nodes()
        console.print(_process_table(processes))
        console.print(_node_table(box, processes, ready))
        console.print(f"Kubernetes  {box.api_url} ({'ready' if api else 'not ready'})", highlight=False)
        console.print(f"Gateway     {box.gateway_url}/v1", highlight=False)
        console.print(f"Kubeconfig  {box.kubeconfig}", highlight=False, soft_wrap=True)
        well = api and ready >= set(box.settings.node_names) and all(p["state"] == "Running" for p in processes)
        raise typer.Exit(0 if well else 1)


def _process_table(processes: list[dict[str, Any]]) -> Table:
    table = Table("component", "state", "restarts", box=None, pad_edge=False)
    for process in processes:
        if process["kind"] == "component":
            table.add_row(process["name"], process["state"], str(process["restarts"]))
    return table


def _node_table(box: Box, processes: list[dict[str, Any]], ready: frozenset[str]) -> Table:
    states = {process["name"]: process["state"] for process in processes}
    table = Table("node", "process", "kubernetes", box=None, pad_edge=False)
    for node in box.settings.node_names:
        table.add_row(node, states.get(f"node-{node}", "Missing"), "Ready" if node in ready else "NotReady")
    return table


def logs(
    component: Annotated[str | None, typer.Argument(help="Whose log; left out: list them.")] = None,
    name: _Name = "default",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing what is added.")] = False,
) -> None:
    """Print the log of a component of a box (pods' logs: `kubectl logs`)."""
    console = Console()
    with _sentences(console):
        box = require_box(name)
        paths = [*box.paths.logs.glob("*.log"), *box.paths.logs.glob("*/*.log")]
        files = {str(path.relative_to(box.paths.logs).with_suffix("")): path for path in paths}
        if component is None:
            console.print("\n".join(sorted(files)), highlight=False, markup=False)
            return
        if component not in files:
            raise BoxError(f"no log of {component!r}; there are {', '.join(sorted(files))}")
        _print_log(files[component], follow=follow)


def _print_log(path: Path, *, follow: bool) -> None:
    with path.open("rb") as file:
        while True:
            while chunk := file.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            if not follow or not path.exists():
                return
            if path.stat().st_size < file.tell():
                file.seek(0)  # The log was cut to keep it small.
            time.sleep(_FOLLOW_SECONDS)


def kubeconfig(
    name: _Name = "default",
    raw: Annotated[bool, typer.Option("--raw", help="Print the content instead of the path.")] = False,
) -> None:
    """Print the path of a box's kubeconfig, for `export KUBECONFIG=$(penstock kubeconfig)`."""
    console = Console(stderr=True)
    with _sentences(console):
        box = require_box(name)
        sys.stdout.write(box.kubeconfig.read_text() if raw else f"{box.kubeconfig}\n")


def binaries(prometheus: _Prometheus = False) -> None:
    """Get the Kubernetes programs a box runs (found, downloaded or built) and print where they lie."""
    console = Console(stderr=True)
    reporter = TerminalReporter(console)
    needed = ALL_PROGRAMS | PROMETHEUS_PROGRAMS if prometheus else ALL_PROGRAMS
    with _sentences(console):
        try:
            with Stages(reporter).stage("programs"):
                programs = ensure_programs(needed, reporter.detail)
        finally:
            reporter.close()
        for program in sorted(programs.folders):
            sys.stdout.write(f"{programs.path(program)}\n")
