"""What one worker is to be, gathered from deployment, pool, engine class, accelerator class and profile.

The operator resolves its API objects into this one value, so that adapters know no Kubernetes kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.core.models import LatencyProfile, Parallelism

ROLES = ("Prefill", "Decode", "PrefillDecode")
MAX_PORT = 65535
DRAIN_MARGIN_S = 5.0
"""Seconds between the drain's last moment and the engine's own shutdown window: room for a SIGTERM to arrive."""


class AdapterError(ValueError):
    """The worker cannot be rendered; the message is a sentence for the user (condition Accepted=False)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker, fully resolved. Times in seconds, memory in tokens; nothing is looked up afterwards."""

    model_name: str
    """The served name (`spec.model.name`)."""
    role: str
    """`Prefill`, `Decode` or `PrefillDecode`."""
    image: str
    parallelism: Parallelism
    drain_config_map: str
    """ConfigMap that holds the drain script under the key `DRAIN_FILE`."""

    model_uri: str | None = None
    """`hf://org/name[@revision]`, `pvc://claim/path`, `oci://image` or `/path` in the image.

    None: the repository of the served name at Hugging Face.
    """
    secret_name: str | None = None
    """Secret whose key `HF_TOKEN` opens a gated Hugging Face repository."""
    max_context_tokens: int | None = None
    accelerator: str = ""
    """Accelerator class by name; goes into messages only."""
    accelerator_resource: str | None = "nvidia.com/gpu"
    """Extended resource to ask for; None where the class has no device (a CPU class)."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    image_pull_policy: str | None = None
    image_pull_secrets: Sequence[str] = ()
    command: Sequence[str] = ()
    """Replaces the adapter's command; empty keeps it."""
    args: Sequence[str] = ()
    """The engine class's arguments followed by the deployment's: a later flag wins, over ours too."""
    env: Sequence[Mapping[str, Any]] = ()
    """EnvVars as Kubernetes writes them; one of the same name replaces ours."""
    port: int = 8000
    block_size: int | None = None
    """Tokens per KV block; None leaves it to the engine."""
    max_num_seqs: int | None = None
    shutdown_timeout_s: float = 20.0
    """How long the engine may finish running requests after SIGTERM."""
    grace_s: float = 120.0
    """`terminationGracePeriodSeconds`: drain, shutdown and `DRAIN_MARGIN_S` happen inside it."""
    idle_s: float = 5.0
    """Silence after which the drain calls the worker idle: max(pick TTL, KV lease)."""
    startup_timeout_s: float = 1800.0
    """How long the startup probe waits for weights and compilation."""
    cache_claim: str | None = None
    """PersistentVolumeClaim for downloaded weights; None: an emptyDir that dies with the pod."""
    kv_lease_s: float = 30.0
    """How long a prefill worker keeps a finished prompt's blocks for its decode leg."""
    sidecar_image: str = ""
    """Image of the P/D sidecar, which stands before a Decode worker's engine; empty: none does."""
    prefill_service: str = ""
    """Headless Service of the prefill workers of the same deployment and KV-compatibility hash."""

    # Only the simulated engine reads what follows.
    profile: LatencyProfile | None = None
    kv_capacity_tokens: int | None = None
    time_scale: float = 1.0
    """Simulated seconds are multiplied by this: 0.1 runs ten times faster than the profile."""
    startup_s: float = 0.0
    """How long the simulated engine takes to load, before `time_scale`."""

    def __post_init__(self) -> None:
        """Refuse what no adapter can render, in words the user can act on."""
        if not self.model_name:
            raise AdapterError("the model has no name; set spec.model.name")
        if not self.image:
            raise AdapterError("the engine has no image; set it in the engine class or in spec.engine.image")
        if self.role not in ROLES:
            raise AdapterError(f"role {self.role!r} is not known; use one of {', '.join(ROLES)}")
        if self.drain_deadline_s <= 0:
            raise AdapterError(
                f"a grace period of {self.grace_s:g} s leaves no time to drain: it must exceed the shutdown time-out "
                f"of {self.shutdown_timeout_s:g} s by more than {DRAIN_MARGIN_S:g} s"
            )
        if self.drain_deadline_s < self.drain_idle_s:
            raise AdapterError(
                f"a grace period of {self.grace_s:g} s leaves {self.drain_deadline_s:g} s to drain, less than the "
                f"{self.drain_idle_s:g} s a worker must be idle; raise terminationGracePeriod in the engine class"
            )
        if self.has_sidecar and self.sidecar_port + 1 > MAX_PORT:
            raise AdapterError(f"port {self.port} leaves no room for the sidecar's two after it; choose a lower one")
        if self.time_scale <= 0:
            raise AdapterError(f"a time scale of {self.time_scale:g} would stop time; use a number above 0")

    @property
    def transfers_kv(self) -> bool:
        """Whether the worker's role hands KV blocks over or takes them."""
        return self.role != "PrefillDecode"

    @property
    def has_sidecar(self) -> bool:
        """Whether the pod has a P/D sidecar."""
        return self.role == "Decode" and bool(self.sidecar_image)

    @property
    def sidecar_port(self) -> int:
        """Where the sidecar takes requests; the port after it has its metrics."""
        return self.port + 1

    @property
    def drain_idle_s(self) -> float:
        """Idle time the drain asks for; blocks on lease are work that no gauge of vLLM shows."""
        return max(self.idle_s, self.kv_lease_s) if self.transfers_kv else self.idle_s

    @property
    def drain_deadline_s(self) -> float:
        """Seconds after the pod's deletion at which the drain gives up and lets SIGTERM come."""
        return self.grace_s - self.shutdown_timeout_s - DRAIN_MARGIN_S
