"""What any user does with a cluster, done once for them: install the chart, apply the example, ask for tokens.

Nothing here is special to the box but two values: which engine class is the default and how fast its clock runs.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from penstock.box.errors import BoxError
from penstock.box.kube import Kube
from penstock.box.lifecycle import Box
from penstock.box.paths import share_root
from penstock.box.stages import Stages

NAMESPACE = "penstock-system"
RELEASE = "penstock"
EXAMPLE = "quickstart"
PROMPT = "Explain in one sentence what a penstock is."
MAX_TOKENS = 24

_INSTALL_SECONDS = 300
_AVAILABLE_SECONDS = 300
_FIRST_TOKEN_SECONDS = 60.0
_RETRY_SECONDS = 0.5
_MEANWHILE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """The example's ModelDeployment: where it is, and the model name that clients ask for."""

    namespace: str
    name: str
    model: str


def install(box: Box, stages: Stages, *, time_scale: str, example: Path) -> Deployment:
    """`helm upgrade --install`, `kubectl apply`, and wait until the example is Available."""
    with stages.stage("install") as reporter:
        helm_install(box, time_scale, reporter.detail)
    with stages.stage("example"):
        deployment = apply_example(box, example)
    with stages.stage("available") as reporter:
        wait_available(box, deployment, reporter.detail)
    return deployment


def find_example(name: str) -> Path:
    """The folder of an example: a path, or the name of one that we ship. Raises BoxError with the names there are."""
    shipped = share_root() / "examples"
    for folder in (Path(name), shipped / name):
        if folder.exists():
            return folder
    names = ", ".join(sorted(entry.name for entry in shipped.iterdir() if entry.is_dir()))
    raise BoxError(f"no example {name!r}: give a path, or one of {names or 'none (this installation has none)'}")


def helm_install(box: Box, time_scale: str, detail: Callable[[str], None]) -> None:
    """Install or upgrade the chart, with CRDs, and wait until its pods are ready, telling what they wait for."""
    values = {"engines": {"default": "simulated", "simulated": {"timeScale": time_scale}}}
    helm = [box.program("helm"), "upgrade", "--install", RELEASE, str(share_root() / "charts" / "penstock")]
    helm += [f"--namespace={NAMESPACE}", "--create-namespace", "--wait", f"--timeout={_INSTALL_SECONDS}s"]
    with box.kube() as kube:
        try:
            _run(box, [*helm, "--values=-"], "helm upgrade --install", json.dumps(values), lambda: detail(_pods(kube)))
        except BoxError as error:
            raise BoxError(f"{error} (pods: {_pods(kube)}; see `kubectl get events -n {NAMESPACE}`)") from error


def _pods(kube: Kube) -> str:
    pods = (kube.get(f"/api/v1/namespaces/{NAMESPACE}/pods") or {"items": []})["items"]
    return pods_in_words(pods)


def pods_in_words(pods: Sequence[Mapping[str, Any]]) -> str:
    """What the pods of the release wait for, in one line."""
    waiting = {pod["metadata"]["name"]: reason for pod in pods if (reason := _why_not_ready(pod))}
    words = [f"{name} {reason}" for name, reason in sorted(waiting.items())]
    return "; ".join([f"{len(pods) - len(waiting)} of {len(pods)} pods ready", *words])


def _why_not_ready(pod: Mapping[str, Any]) -> str | None:
    status = pod.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    if status.get("phase") == "Succeeded" or conditions.get("Ready", {}).get("status") == "True":
        return None
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        if reason := container.get("state", {}).get("waiting", {}).get("reason"):
            return str(reason)
    unscheduled = conditions.get("PodScheduled", {})
    return str(unscheduled.get("message") if unscheduled.get("status") == "False" else "starting")


def apply_example(box: Box, example: Path) -> Deployment:
    """Apply every manifest of `example`; returns the ModelDeployment among them."""
    output = _run(
        box, [box.program("kubectl"), "apply", "-f", str(example), "-o", "json"], f"kubectl apply -f {example}"
    )
    document = json.loads(output)
    for item in document["items"] if document["kind"] == "List" else [document]:
        if item["kind"] == "ModelDeployment":
            metadata = item["metadata"]
            return Deployment(metadata["namespace"], metadata["name"], item["spec"]["model"]["name"])
    raise BoxError(f"{example} holds no ModelDeployment, so there is no model to ask")


