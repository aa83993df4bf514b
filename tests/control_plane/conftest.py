"""A real API server for the tests in this folder: etcd and kube-apiserver on loopback, one per test session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.box.binaries import API_PROGRAMS, Programs, ensure_programs, find_programs
from penstock.box.standalone import StandaloneControlPlane, standalone_control_plane


def programs_or_skip(needed: frozenset[str]) -> Programs:
    """The programs; built when PENSTOCK_BUILD=1, else a missing one skips the test and says how to get it."""
    if os.environ.get("PENSTOCK_BUILD") == "1":
        return ensure_programs(needed)
    found = find_programs(needed)
    if found is None:
        pytest.skip("the Kubernetes programs are not in the cache: run `penstock binaries`, or set PENSTOCK_BUILD=1")
    return found


@pytest.fixture(scope="session")
def control_plane() -> Iterator[StandaloneControlPlane]:
    """A running API server with RBAC on: `.kubeconfig` (administrator), `.kubectl`, `.url`, `.logs`."""
    programs = programs_or_skip(API_PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="penstock-api-"))
    try:
        with standalone_control_plane(programs.folder_of(API_PROGRAMS), folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)
