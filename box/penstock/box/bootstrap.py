"""Objects every box has before anything is installed: its API server's rights on kubelets, its DNS Service."""

from __future__ import annotations

from typing import Any

from penstock.box.components import DNS_ADDRESS
from penstock.box.netlink import HOST_ADDRESS
from penstock.box.pki import KUBELET_CLIENT_USER

Document = dict[str, Any]

_DNS_LABELS = {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}
_DNS_PORTS = (("dns", "UDP"), ("dns-tcp", "TCP"))


def bootstrap_objects() -> tuple[tuple[str, Document], ...]:
    """(API path, object) pairs, in the order to apply them."""
    return (
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/penstock-box-kubelet-client",
            _kubelet_client_binding(),
        ),
        ("/api/v1/namespaces/kube-system/services/kube-dns", _dns_service()),
        ("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns", _dns_endpoints()),
    )


def _kubelet_client_binding() -> Document:
    # Without it `kubectl logs` and `exec` are refused by the kubelets.
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "penstock-box-kubelet-client"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:kubelet-api-admin",
        },
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KUBELET_CLIENT_USER}],
    }


def _dns_service() -> Document:
    ports = [{"name": name, "protocol": protocol, "port": 53, "targetPort": 53} for name, protocol in _DNS_PORTS]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": _DNS_LABELS},
        "spec": {"clusterIP": DNS_ADDRESS, "ports": ports},
    }


def _dns_endpoints() -> Document:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "penstock-box",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": name, "protocol": protocol, "port": 53} for name, protocol in _DNS_PORTS],
        "endpoints": [{"addresses": [HOST_ADDRESS], "conditions": {"ready": True}}],
    }
