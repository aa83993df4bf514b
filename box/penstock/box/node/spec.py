"""The node's spec file: what the box says when it starts a node. Checked at the door, immutable inside."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class SpecError(ValueError):
    """The spec file cannot be used; the message says where and why."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Taint(_Model):
    """A taint the node registers with."""

    key: str
    value: str = ""
    effect: str


class Gpus(_Model):
    """Simulated devices the node offers."""

    resource: str = "nvidia.com/gpu"
    count: int = Field(ge=0, le=1024)


class NodeSpec(_Model):
    """One node. Paths are absolute; the sockets, folders and bridge of the box exist already."""

    name: str = Field(min_length=1, max_length=63)
    ip: str
    kubeconfig: Path
    """Of the kubelet (user system:node:<name>)."""
    ca: Path
    """The cluster's authority."""
    client_ca: Path = Field(alias="clientCA")
    """The authority whose clients (API server, tests) the kubelet believes."""
    serving_cert: Path
    serving_key: Path
    state_dir: Path
    log_dir: Path
    bin_dir: Path
    """Holds `kubelet` and `cri-streaming`."""
    cluster_dns: str = Field(default="10.96.0.10", alias="clusterDNS")
    cluster_domain: str = "cluster.local"
    pod_cidr: str = Field(alias="podCIDR")
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
    gpus: Gpus | None = None
    images: dict[str, tuple[str, ...]] = {}
    """Further images of the table: repository -> default command."""
    venv: Path
    """The Python environment behind `penstock/*` images."""
    max_pods: int = Field(default=110, ge=1, le=250)


def load(path: Path) -> NodeSpec:
    """Read and check a spec file; raises SpecError."""
    try:
        return NodeSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError(f"cannot read node spec {path}: {error.strerror}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise SpecError(f"node spec {path} is wrong: {faults}") from error
