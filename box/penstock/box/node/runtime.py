"""The kubelet's RuntimeService: sandboxes, containers, commands, statistics.

This file translates between the protocol's messages and the box's records; what happens, happens in `pods` and
`containers`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from penstock.box.node import images, plan, stats
from penstock.box.node.containers import Containers
from penstock.box.node.images import BoxImage
from penstock.box.node.plan import HostView
from penstock.box.node.pods import Pods
from penstock.box.node.records import ContainerRecord, Sandbox, Shelf, has_labels, new_id
from penstock.box.node.rpc import RpcError, not_found
from penstock.box.node.streaming import StreamingServer
from penstock.box.node.wire import cri_pb2 as cri

RUNTIME_NAME = "penstock-box"
_KILL_AFTER_STOP = 0.0


@dataclass(slots=True)
class RuntimeService:
    """CRI RuntimeService of one node: methods named after the protocol's, raising what `rpc` turns into statuses."""

    shelf: Shelf
    pods: Pods
    containers: Containers
    images: dict[str, BoxImage]
    host: HostView
    streaming: StreamingServer
    usage: stats.UsageMeter = field(default_factory=stats.UsageMeter)

    # ---- who we are ----

    async def version(self, request: Any) -> Any:
        """Name and version of this runtime."""
        return cri.VersionResponse(
            version="0.1.0", runtime_name=RUNTIME_NAME, runtime_version="0.1.0", runtime_api_version="v1"
        )

    async def status(self, request: Any) -> Any:
        """Ready from the first answer on: the network exists before the node starts."""
        conditions = [cri.RuntimeCondition(type=kind, status=True) for kind in ("RuntimeReady", "NetworkReady")]
        return cri.StatusResponse(status=cri.RuntimeStatus(conditions=conditions))

    async def runtime_config(self, request: Any) -> Any:
        """The cgroup driver the kubelet should assume; the box uses no cgroups."""
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CgroupDriver.CGROUPFS))

    async def update_runtime_config(self, request: Any) -> Any:
        """The pod range comes from the node's spec file, so the kubelet's word is only acknowledged."""
        return cri.UpdateRuntimeConfigResponse()

    # ---- sandboxes ----

    async def run_pod_sandbox(self, request: Any) -> Any:
        """Open a pod's sandbox."""
        sandbox = await self.pods.open(request.config)
        self.shelf.sandboxes[sandbox.id] = sandbox
        return cri.RunPodSandboxResponse(pod_sandbox_id=sandbox.id)

    async def stop_pod_sandbox(self, request: Any) -> Any:
        """End what still runs in a sandbox and let go of its address; one that is gone is fine."""
        sandbox = self.shelf.sandboxes.get(request.pod_sandbox_id)
        if sandbox is not None:
            for record in self.shelf.containers_of(sandbox):
                await self.containers.stop(record, _KILL_AFTER_STOP)
            self.pods.close(sandbox)
        return cri.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, request: Any) -> Any:
        """Forget a sandbox and its containers."""
        sandbox = self.shelf.sandboxes.get(request.pod_sandbox_id)
        if sandbox is not None:
            await self.stop_pod_sandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox.id))
            for record in self.shelf.containers_of(sandbox):
                del self.shelf.containers[record.id]
            del self.shelf.sandboxes[sandbox.id]
        return cri.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, request: Any) -> Any:
        """State and address of a sandbox."""
        sandbox = self._sandbox(request.pod_sandbox_id)
        options = sandbox.config.linux.security_context.namespace_options
        status = cri.PodSandboxStatus(
            **_sandbox_fields(sandbox), network=cri.PodSandboxNetworkStatus(ip=sandbox.address or ""),
            linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=options)),
        )  # fmt: skip
        return cri.PodSandboxStatusResponse(status=status)

    async def list_pod_sandbox(self, request: Any) -> Any:
        """Sandboxes that pass the filter."""
        wanted = request.filter
        items = [
            cri.PodSandbox(**_sandbox_fields(sandbox))
            for sandbox in self.shelf.sandboxes.values()
            if sandbox.id.startswith(wanted.id)
            and (not wanted.HasField("state") or wanted.state.state == _sandbox_state(sandbox))
            and has_labels(sandbox.config.labels, wanted.label_selector)
        ]
        return cri.ListPodSandboxResponse(items=items)

    # ---- containers ----

    async def create_container(self, request: Any) -> Any:
        """Work out what a container needs; nothing runs yet."""
        sandbox = self._sandbox(request.pod_sandbox_id)
        config = request.config
        image = images.find(self.images, config.image.image)
        if image is None:
            raise not_found(images.unknown_image(self.images, config.image.image))
        process = plan.process(config, image, sandbox.hostname)
        readonly = config.linux.security_context.readonly_rootfs
        root = plan.root(self.host, process, config.mounts, _etc(sandbox), readonly=readonly)
        folder, name = sandbox.config.log_directory, config.log_path
        record = ContainerRecord(
            id=new_id(), sandbox=sandbox, config=config, image=image, process=process, root=root,
            created_at=time.time_ns(), log_path=Path(folder, name) if folder and name else None,
        )  # fmt: skip
        self.shelf.containers[record.id] = record
        return cri.CreateContainerResponse(container_id=record.id)

    async def start_container(self, request: Any) -> Any:
        """Start a created container."""
        record = self._container(request.container_id)
        await self.containers.start(record)
        return cri.StartContainerResponse()

    async def stop_container(self, request: Any) -> Any:
        """Stop a container within its grace; one that is gone is fine."""
        record = self.shelf.containers.get(request.container_id)
        if record is not None:
            await self.containers.stop(record, float(request.timeout))
        return cri.StopContainerResponse()

    async def remove_container(self, request: Any) -> Any:
        """Forget a container, ending it first if need be."""
        record = self.shelf.containers.get(request.container_id)
        if record is not None:
            await self.containers.stop(record, _KILL_AFTER_STOP)
            record.close()
            self.shelf.containers.pop(record.id, None)
        return cri.RemoveContainerResponse()

    async def list_containers(self, request: Any) -> Any:
        """Containers that pass the filter."""
        wanted = request.filter
        items = [
            cri.Container(**_container_fields(record), pod_sandbox_id=record.sandbox.id)
            for record in self._matching(wanted)
            if not wanted.HasField("state") or wanted.state.state == _container_state(record)
        ]
        return cri.ListContainersResponse(containers=items)

    def _matching(self, wanted: Any) -> list[ContainerRecord]:
        return [
            record
            for record in self.shelf.containers.values()
            if record.id.startswith(wanted.id)
            and record.sandbox.id.startswith(wanted.pod_sandbox_id)
            and has_labels(record.config.labels, wanted.label_selector)
        ]

    async def container_status(self, request: Any) -> Any:
        """State of a container, how it ended, and (verbose) its process id on the node."""
        record = self._container(request.container_id)
        user = cri.ContainerUser(linux=cri.LinuxContainerUser(uid=record.process.uid, gid=record.process.gid))
        status = cri.ContainerStatus(
            **_container_fields(record), started_at=record.started_at, finished_at=record.finished_at,
            exit_code=record.exit_code, reason=_reason(record), message=record.message, mounts=record.config.mounts,
            log_path=str(record.log_path or ""), user=user,
        )  # fmt: skip
        return cri.ContainerStatusResponse(status=status, info={"pid": str(record.pid)} if request.verbose else {})

    async def update_container_resources(self, request: Any) -> Any:
        """Limits are accounted by the scheduler and the kubelet, not enforced: nothing to change."""
        self._container(request.container_id)
        return cri.UpdateContainerResourcesResponse()

    async def reopen_container_log(self, request: Any) -> Any:
        """The kubelet has renamed the log: go on in a new file."""
        record = self._container(request.container_id)
        if not record.running or record.log is None:
            raise RpcError(grpc.StatusCode.FAILED_PRECONDITION, f"container {record.id} is not running")
        record.log.reopen()
        return cri.ReopenContainerLogResponse()

    # ---- commands ----

    async def exec_sync(self, request: Any) -> Any:
        """Run a command to its end (probes, lifecycle hooks)."""
        record = self._container(request.container_id)
        try:
            out, err, code = await self.containers.run(record, list(request.cmd), float(request.timeout))
        except TimeoutError:
            message = f"command {' '.join(request.cmd)!r} timed out after {request.timeout} s"
            raise RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
        return cri.ExecSyncResponse(stdout=out, stderr=err, exit_code=code)

    async def exec(self, request: Any) -> Any:
        """A URL at which the command's streams can be had once."""
        self._running(request.container_id)
        return cri.ExecResponse(url=await self.streaming.url_for("exec", request))

    async def attach(self, request: Any) -> Any:
        """A URL at which the container's own streams can be had once."""
        self._running(request.container_id)
        return cri.AttachResponse(url=await self.streaming.url_for("attach", request))

    async def port_forward(self, request: Any) -> Any:
        """A URL that leads to ports inside the pod."""
        self._sandbox(request.pod_sandbox_id)
        return cri.PortForwardResponse(url=await self.streaming.url_for("portforward", request))

    # ---- statistics ----

    async def container_stats(self, request: Any) -> Any:
        """Processor and memory use of one container."""
        record = self._container(request.container_id)
        return cri.ContainerStatsResponse(stats=stats.container_stats(record, self.usage.read()))

    async def list_container_stats(self, request: Any) -> Any:
        """Processor and memory use of the running containers that pass the filter."""
        usage = self.usage.read()
        found = [stats.container_stats(record, usage) for record in self._matching(request.filter) if record.running]
        return cri.ListContainerStatsResponse(stats=found)

    async def pod_sandbox_stats(self, request: Any) -> Any:
        """Processor and memory use of one pod."""
        sandbox = self._sandbox(request.pod_sandbox_id)
        records = self.shelf.containers_of(sandbox)
        return cri.PodSandboxStatsResponse(stats=stats.sandbox_stats(sandbox, records, self.usage.read()))

    async def list_pod_sandbox_stats(self, request: Any) -> Any:
        """Processor and memory use of the pods that pass the filter."""
        usage = self.usage.read()
        found = [
            stats.sandbox_stats(sandbox, self.shelf.containers_of(sandbox), usage)
            for sandbox in self.shelf.sandboxes.values()
            if sandbox.ready
            and sandbox.id.startswith(request.filter.id)
            and has_labels(sandbox.config.labels, request.filter.label_selector)
        ]
        return cri.ListPodSandboxStatsResponse(stats=found)

    async def list_metric_descriptors(self, request: Any) -> Any:
        """The runtime exports no metrics beyond the statistics."""
        return cri.ListMetricDescriptorsResponse()

    async def list_pod_sandbox_metrics(self, request: Any) -> Any:
        """The runtime exports no metrics beyond the statistics."""
        return cri.ListPodSandboxMetricsResponse()

    # ---- look-ups ----

    def _sandbox(self, wanted: str) -> Sandbox:
        sandbox = self.shelf.sandboxes.get(wanted)
        if sandbox is None:
            raise not_found(f"no sandbox {wanted}")
        return sandbox

    def _container(self, wanted: str) -> ContainerRecord:
        record = self.shelf.containers.get(wanted)
        if record is None:
            raise not_found(f"no container {wanted}")
        return record

    def _running(self, wanted: str) -> ContainerRecord:
        record = self._container(wanted)
        if not record.running:
            raise RpcError(
                grpc.StatusCode.FAILED_PRECONDITION, f"container {record.config.metadata.name} is not running"
            )
        return record


