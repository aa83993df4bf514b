"""Kubeconfig files: an address, an authority and an identity in the form every Kubernetes client reads."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml
from penstock.box.pki import KeyPair, write_private


def kubeconfig(server: str, ca_pem: bytes, identity: KeyPair, *, context: str = "penstock") -> str:
    """A self-contained kubeconfig (YAML) for `identity` at `server`, e.g. `https://127.0.0.1:6443`."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": context, "cluster": {"server": server, "certificate-authority-data": _base64(ca_pem)}},
        ],
        "users": [
            {
                "name": context,
                "user": {
                    "client-certificate-data": _base64(identity.certificate_pem),
                    "client-key-data": _base64(identity.key_pem),
                },
            },
        ],
        "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        "current-context": context,
    }
    return yaml.safe_dump(document, sort_keys=False)


def write_kubeconfig(path: Path, server: str, ca_pem: bytes, identity: KeyPair, *, context: str = "penstock") -> Path:
    """Write a kubeconfig that only its owner can read; returns `path`."""
    write_private(path, kubeconfig(server, ca_pem, identity, context=context).encode())
    return path


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
