"""Boxes for tests: private to a test session, with ports of their own, and gone without a trace afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from penstock.box.binaries import ALL_PROGRAMS, find_programs
from penstock.box.errors import BoxError
from penstock.box.install import find_example, install
from penstock.box.lifecycle import Box, BoxOptions, start_box, stop_box
from penstock.box.namespaces import check_namespaces
from penstock.box.stages import Silent, Stages

_NAME = "test"


def why_no_box(env: Mapping[str, str] = os.environ) -> str | None:
    """Why a test cannot have a box here (None: it can). With PENSTOCK_BUILD=1 missing programs are built instead."""
    try:
        check_namespaces()
    except BoxError as error:
        return str(error)
    if env.get("PENSTOCK_BUILD") != "1" and find_programs(ALL_PROGRAMS, env) is None:
        return "the Kubernetes programs are not in the cache: run `penstock binaries`, or set PENSTOCK_BUILD=1"
    return None


@contextmanager
def temporary_box(nodes: str, *, example: str | None = None, time_scale: str = "1") -> Iterator[Box]:
    """A box with `nodes`, in a state folder of its own; with an `example`, the chart and that example are installed.

    While it stands `PENSTOCK_STATE` leads to it, so `penstock` commands that a test runs find it under the name `test`.
    """
    # Short on purpose: sockets lie below it, and a socket's path may have 107 bytes.
    state = Path(tempfile.mkdtemp(prefix="psk-"))
    outer = os.environ.get("PENSTOCK_STATE")
    os.environ["PENSTOCK_STATE"] = str(state)
    try:
        stages = Stages(Silent())
        box = start_box(BoxOptions(_NAME, nodes, api_port=0, gateway_port=0), stages)
        if example is not None:
            install(box, stages, time_scale=time_scale, example=find_example(example))
        yield box
    finally:
        _keep_logs(state)
        stop_box(_NAME)
        shutil.rmtree(state, ignore_errors=True)
        _restore("PENSTOCK_STATE", outer)


def kubectl(box: Box, *arguments: str, stdin: str | None = None, timeout: float = 60.0) -> str:
    """Run kubectl as the administrator; returns what it printed, raises BoxError with its words when it failed."""
    command = [box.program("kubectl"), f"--kubeconfig={box.kubeconfig}", *arguments]
    environment = box.tool_environment()
    done = subprocess.run(
        command, input=stdin, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode != 0:
        raise BoxError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _keep_logs(state: Path) -> None:
    # For whoever looks into a failed run: PENSTOCK_KEEP_LOGS names a folder that the logs are copied to.
    kept = os.environ.get("PENSTOCK_KEEP_LOGS")
    logs = state / _NAME / "logs"
    if kept and logs.is_dir():
        shutil.copytree(logs, Path(kept) / state.name, dirs_exist_ok=True, symlinks=True, ignore_dangling_symlinks=True)


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value
