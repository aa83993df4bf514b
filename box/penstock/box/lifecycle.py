"""A box from outside: start it, find it, end it without a trace. Every command about boxes goes through here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.box.assemble import Door, assemble
from penstock.box.binaries import ALL_PROGRAMS, Programs, ensure_programs
from penstock.box.binaries.release import Progress
from penstock.box.bootstrap import bootstrap_objects
from penstock.box.control import ask
from penstock.box.errors import BoxError
from penstock.box.kube import Kube
from penstock.box.namespaces import box_command, check_namespaces
from penstock.box.nodes import Node, parse_nodes
from penstock.box.paths import BoxPaths
from penstock.box.pidfile import ProcessIdentity, end_box
from penstock.box.ready import client_context, kubeconfig_identity, wait_until
from penstock.box.settings import Settings
from penstock.box.stages import Stages

API_PORT = 6443
GATEWAY_PORT = 8000
_BACKLOG = 1024
_API_SECONDS = 120.0
_NODES_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class BoxOptions:
    """What the user may choose. A port of None means the usual one, or any free one when that is taken."""

    name: str = "default"
    nodes: str = ""
    api_port: int | None = None
    gateway_port: int | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A box that runs."""

    paths: BoxPaths
    settings: Settings

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.paths.kubeconfig

    @property
    def api_url(self) -> str:
        """The API server, from the host."""
        return f"https://127.0.0.1:{self.settings.api_port}"

    @property
    def gateway_url(self) -> str:
        """The OpenAI endpoint, from the host."""
        return f"http://127.0.0.1:{self.settings.gateway_port}"

    def program(self, name: str) -> str:
        """Path of a program at the version this box runs, e.g. `kubectl`."""
        return self.settings.programs[name]

    def tool_environment(self) -> dict[str, str]:
        """The environment for kubectl and helm: what they cache and remember stays in the box's folder."""
        tools = self.paths.root / "tools"
        own = {"KUBECACHEDIR": "kube", "HELM_CACHE_HOME": "helm", "HELM_CONFIG_HOME": "helm", "HELM_DATA_HOME": "helm"}
        return {**os.environ, **{name: str(tools / folder) for name, folder in own.items()}}

    def kube(self) -> Kube:
        """A client with the administrator's rights."""
        ca, identity = kubeconfig_identity(self.paths.kubeconfig)
        return Kube(self.api_url, client_context(ca, identity))

    def processes(self) -> list[dict[str, Any]]:
        """The supervised processes, as the supervisor sees them."""
        return list(ask(self.paths.control_socket, {"verb": "list"})["processes"])

    def kill_component(self, name: str) -> None:
        """SIGKILL a component; the supervisor starts it again."""
        ask(self.paths.control_socket, {"verb": "kill", "component": name})

    def kill_node(self, name: str) -> None:
        """Lose a node: its kubelet, runtime and pods are killed together and stay gone until `start_node`."""
        ask(self.paths.control_socket, {"verb": "kill", "node": name})

    def start_node(self, name: str) -> None:
        """Bring a lost node back."""
        ask(self.paths.control_socket, {"verb": "start", "node": name})


def find_box(name: str) -> Box | None:
    """The box called `name` when it runs, else None."""
    paths = BoxPaths.of(name)
    first = ProcessIdentity.read(paths.pid_file)
    if first is None or not first.alive():
        return None
    try:
        return Box(paths, Settings.read(paths.settings))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BoxError(f"the box {name!r} runs but its settings are damaged ({error}): `penstock down`") from error


def require_box(name: str) -> Box:
    """The box called `name`; raises BoxError when it does not run."""
    box = find_box(name)
    if box is None:
        raise BoxError(f"no box {name!r} is running: start one with `penstock up`")
    return box


def start_box(options: BoxOptions, stages: Stages, nodes: Sequence[Node] | None = None) -> Box:
    """Start a box until its nodes are Ready. Raises BoxError; a box that failed to start leaves only its logs."""
    chosen = tuple(nodes) if nodes is not None else parse_nodes(options.nodes)
    with stages.stage("programs") as reporter:
        check_namespaces()
        programs = ensure_programs(ALL_PROGRAMS, reporter.detail)
    paths = BoxPaths.of(options.name)
    try:
        with stages.stage("control plane"):
            box = _launch(options, paths, chosen, programs)
            _await_api(box)
        with stages.stage("nodes") as reporter:
            _await_nodes(box, reporter.detail)
    except BaseException:
        _end(paths)
        raise
    return box


