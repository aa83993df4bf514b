"""Everything a box needs on disk before it starts: keys, kubeconfigs, node specs, and the supervisor's orders."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.box import components
from penstock.box.binaries import Programs
from penstock.box.kubeconfig import write_kubeconfig
from penstock.box.namespaces import node_command
from penstock.box.netlink import HOST_ADDRESS
from penstock.box.nodes import Node, NodeFiles, write_node_spec
from penstock.box.paths import BoxPaths
from penstock.box.pki import ClusterPki, create_cluster_pki
from penstock.box.settings import (
    GATEWAY,
    INNER_API_PORT,
    INNER_ETCD_PEER_PORT,
    INNER_ETCD_PORT,
    ProcessOrder,
    Settings,
)

NODE_PROGRAMS = frozenset({"kubelet", "cri-streaming"})
CONTROL_PROGRAMS = frozenset({"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"})


@dataclass(frozen=True, slots=True)
class Door:
    """A listening socket of the host's loopback that leads into the box."""

    descriptor: int
    port: int


def assemble(
    name: str, paths: BoxPaths, nodes: Sequence[Node], nodes_text: str, programs: Programs, api: Door, gateway: Door
) -> tuple[Settings, ClusterPki]:
    """Write all files of a box into `paths.root` (which exists and is empty); returns what the supervisor will run."""
    for folder in (paths.logs, paths.root / "nodes", paths.root / "kubeconfigs"):
        folder.mkdir()
    pki = create_cluster_pki(
        paths.pki,
        dt.datetime.now(dt.UTC),
        api_addresses=(components.API_SERVICE_ADDRESS, HOST_ADDRESS),
        nodes=[(node.name, node.address) for node in nodes],
    )
    write_kubeconfig(
        paths.kubeconfig, f"https://127.0.0.1:{api.port}", pki.ca_pem, pki.admin, context=f"penstock-{name}"
    )
    orders = [*_control_plane(paths, pki, programs), _services(paths, pki, api, gateway)]
    orders += [_node(node, paths, pki, programs) for node in nodes]
    settings = Settings(
        name=name,
        version=programs.folder_of(CONTROL_PROGRAMS).name,
        nodes=nodes_text,
        node_names=[node.name for node in nodes],
        node_addresses=[node.address for node in nodes],
        processes=orders,
        programs={program: str(programs.path(program)) for program in sorted(programs.folders)},
        api_port=api.port,
        gateway_port=gateway.port,
    )
    settings.write(paths.settings)
    return settings, pki


def _control_plane(paths: BoxPaths, pki: ClusterPki, programs: Programs) -> list[ProcessOrder]:
    plane = components.ControlPlane(
        programs=programs.folder_of(CONTROL_PROGRAMS),
        pki=pki,
        data=paths.root,
        bind="0.0.0.0",  # of the box's own network: pods reach it too, the host cannot
        api_port=INNER_API_PORT,
        etcd_port=INNER_ETCD_PORT,
        etcd_peer_port=INNER_ETCD_PEER_PORT,
        advertise=HOST_ADDRESS,
    )
    manager = _inner_kubeconfig(paths, pki, "controller-manager")
    scheduler = _inner_kubeconfig(paths, pki, "scheduler")
    commands = {
        "etcd": components.etcd(plane),
        "kube-apiserver": components.kube_apiserver(plane),
        "kube-controller-manager": components.kube_controller_manager(plane, manager),
        "kube-scheduler": components.kube_scheduler(plane, scheduler),
    }
    return [ProcessOrder(name, "component", command, []) for name, command in commands.items()]


def _inner_kubeconfig(paths: BoxPaths, pki: ClusterPki, who: str) -> Path:
    identity = {
        "controller-manager": pki.controller_manager,
        "scheduler": pki.scheduler,
        "service-proxy": pki.service_proxy,
    }.get(who) or pki.nodes[who].client
    path = paths.root / "kubeconfigs" / who
    return write_kubeconfig(path, f"https://127.0.0.1:{INNER_API_PORT}", pki.ca_pem, identity)


def _services(paths: BoxPaths, pki: ClusterPki, api: Door, gateway: Door) -> ProcessOrder:
    command = [
        sys.executable,
        "-m",
        "penstock.box.services",
        f"--kubeconfig={_inner_kubeconfig(paths, pki, 'service-proxy')}",
        f"--api-door={api.descriptor}",
        f"--gateway-door={gateway.descriptor}",
        f"--gateway={GATEWAY.namespace}/{GATEWAY.name}/{GATEWAY.port}",
    ]
    return ProcessOrder("service-proxy", "component", command, [api.descriptor, gateway.descriptor])


def _node(node: Node, paths: BoxPaths, pki: ClusterPki, programs: Programs) -> ProcessOrder:
    identity = pki.nodes[node.name]
    state, logs = paths.root / "nodes" / node.name, paths.logs / node.name
    state.mkdir()
    logs.mkdir()
    files = NodeFiles(
        kubeconfig=_inner_kubeconfig(paths, pki, node.name),
        ca=pki.ca.certificate,
        serving_certificate=identity.serving.certificate,
        serving_key=identity.serving.key,
        state=state,
        logs=logs,
        programs=programs.folder_of(NODE_PROGRAMS),
    )
    spec = write_node_spec(paths.root / "nodes" / f"{node.name}.json", node, files)
    command = node_command([sys.executable, "-m", "penstock.box.node", "--spec", str(spec)])
    return ProcessOrder(f"node-{node.name}", "node", command, [])
