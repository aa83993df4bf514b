"""Which programs a box runs and at which versions: read from the Go modules that build them, so there is one truth.

Prometheus is pinned the same way, for whoever asks for it; a box does not need it.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from penstock.box.errors import BoxError

_REQUIRE = re.compile(r"^\s*(?:require\s+)?(?P<module>\S+)\s+(?P<version>v\d\S*)(?:\s+//.*)?$")
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

KUBERNETES_MODULE = "k8s.io/kubernetes"
ETCD_MODULE = "go.etcd.io/etcd/server/v3"
HELM_MODULE = "helm.sh/helm/v3"
PROMETHEUS_MODULE = "github.com/prometheus/prometheus"


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its name, the Go package it is built from and the folder of that package's module under `hack/`."""

    name: str
    package: str
    module: str


PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        Program("etcd", ETCD_MODULE, "kube"),
        *(
            Program(name, f"{KUBERNETES_MODULE}/cmd/{name}", "kube")
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
        ),
        Program("cri-streaming", "./streaming", "kube"),
        Program("helm", f"{HELM_MODULE}/cmd/helm", "helm"),
        *(Program(name, f"{PROMETHEUS_MODULE}/cmd/{name}", "prometheus") for name in ("prometheus", "promtool")),
    )
}

PROMETHEUS_PROGRAMS = frozenset(name for name, program in PROGRAMS.items() if program.module == "prometheus")
"""Prometheus and what checks its rules: got only when asked for."""
ALL_PROGRAMS = frozenset(PROGRAMS) - PROMETHEUS_PROGRAMS
"""Everything a box runs."""
API_PROGRAMS = frozenset({"etcd", "kube-apiserver", "kubectl"})
"""Enough for an API server without nodes."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Versions as they stand in go.mod (with their leading `v`), for one machine architecture.

    `streaming` is a digest of our own streaming server's source, which has no version.
    """

    kubernetes: str
    etcd: str
    helm: str
    prometheus: str
    streaming: str
    architecture: str

    def version_of(self, program: str) -> str:
        """The version that `program` must have."""
        if program in PROMETHEUS_PROGRAMS:
            return self.prometheus
        return {"etcd": self.etcd, "helm": self.helm, "cri-streaming": self.streaming}.get(program, self.kubernetes)


def required_version(go_mod: str, module: str) -> str:
    """The version of `module` in the text of a go.mod; raises BoxError when it is not required there."""
    for line in go_mod.splitlines():
        match = _REQUIRE.match(line)
        if match and match["module"] == module:
            return match["version"]
    raise BoxError(f"go.mod does not require {module}: the installation is incomplete, reinstall")


def prometheus_release(module_version: str) -> str:
    """Prometheus' own number for a version of its Go module: v0.315.0 is Prometheus v3.15.0."""
    match = re.fullmatch(r"v0\.([1-9]\d?)(\d\d)\.(\d+)", module_version)
    if match is None:
        raise BoxError(f"hack/prometheus requires {module_version}, which is no release of Prometheus: pin one")
    return f"v{match[1]}.{int(match[2])}.{match[3]}"


def go_architecture(machine: str | None = None) -> str:
    """Go's name of this machine's architecture; raises BoxError where no Kubernetes is released for it."""
    name = (machine or platform.machine()).lower()
    if name not in _ARCHITECTURES:
        raise BoxError(f"the box runs on x86_64 and arm64 Linux, this machine is {name}")
    return _ARCHITECTURES[name]


def read_pins(share: Path) -> Pins:
    """Pins from the modules in `hack/` below `share`."""
    kube = (share / "hack" / "kube" / "go.mod").read_text()
    helm = (share / "hack" / "helm" / "go.mod").read_text()
    prometheus = (share / "hack" / "prometheus" / "go.mod").read_text()
    return Pins(
        kubernetes=required_version(kube, KUBERNETES_MODULE),
        etcd=required_version(kube, ETCD_MODULE),
        helm=required_version(helm, HELM_MODULE),
        prometheus=prometheus_release(required_version(prometheus, PROMETHEUS_MODULE)),
        streaming=source_digest(share / "hack" / "kube" / "streaming"),
        architecture=go_architecture(),
    )


def source_digest(folder: Path) -> str:
    """Twelve hex digits over the names and contents of the Go files in `folder` (empty folder: of nothing)."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.go")):
        if not path.name.endswith("_test.go"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
