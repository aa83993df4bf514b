"""The command `penstock`, also `kubectl-penstock`: every verb in one place, each verb in its own module."""

from __future__ import annotations

import typer
from penstock.cli import box as box_verbs
from penstock.cli import lab as lab_verbs
from penstock.cli import profile as profile_verbs
from penstock.cli.decisions import decide_again
from penstock.cli.explain import explain
from penstock.cli.plan import plan
from penstock.cli.replay import replay
from penstock.cli.results import results_command
from penstock.cli.simulate import simulate_command
from penstock.cli.simulate_compare import compare_command, sweep_command
from penstock.cli.top import top

app = typer.Typer(
    name="penstock",
    help="A Kubernetes-native control plane for LLM inference: a cluster on this machine, and tools for any cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(box_verbs.up)
app.command()(box_verbs.down)
app.command()(box_verbs.status)
app.command()(box_verbs.logs)
app.command()(box_verbs.kubeconfig)
app.command()(box_verbs.binaries)
app.command()(top)
app.command()(explain)
app.command()(replay)
app.command()(plan)
app.add_typer(profile_verbs.app)
app.add_typer(lab_verbs.app)
app.command("simulate")(simulate_command)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("decide-again")(decide_again)
app.command("results")(results_command)


def main() -> None:
    """Entry point of the installed commands."""
    app()


if __name__ == "__main__":
    main()