def await_ready(box: Box, stages: Stages) -> None:
    """Wait until a box that someone else started is whole: its start may have been cut short, or a node be lost."""
    with stages.stage("ready") as reporter:
        _await_api(box)
        _await_nodes(box, reporter.detail)


def _launch(options: BoxOptions, paths: BoxPaths, nodes: Sequence[Node], programs: Programs) -> Box:
    _remove(paths.root)
    paths.root.mkdir(parents=True, mode=0o700)
    with _door(options.api_port, API_PORT) as api, _door(options.gateway_port, GATEWAY_PORT) as gateway:
        settings, _ = assemble(options.name, paths, nodes, options.nodes, programs, api, gateway)
        command = box_command([sys.executable, "-m", "penstock.box.supervisor", str(paths.root)])
        with (paths.logs / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=(api.descriptor, gateway.descriptor),
                start_new_session=True,
            )
        ProcessIdentity.of(process.pid).write(paths.pid_file)
        # It is the kernel's from here on: this command ends and the box stays.
        process.returncode = 0
    return Box(paths, settings)


def _await_api(box: Box) -> None:
    with box.kube() as kube:

        def ready() -> bool:
            _check_alive(box)
            return kube.ok("/readyz")

        wait_until(ready, _API_SECONDS, "the API server", box.paths.logs / "kube-apiserver.log")
        for path, document in bootstrap_objects():
            kube.apply(path, document, timeout=30.0)


def _await_nodes(box: Box, detail: Progress) -> None:
    wanted = frozenset(box.settings.node_names)

    def ready() -> bool:
        _check_alive(box)
        have = kube.ready_nodes() & wanted
        detail("nodes ready", len(have), len(wanted))
        # Without this account the API server takes no pod: a user's first command must not come too early.
        return have == wanted and kube.get("/api/v1/namespaces/default/serviceaccounts/default") is not None

    with box.kube() as kube:
        wait_until(ready, _NODES_SECONDS, f"the nodes {', '.join(sorted(wanted))}", box.paths.logs, poll=0.2)


def _check_alive(box: Box) -> None:
    first = ProcessIdentity.read(box.paths.pid_file)
    if first is None or not first.alive():
        log = box.paths.logs / "supervisor.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise BoxError(f"the box ended while it started ({' '.join(last) or 'no message'}); see {log}")


@contextmanager
def _door(asked: int | None, usual: int) -> Iterator[Door]:
    """A listening socket on the host's loopback, opened out here where the host's network is."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", usual if asked is None else asked))
        except OSError as error:
            if asked is not None:
                raise BoxError(f"port {asked} of 127.0.0.1 is not free ({error.strerror}): choose another") from error
            listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
        yield Door(listener.fileno(), listener.getsockname()[1])


def stop_box(name: str) -> bool:
    """End the box called `name` and remove its folder; False when there was neither. The cache stays."""
    paths = BoxPaths.of(name)
    existed = paths.root.exists()
    _end(paths)
    _remove(paths.root)
    return existed


def _end(paths: BoxPaths) -> None:
    first = ProcessIdentity.read(paths.pid_file)
    if first is not None:
        end_box(first)


def _remove(folder: Path) -> None:
    def mend(function: Any, path: str, _error: Any) -> None:
        # A pod may have taken its own right to write away; it is the owner's to give back.
        stuck = Path(path)
        stuck.parent.chmod(0o700)
        if not stuck.is_symlink():
            stuck.chmod(0o700)
        function(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=mend)


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the box's lock, so that two commands never change one box at once."""
    paths = BoxPaths.of(name)
    paths.root.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BoxError(f"another command is working on the box {name!r}: wait for it to end") from error
        try:
            yield
        finally:
            if not paths.root.exists():
                paths.lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    paths.root.parent.rmdir()
