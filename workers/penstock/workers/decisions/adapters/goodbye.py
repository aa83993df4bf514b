"""The drain script as the operator ships it: one file, in a ConfigMap, run by the Python of the engine's image."""

from functools import cache
from importlib.resources import files
from typing import Any

from penstock.workers.decisions.adapters.spec import WorkerSpec

DRAIN_FILE = "drain.py"
DRAIN_MOUNT = "/etc/penstock"


@cache
def drain_script() -> str:
    """The text of `penstock.workers.drain`, to be stored under the key `DRAIN_FILE`."""
    return files("penstock.workers").joinpath(DRAIN_FILE).read_text(encoding="utf-8")


def drain_volume(spec: WorkerSpec) -> dict[str, Any]:
    """The ConfigMap as a volume; world-readable, since the engine's user is the image's business."""
    return {"name": "drain", "configMap": {"name": spec.drain_config_map, "defaultMode": 0o444}}


def drain_mount() -> dict[str, Any]:
    """Where the script appears in the engine's container."""
    return {"name": "drain", "mountPath": DRAIN_MOUNT, "readOnly": True}


def drain_hook(spec: WorkerSpec) -> dict[str, Any]:
    """The preStop hook: SIGTERM comes only after the worker has been idle for long enough, or at the deadline."""
    # -I -S: neither the engine's environment nor its site packages may change what the script does.
    command = ["python3", "-I", "-S", f"{DRAIN_MOUNT}/{DRAIN_FILE}", "--port", str(spec.port)]
    command += ["--idle-s", f"{spec.drain_idle_s:g}", "--deadline-s", f"{spec.drain_deadline_s:g}"]
    if spec.has_sidecar:
        command += ["--sidecar-port", str(spec.sidecar_port + 1)]
    return {"exec": {"command": command}}
