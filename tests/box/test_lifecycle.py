"""Boxes from outside: folders, ports, refusals, and what the user is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from penstock.box import lifecycle
from penstock.box.errors import BoxError
from penstock.box.lifecycle import _door, exclusive, find_box, require_box, stop_box
from penstock.box.namespaces import box_command, check_namespaces, node_command, refusal, ways_out
from penstock.box.paths import BoxPaths, cache_root, share_root, state_root
from penstock.box.stages import Silent, Stages


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("PENSTOCK_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_folders_follow_the_environment() -> None:
    assert cache_root({"HOME": "/h"}) == Path("/h/.cache/penstock")
    assert cache_root({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/penstock")
    assert cache_root({"PENSTOCK_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert state_root({"HOME": "/h"}) == Path("/h/.local/state/penstock")
    assert state_root({"HOME": "/h", "PENSTOCK_STATE": "/s"}) == Path("/s")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a-", "x" * 33])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(BoxError, match="is not usable"):
        BoxPaths.of(name)


def test_a_box_that_does_not_run_is_not_found_and_leaves_no_folder(state: Path) -> None:
    with exclusive("default"):
        assert find_box("default") is None
        assert not stop_box("default")
    with pytest.raises(BoxError, match="penstock up"):
        require_box("default")
    assert not state.exists()


def test_what_a_crashed_box_left_is_removed(state: Path) -> None:
    left = state / "default" / "nodes" / "locked"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    left.chmod(0o500)
    with exclusive("default"):
        assert stop_box("default")
    assert not state.exists()


def test_two_commands_never_work_on_one_box() -> None:
    with exclusive("default"), pytest.raises(BoxError, match="another command"), exclusive("default"):
        pass
    with exclusive("default"):
        pass


def test_a_door_is_on_loopback_only_and_takes_another_port_when_the_usual_one_is_taken() -> None:
    with _door(None, 0) as usual, _door(None, usual.port) as other:
        assert other.port != usual.port
        with pytest.raises(BoxError, match=f"port {usual.port} of 127.0.0.1 is not free"), _door(usual.port, 1):
            pass
        with socket.socket(fileno=socket.dup(other.descriptor)) as listener:
            assert listener.getsockname()[0] == "127.0.0.1"


def test_namespaces_end_with_the_process_that_made_them() -> None:
    assert "--kill-child" in box_command(["x"])
    assert "--kill-child" in node_command(["x"])
    assert {"--user", "--net", "--pid", "--mount"} <= set(box_command(["x"]))
    assert box_command(["x", "y"])[-2:] == ["x", "y"]


def _kernel(tmp_path: Path, **settings: str) -> Path:
    for name, value in settings.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "value", "cause"),
    [
        ("user__max_user_namespaces", "0", "user.max_user_namespaces is 0"),
        ("kernel__unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
        ("kernel__apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
    ],
)
def test_a_refusal_names_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, cause: str
) -> None:
    monkeypatch.setattr("penstock.box.namespaces.os.geteuid", lambda: 1000)
    kernel = _kernel(tmp_path, **{setting: value})
    assert cause in refusal("unshare: failed", kernel, tmp_path / "none")


def test_a_refusal_nobody_explains_says_what_unshare_said(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Seccomp:\t2\n")
    assert "seccomp" in refusal("unshare failed: Operation not permitted", tmp_path, tmp_path / "status")
    assert refusal("unshare failed:\n nope", tmp_path, tmp_path / "none") == "unshare failed: nope"


def test_where_namespaces_are_refused_the_user_hears_two_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "unshare"
    fake.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("penstock.box.namespaces.os.geteuid", lambda: 1000)
    with pytest.raises(BoxError, match=r"sudo.*helm install"):
        check_namespaces()


def test_sudo_is_not_offered_where_it_would_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.box.namespaces.os.geteuid", lambda: 0)
    assert "privileged" in ways_out("a seccomp filter is on")
    assert "sysctl -w user.max_user_namespaces" in ways_out("the setting user.max_user_namespaces is 0")


def test_a_machine_that_is_not_linux_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.box.namespaces.platform.system", lambda: "Darwin")
    with pytest.raises(BoxError, match="runs Darwin"):
        check_namespaces()


def test_stages_that_failed_are_not_recorded(tmp_path: Path) -> None:
    stages = Stages(Silent())
    with stages.stage("one"):
        pass
    with pytest.raises(BoxError), stages.stage("two"):
        raise BoxError("no")
    assert list(stages.seconds) == ["one"]


def test_chart_examples_and_pins_are_found() -> None:
    root = share_root()
    assert (root / "charts" / "penstock" / "Chart.yaml").is_file()
    assert (root / "hack" / "helm" / "go.mod").is_file()


def test_a_box_that_fails_to_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(lifecycle, "check_namespaces", lambda: None)
    monkeypatch.setattr(lifecycle, "ensure_programs", lambda *_: None)
    monkeypatch.setattr(lifecycle, "_end", lambda paths: ended.append(paths.root))

    def launch(*_: object) -> None:
        raise BoxError("no")

    monkeypatch.setattr(lifecycle, "_launch", launch)
    with pytest.raises(BoxError, match="no"):
        lifecycle.start_box(lifecycle.BoxOptions(nodes="cpu=1x0"), Stages(Silent()))
    assert ended == [state / "default"]
