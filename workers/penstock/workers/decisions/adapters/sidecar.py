"""The P/D sidecar in a Decode worker's pod: a native sidecar, so it starts before the engine and ends after it.

It has a port of its own beside the engine's. The gateway runs legs itself and talks to the engine; whoever picked over
gRPC or through Envoy talks to the sidecar, which alone may hand KV-transfer parameters on.
"""

from typing import Any

from penstock.workers.decisions.adapters.spec import WorkerSpec

CONTAINER = "penstock-sidecar"
PORT = "sidecar"
METRICS = "sidecar-metrics"


def sidecar_container(spec: WorkerSpec, security: dict[str, Any]) -> dict[str, Any]:
    """The init container that stays (`restartPolicy: Always`), under the security context given."""
    args = ["--port", str(spec.sidecar_port), "--metrics-port", str(spec.sidecar_port + 1)]
    args += ["--engine-port", str(spec.port), "--kv-lease", f"{spec.kv_lease_s:g}"]
    if spec.prefill_service:
        args += ["--prefill-service", f"{spec.prefill_service}:{spec.port}"]
    return {
        "name": CONTAINER,
        "image": spec.sidecar_image,
        "restartPolicy": "Always",
        "command": ["python", "-m", "penstock.workers.sidecar"],
        "args": args,
        "ports": [
            {"name": PORT, "containerPort": spec.sidecar_port, "protocol": "TCP"},
            {"name": METRICS, "containerPort": spec.sidecar_port + 1, "protocol": "TCP"},
        ],
        # Its own health only: the engine's is told by the engine's probes, and a restart here would mend nothing there.
        "startupProbe": _alive(every_s=1, failures=60),
        "livenessProbe": _alive(every_s=10, failures=3),
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": security,
    }


def _alive(every_s: int, failures: int) -> dict[str, Any]:
    check = {"httpGet": {"path": "/healthz", "port": METRICS}}
    return {**check, "periodSeconds": every_s, "timeoutSeconds": 5, "failureThreshold": failures}
