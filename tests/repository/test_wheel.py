"""The wheel is enough: it carries what `penstock up` needs, and runs without a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CARRIED = (
    "penstock/box/share/charts/penstock/Chart.yaml",
    "penstock/box/share/charts/penstock/values.schema.json",
    "penstock/box/share/hack/kube/go.mod",
    "penstock/box/share/hack/kube/go.sum",
    "penstock/box/share/hack/helm/go.mod",
    "penstock/box/share/hack/helm/go.sum",
    "penstock/box/share/hack/prometheus/go.mod",
    "penstock/box/share/hack/prometheus/go.sum",
    "penstock/cli/main.py",
    "penstock/workers/drain.py",
)
KINDS = ("modeldeployments", "workerpools", "acceleratorclasses", "engineclasses", "performanceprofiles")


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(root)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = folder.glob("penstock-*.whl")
    return made


def test_it_carries_chart_crds_example_and_pins(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in CARRIED if name not in names]
    chart = [name for name in names if name.startswith("penstock/box/share/charts/penstock/")]
    for kind in KINDS:
        assert any(kind in name for name in chart), f"the chart in the wheel lacks the CRD of {kind}"
    assert any(name.startswith("penstock/box/share/examples/quickstart/") for name in names)


def test_it_carries_only_the_namespace(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"penstock"}
    assert "penstock/__init__.py" not in names


def test_the_command_runs_from_it_without_a_clone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    # PYTHONPATH does not read .pth files: the editable install beside the dependencies stays out of sight.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "installed"), sysconfig.get_path("purelib")))}
    base = getattr(sys, "_base_executable", sys.executable)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [base, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    helped = run("-m", "penstock.cli.main", "--help")
    for verb in ("up", "down", "status", "logs", "kubeconfig", "replay"):
        assert verb in helped
    where = run("-c", "from penstock.box.paths import share_root; print(share_root())").strip()
    assert Path(where) == tmp_path / "installed" / "penstock" / "box" / "share"
