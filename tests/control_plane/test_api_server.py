"""The bare control plane is the real thing: it answers, authorises and refuses."""

from __future__ import annotations

import json
import subprocess

import pytest
from penstock.box.standalone import StandaloneControlPlane

pytestmark = pytest.mark.control_plane


def _kubectl(plane: StandaloneControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(plane.kubectl), f"--kubeconfig={plane.kubeconfig}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_is_the_pinned_kubernetes(control_plane: StandaloneControlPlane) -> None:
    done = _kubectl(control_plane, "version", "-o", "json")
    versions = json.loads(done.stdout)
    assert versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"]


def test_rbac_refuses_an_identity_without_rights(control_plane: StandaloneControlPlane) -> None:
    refused = _kubectl(control_plane, "auth", "can-i", "list", "secrets", "--as=nobody")
    allowed = _kubectl(control_plane, "auth", "can-i", "list", "secrets")
    assert (refused.stdout.strip(), allowed.stdout.strip()) == ("no", "yes")


def test_objects_are_stored(control_plane: StandaloneControlPlane) -> None:
    assert _kubectl(control_plane, "create", "namespace", "stored").returncode == 0
    assert "stored" in _kubectl(control_plane, "get", "namespaces", "-o", "name").stdout
