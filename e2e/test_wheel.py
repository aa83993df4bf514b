"""`penstock up` from the wheel alone: no clone, an environment of its own below /tmp, one folder it may write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock.box.paths import cache_root
from penstock.box.testing import why_no_box

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder with a short name: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="psk-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def python(home: Path) -> Path:
    """The interpreter of an environment that holds the wheel, and borrows its dependencies from ours."""
    if reason := why_no_box():
        pytest.skip(reason)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(home / "dist"), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    venv.create(home / "venv", with_pip=False, symlinks=True)
    (packages,) = (home / "venv").glob("lib/python3*/site-packages")
    (wheel,) = (home / "dist").glob("penstock-*.whl")
    zipfile.ZipFile(wheel).extractall(packages)
    # Listed in a .pth file, our packages are found, but our own .pth file (the editable install) is not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "venv" / "bin" / "python"


def test_it_goes_from_nothing_to_tokens_and_back(home: Path, python: Path) -> None:
    env = {
        "HOME": str(home),
        "PATH": os.defpath,
        "PENSTOCK_CACHE": str(cache_root()),
        "PENSTOCK_STATE": str(home / "s"),
    }

    def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "penstock.cli.main", *arguments, "--name", "wheel"]
        return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=280, check=False)

    where = subprocess.run([python, "-c", "import penstock.box; print(penstock.box.__path__[0])"],
                           cwd=home, env=env, capture_output=True, text=True, check=True)  # fmt: skip
    assert where.stdout.startswith(str(home)), "this would try the clone, not the wheel"
    try:
        up = penstock("up")
        assert up.returncode == 0, up.stdout + up.stderr
        assert "says:" in up.stdout
        assert penstock("status").returncode == 0
    finally:
        down = penstock("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert not (home / "s" / "wheel").exists()
