"""The words the conformance tests are written in: a namespace of a box, and the objects they put into it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.box.errors import BoxError
from penstock.box.lifecycle import Box
from penstock.box.testing import kubectl

Object = dict[str, Any]
TOOLBOX = "penstock/toolbox"
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Space:
    """A namespace of the box, and the words the tests are written in."""

    box: Box
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in this namespace; returns its output, raises BoxError with what it said."""
        return kubectl(self.box, "--namespace", self.name, *arguments, stdin=stdin)

    def command(self) -> list[str]:
        """kubectl in this namespace, for what runs in the background."""
        return [self.box.program("kubectl"), f"--kubeconfig={self.box.kubeconfig}", "--namespace", self.name]

    def apply(self, *objects: Object) -> None:
        """Apply objects to this namespace."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def get(self, *arguments: str) -> Object:
        """An object, or a list, as JSON."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        assert isinstance(found, dict)
        return found

    def container(self, pod: str, index: int = 0) -> Object:
        """The status of a pod's container, empty while there is none."""
        statuses = self.get("pod", pod)["status"].get("containerStatuses") or [{}]
        status = statuses[index]
        assert isinstance(status, dict)
        return status

    def ready(self, *pods: str) -> None:
        """Wait until the pods are Ready."""
        self.kubectl("wait", "--for=condition=Ready", f"--timeout={int(PATIENCE)}s", *(f"pod/{pod}" for pod in pods))

    def done(self, pod: str) -> str:
        """Wait until the pod has Succeeded; returns its log."""
        self.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={int(PATIENCE)}s", f"pod/{pod}")
        return self.kubectl("logs", pod)


def succeeds(call: Callable[[], object]) -> bool:
    """Whether kubectl has nothing to say against it."""
    try:
        call()
    except BoxError:
        return False
    return True


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until `condition` holds; fails naming `what` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience:.0f} s"
        time.sleep(0.25)


def pod(name: str, script: str, *, spec: Object | None = None, **container: Any) -> Object:
    """A pod of one container that runs a shell script; gives up its place at once when deleted."""
    main = {"name": "main", "image": TOOLBOX, "command": ["sh", "-c", script], **container}
    body = {"terminationGracePeriodSeconds": 1, "containers": [main], **(spec or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": body}


def once(name: str, script: str, *, spec: Object | None = None, **container: Any) -> Object:
    """A pod that runs to its end once."""
    return pod(name, script, spec={"restartPolicy": "Never", **(spec or {})}, **container)


def web(name: str, text: str, replicas: int) -> Object:
    """A Deployment that serves `text` on port 8000 and never has fewer than `replicas`."""
    script = f"mkdir /tmp/www && echo {text} > /tmp/www/index.html && cd /tmp/www && exec python -m http.server 8000"
    container = {
        "name": "web", "image": TOOLBOX, "command": ["sh", "-c", script], "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
        # Endpoints lag behind deletion: the server answers on until the proxies know.
        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
    }  # fmt: skip
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 3, "containers": [container]}}
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "strategy": strategy, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def service(name: str) -> Object:
    """A Service in front of the pods labelled with its name."""
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
