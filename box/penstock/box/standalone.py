"""A bare control plane on loopback: etcd and a real API server, no nodes and no namespaces, ready in seconds.

Enough for everything that is decided by the API server alone: schemas, CEL rules, RBAC, server-side apply.
"""

from __future__ import annotations

import datetime as dt
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.box import components
from penstock.box.errors import BoxError
from penstock.box.kubeconfig import write_kubeconfig
from penstock.box.pki import ClusterPki, create_cluster_pki
from penstock.box.ready import api_answers, client_context, wait_until

_START_SECONDS = 60.0
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class StandaloneControlPlane:
    """A running API server: its URL, the administrator's kubeconfig, the programs' folder and its log folder."""

    url: str
    kubeconfig: Path
    kubectl: Path
    pki: ClusterPki
    logs: Path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def standalone_control_plane(programs: Path, folder: Path) -> Iterator[StandaloneControlPlane]:
    """Run etcd and kube-apiserver from `programs` with all files in `folder`; both end with the context."""
    with ExitStack() as stack:
        for attempt in range(_ATTEMPTS):
            # Someone else may take a free port before we do: then the program ends at once and we try others.
            try:
                yield stack.enter_context(_run(programs, folder / str(attempt)))
                return
            except _PortTaken:
                continue
        raise BoxError(f"no free ports for an API server after {_ATTEMPTS} attempts; see {folder}")


class _PortTaken(Exception):
    """A component ended while it started."""


@contextmanager
def _run(programs: Path, folder: Path) -> Iterator[StandaloneControlPlane]:
    pki = create_cluster_pki(folder / "pki", dt.datetime.now(dt.UTC), api_addresses=())
    plane = components.ControlPlane(
        programs, pki, folder, "127.0.0.1", api_port=free_port(), etcd_port=free_port(), etcd_peer_port=free_port()
    )
    url = f"https://127.0.0.1:{plane.api_port}"
    kubeconfig = write_kubeconfig(folder / "kubeconfig", url, pki.ca_pem, pki.admin)
    context = client_context(pki.ca_pem, pki.admin)
    with ExitStack() as stack:
        commands = {"etcd": components.etcd(plane), "kube-apiserver": components.kube_apiserver(plane)}
        processes = [stack.enter_context(_process(name, command, folder)) for name, command in commands.items()]

        def ready() -> bool:
            if any(process.poll() is not None for process in processes):
                raise _PortTaken
            return api_answers("127.0.0.1", plane.api_port, context)

        wait_until(ready, _START_SECONDS, "the API server", folder / "kube-apiserver.log")
        yield StandaloneControlPlane(url, kubeconfig, programs / "kubectl", pki, folder)


@contextmanager
def _process(name: str, command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        # Nothing in it outlives the test, so nothing in it needs an orderly end.
        process.send_signal(signal.SIGKILL)
        process.wait()