def _etc(sandbox: Sandbox) -> dict[str, str]:
    dns, hostname = sandbox.config.dns_config, sandbox.hostname
    hosts = "127.0.0.1 localhost\n" + (f"{sandbox.address} {hostname}\n" if sandbox.address else "")
    return {
        "resolv.conf": plan.resolv_conf(dns.servers, dns.searches, dns.options),
        "hostname": f"{hostname}\n",
        "hosts": hosts,
    }


def _sandbox_state(sandbox: Sandbox) -> Any:
    return cri.PodSandboxState.SANDBOX_READY if sandbox.ready else cri.PodSandboxState.SANDBOX_NOTREADY


def _sandbox_fields(sandbox: Sandbox) -> dict[str, Any]:
    config = sandbox.config
    return {
        "id": sandbox.id, "metadata": config.metadata, "state": _sandbox_state(sandbox),
        "created_at": sandbox.created_at, "labels": config.labels, "annotations": config.annotations,
    }  # fmt: skip


def _container_state(record: ContainerRecord) -> Any:
    if record.exited.is_set():
        return cri.ContainerState.CONTAINER_EXITED
    return cri.ContainerState.CONTAINER_RUNNING if record.started_at else cri.ContainerState.CONTAINER_CREATED


def _container_fields(record: ContainerRecord) -> dict[str, Any]:
    config = record.config
    return {
        "id": record.id, "metadata": config.metadata, "state": _container_state(record),
        "created_at": record.created_at, "image": config.image, "image_ref": record.image.id,
        "image_id": record.image.id, "labels": config.labels,
        "annotations": config.annotations,
    }  # fmt: skip


def _reason(record: ContainerRecord) -> str:
    if not record.exited.is_set():
        return ""
    if record.message:
        return "ContainerCannotRun"
    return "Completed" if record.exit_code == 0 else "Error"
