"""The kubelet's configuration, and its life: started once the runtime listens, started again should it end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.box.node.channel import RunProgram
from penstock.box.node.forks import Spawner, pipe_to_read, read_all
from penstock.box.node.spec import NodeSpec

log = logging.getLogger(__name__)

ROOT = Path("/var/lib/kubelet")
"""The kubelet's folder. Its device-plugin socket has a fixed place in it; the path is short enough for all sockets."""
CRI_SOCKET = ROOT / "cri.sock"
_PORT = 10250
_MAX_PAUSE = 10.0
_TRIM_EVERY = 30.0
_LOG_LIMIT, _LOG_KEPT = 32 << 20, 4 << 20


def configuration(spec: NodeSpec) -> dict[str, Any]:
    """The KubeletConfiguration of a node."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": spec.ip,
        "port": _PORT,
        "healthzPort": 0,
        "containerRuntimeEndpoint": f"unix://{CRI_SOCKET}",
        "podLogsDir": str(spec.log_dir / "pods"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(spec.client_ca)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(spec.serving_cert),
        "tlsPrivateKeyFile": str(spec.serving_key),
        "clusterDNS": [spec.cluster_dns],
        "clusterDomain": spec.cluster_domain,
        "registerNode": True,
        "registerWithTaints": [taint.model_dump() for taint in spec.taints],
        "maxPods": spec.max_pods,
        # No cgroups, and a user namespace around all of it.
        "featureGates": {"KubeletInUserNamespace": True},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "failCgroupV1": False,
        "localStorageCapacityIsolation": False,
        "volumePluginDir": str(ROOT / "volume-plugins"),
        # A lost node shows within its lease; the box's grace period is a few of these.
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 8,
        "syncFrequency": "10s",
        "shutdownGracePeriod": "0s",
        "shutdownGracePeriodCriticalPods": "0s",
        # Images are a table: nothing to collect. A machine's own disk may be nearly full and is not ours to judge.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # Every node sees the memory and disk of the one machine: all would evict at once, and none could relieve it.
        "evictionHard": {},
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "containerLogMaxSize": "20Mi",
    }  # fmt: skip


def arguments(spec: NodeSpec, config: Path) -> tuple[str, ...]:
    """The kubelet's command line: what its configuration file cannot say."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(spec.labels.items()))
    return (
        str(spec.bin_dir / "kubelet"),
        f"--config={config}",
        f"--root-dir={ROOT}",
        f"--cert-dir={ROOT / 'pki'}",
        f"--kubeconfig={spec.kubeconfig}",
        f"--hostname-override={spec.name}",
        f"--node-ip={spec.ip}",
        *((f"--node-labels={labels}",) if labels else ()),
        "--v=2",
    )


def write_configuration(spec: NodeSpec) -> Path:
    """Write the configuration file; returns its path."""
    path = spec.state_dir / "kubelet.json"
    path.write_text(json.dumps(configuration(spec), indent=1))
    return path


async def keep_running(
    spawner: Spawner, name: str, argv: tuple[str, ...], log_file: Path, *, fake_chown: bool = False
) -> None:
    """Run a program for ever: when it ends it is started again, after a pause that grows while it fails at once."""
    pause = 0.5
    while True:
        began = time.monotonic()
        code = await run_once(spawner, argv, log_file, fake_chown=fake_chown)
        pause = 0.5 if time.monotonic() - began > 30 else min(pause * 2, _MAX_PAUSE)
        log.warning("%s ended with code %s; starting it again in %.1f s (its log: %s)", name, code, pause, log_file)
        await asyncio.sleep(pause)


async def run_once(spawner: Spawner, argv: tuple[str, ...], log_file: Path, *, fake_chown: bool) -> int:
    """Run a program of the node to its end; returns its exit code, minus the signal if one ended it."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    error, error_end = pipe_to_read()
    try:
        request = RunProgram(argv, tuple(os.environ.items()), fake_chown)
        await spawner.fork(request, (output, error_end), ended.set_result)
    finally:
        os.close(output)
        os.close(error_end)
    with contextlib.suppress(TimeoutError):  # it may still come up; its end is what counts
        said = await read_all(error, 30.0)
        if said:
            log.error("cannot start %s: %s", argv[0], said.decode(errors="replace"))
    return await ended


async def trim_logs(files: Sequence[Path]) -> None:
    """Keep the programs' own logs within bounds for ever: beyond 32 MiB only the last 4 MiB stay."""
    while True:
        await asyncio.sleep(_TRIM_EVERY)
        for path in files:
            await asyncio.to_thread(trim, path, _LOG_LIMIT, _LOG_KEPT)


def trim(path: Path, limit: int, kept: int) -> None:
    """Cut a log that its writer appends to down to its last `kept` bytes once it has more than `limit`."""
    if not path.exists() or path.stat().st_size <= limit:
        return
    with path.open("r+b") as file:
        file.seek(-kept, os.SEEK_END)
        tail = file.read()
        file.seek(0)
        file.write(tail)
        file.truncate()