def wait_available(box: Box, deployment: Deployment, detail: Callable[[str], None]) -> None:
    """Wait for the condition Available of the ModelDeployment's current generation, telling what it says meanwhile."""
    path = f"/apis/penstock.dev/v1alpha1/namespaces/{deployment.namespace}/modeldeployments/{deployment.name}"
    deadline = time.monotonic() + _AVAILABLE_SECONDS
    said = "nothing yet"
    with box.kube() as kube:
        while True:
            ready, said = availability(kube.get(path) or {})
            if ready:
                return
            detail(said)
            if time.monotonic() > deadline:
                raise BoxError(
                    f"ModelDeployment {deployment.namespace}/{deployment.name} is not Available after "
                    f"{_AVAILABLE_SECONDS} s: {said}; see `kubectl describe mdep -n {deployment.namespace}`"
                )
            time.sleep(_RETRY_SECONDS)


def availability(document: Mapping[str, object]) -> tuple[bool, str]:
    """(is it Available, what its conditions say) of a ModelDeployment as the API server returns it."""
    status = document.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    by_type = {condition["type"]: condition for condition in conditions}
    available = by_type.get("Available")
    if available is not None and available["status"] == "True":
        return True, str(available.get("message", ""))
    bad = [c for c in conditions if c["status"] == "False" and c["type"] != "Degraded"]
    said = "; ".join(f"{c['type']}: {c.get('message') or c.get('reason')}" for c in bad)
    return False, said or "the operator has not reported yet"


def stream_tokens(box: Box, deployment: Deployment) -> Iterator[str]:
    """Text of a real streamed completion through the gateway's port on the host, piece by piece as it comes.

    The first request may come before the gateway knows the worker, so it is asked again for a while.
    """
    deadline = time.monotonic() + _FIRST_TOKEN_SECONDS
    while True:
        try:
            yield from _stream_once(box, deployment)
            return
        except _NotYet as reason:
            if time.monotonic() > deadline:
                raise BoxError(f"the gateway at {box.gateway_url} gave no tokens: {reason}") from None
            time.sleep(_RETRY_SECONDS)


class _NotYet(Exception):
    """No token came, and asking again may help."""


def _stream_once(box: Box, deployment: Deployment) -> Iterator[str]:
    body = {"model": deployment.model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "stream": True}
    began = False
    try:
        with httpx.stream(
            "POST", f"{box.gateway_url}/v1/completions", json=body, timeout=_FIRST_TOKEN_SECONDS, trust_env=False
        ) as response:
            if not response.is_success:
                raise _NotYet(f"status {response.status_code}, {response.read()[:200].decode(errors='replace')}")
            for text in (_event_text(line) for line in response.iter_lines()):
                if text:
                    began = True
                    yield text
    except httpx.HTTPError as error:
        if began:
            raise BoxError(f"the stream broke off: {error or type(error).__name__}") from error
        raise _NotYet(str(error) or type(error).__name__) from error
    if not began:
        raise _NotYet("the stream ended without text")


def _event_text(line: str) -> str:
    payload = line.removeprefix("data:").strip()
    if not line.startswith("data:") or payload == "[DONE]":
        return ""
    choices = json.loads(payload).get("choices") or [{}]
    return str(choices[0].get("text") or "")


def _run(
    box: Box,
    command: Sequence[str],
    what: str,
    stdin: str = "",
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """Run kubectl or helm as the administrator, calling `meanwhile` every two seconds; returns what it printed."""
    pipe = subprocess.PIPE
    deadline = time.monotonic() + _INSTALL_SECONDS + 60
    with subprocess.Popen(
        [*command, f"--kubeconfig={box.kubeconfig}"],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=box.tool_environment(),
        text=True,
    ) as process:
        given: str | None = stdin
        while True:
            try:
                stdout, stderr = process.communicate(given, timeout=_MEANWHILE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                given = None  # It has it already.
                meanwhile()
            if time.monotonic() > deadline:
                process.kill()
                raise BoxError(f"`{what}` did not end within {_INSTALL_SECONDS + 60} s")
    if process.returncode != 0:
        raise BoxError(f"`{what}` failed: {' '.join(stderr.split()[-120:])}")
    return stdout
