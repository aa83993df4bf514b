"""The command lines of the control plane: what each real Kubernetes program is told, as pure data.

The same lines serve the whole box (inside its namespaces) and the bare API server that tests start on loopback.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.box.pki import ClusterPki

SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
CLUSTER_DOMAIN = "cluster.local"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"

# A lost node must show within a test's patience: unreachable after 20 s, its pods evicted 30 s later.
NODE_GRACE_SECONDS = 20
TOLERATION_SECONDS = 30


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What the command lines need to know. Ports are TCP; `bind` is the address the API server listens on.

    `advertise` is the address pods reach it at; None keeps the `kubernetes` Service without endpoints (an API server
    refuses loopback addresses there).
    """

    programs: Path
    pki: ClusterPki
    data: Path
    bind: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    advertise: str | None = None


def etcd(plane: ControlPlane) -> list[str]:
    """The database. Its data is thrown away with the box, so it never waits for the disk."""
    client = f"https://127.0.0.1:{plane.etcd_port}"
    peer = f"https://127.0.0.1:{plane.etcd_peer_port}"
    pki = plane.pki
    return [
        str(plane.programs / "etcd"),
        "--name=box",
        f"--data-dir={plane.data / 'etcd'}",
        "--unsafe-no-fsync",
        "--logger=zap",
        "--log-level=warn",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=box={peer}",
        f"--cert-file={pki.etcd_server.certificate}",
        f"--key-file={pki.etcd_server.key}",
        "--client-cert-auth",
        f"--trusted-ca-file={pki.etcd_ca.certificate}",
        f"--peer-cert-file={pki.etcd_server.certificate}",
        f"--peer-key-file={pki.etcd_server.key}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={pki.etcd_ca.certificate}",
    ]


def kube_apiserver(plane: ControlPlane) -> list[str]:
    """The API server, with RBAC, NodeRestriction and (by Kubernetes' own default) Pod Security admission."""
    reach = ["--endpoint-reconciler-type=none"]
    if plane.advertise is not None:
        reach = [f"--advertise-address={plane.advertise}"]
    return [
        str(plane.programs / "kube-apiserver"),
        f"--bind-address={plane.bind}",
        f"--secure-port={plane.api_port}",
        *reach,
        *_apiserver_identity(plane),
        *_apiserver_accounts(plane.pki),
        *_apiserver_front_proxy(plane.pki),
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--default-not-ready-toleration-seconds={TOLERATION_SECONDS}",
        f"--default-unreachable-toleration-seconds={TOLERATION_SECONDS}",
    ]


def _apiserver_identity(plane: ControlPlane) -> list[str]:
    pki = plane.pki
    return [
        f"--cert-dir={plane.data / 'apiserver'}",
        f"--etcd-servers=https://127.0.0.1:{plane.etcd_port}",
        f"--etcd-cafile={pki.etcd_ca.certificate}",
        f"--etcd-certfile={pki.etcd_client.certificate}",
        f"--etcd-keyfile={pki.etcd_client.key}",
        f"--client-ca-file={pki.ca.certificate}",
        f"--tls-cert-file={pki.api_server.certificate}",
        f"--tls-private-key-file={pki.api_server.key}",
        f"--kubelet-certificate-authority={pki.ca.certificate}",
        f"--kubelet-client-certificate={pki.kubelet_client.certificate}",
        f"--kubelet-client-key={pki.kubelet_client.key}",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _apiserver_accounts(pki: ClusterPki) -> list[str]:
    return [
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki.service_account_public}",
        f"--service-account-signing-key-file={pki.service_account_key}",
    ]


def _apiserver_front_proxy(pki: ClusterPki) -> list[str]:
    return [
        f"--requestheader-client-ca-file={pki.front_proxy_ca.certificate}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki.front_proxy_client.certificate}",
        f"--proxy-client-key-file={pki.front_proxy_client.key}",
    ]


def kube_controller_manager(plane: ControlPlane, kubeconfig: Path) -> list[str]:
    """The controllers, each under its own service account; there is one of it, so it needs no election."""
    pki = plane.pki
    return [
        str(plane.programs / "kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={plane.data / 'controller-manager'}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki.service_account_key}",
        f"--root-ca-file={pki.ca.certificate}",
        f"--client-ca-file={pki.ca.certificate}",
        f"--requestheader-client-ca-file={pki.front_proxy_ca.certificate}",
        f"--cluster-signing-cert-file={pki.ca.certificate}",
        f"--cluster-signing-key-file={pki.ca.key}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--cluster-cidr={POD_RANGE}",
        "--allocate-node-cidrs=false",
        f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
        "--node-monitor-period=2s",
        # Its default lies in /usr/libexec and is created at start, on the host when that is root's to do.
        f"--flex-volume-plugin-dir={plane.data / 'volume-plugins'}",
    ]


def kube_scheduler(plane: ControlPlane, kubeconfig: Path) -> list[str]:
    """The scheduler, unmodified."""
    return [
        str(plane.programs / "kube-scheduler"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={plane.data / 'scheduler'}",
        "--leader-elect=false",
    ]
