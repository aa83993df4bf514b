"""Programs: pins read from go.mod, only what matches is used, the sources tried in order, nothing half-done."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from penstock.box.binaries import ensure as ensure_module
from penstock.box.binaries import find as find_module
from penstock.box.binaries.build import find_toolchain, link_flags
from penstock.box.binaries.ensure import ensure_programs
from penstock.box.binaries.find import Programs, by_module, find_programs
from penstock.box.binaries.manifest import read_manifest
from penstock.box.binaries.pins import (
    ALL_PROGRAMS,
    PROGRAMS,
    PROMETHEUS_PROGRAMS,
    go_architecture,
    prometheus_release,
    read_pins,
    required_version,
    source_digest,
)
from penstock.box.binaries.release import (
    ChecksumMismatch,
    Release,
    Unavailable,
    download,
    published_checksum,
    release_of,
)
from penstock.box.errors import BoxError
from penstock.box.paths import share_root

KUBE = "module x\n\nrequire (\n\tgo.etcd.io/etcd/server/v3 v3.6.4\n\tk8s.io/kubernetes v1.34.4 // indirect\n)\n"
HELM = "module y\n\nrequire helm.sh/helm/v3 v3.21.4\n"
PROMETHEUS = "module z\n\nrequire github.com/prometheus/prometheus v0.315.0\n"


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with pins and no sources."""
    root = tmp_path / "share"
    for name, text in (("kube", KUBE), ("helm", HELM), ("prometheus", PROMETHEUS)):
        (root / "hack" / name).mkdir(parents=True)
        (root / "hack" / name / "go.mod").write_text(text)
    for module in (find_module, ensure_module):
        monkeypatch.setattr(module, "share_root", lambda: root)
    return root


def _script(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def _no_network(url: str, label: str) -> bytes:
    raise Unavailable(f"no way to {url} for {label}")


def test_the_pins_are_those_of_go_mod() -> None:
    assert required_version(KUBE, "k8s.io/kubernetes") == "v1.34.4"
    assert required_version(HELM, "helm.sh/helm/v3") == "v3.21.4"
    with pytest.raises(BoxError, match="does not require"):
        required_version(KUBE, "k8s.io/kubelet")


def test_our_own_modules_pin_everything_that_is_needed() -> None:
    pins = read_pins(share_root())
    assert all(pins.version_of(name) for name in PROGRAMS)


def test_prometheus_has_its_own_numbers_and_no_box_needs_it() -> None:
    assert prometheus_release("v0.315.0") == "v3.15.0"
    assert prometheus_release("v0.305.12") == "v3.5.12"
    with pytest.raises(BoxError, match="no release of Prometheus"):
        prometheus_release("v1.8.2")
    assert {"prometheus", "promtool"} == PROMETHEUS_PROGRAMS
    assert not ALL_PROGRAMS & PROMETHEUS_PROGRAMS


def test_prometheus_is_kept_beside_the_cluster_programs(share: Path, tmp_path: Path) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache")}
    folder = tmp_path / "cache" / "prometheus" / f"v3.15.0-linux-{go_architecture()}"
    for name in PROMETHEUS_PROGRAMS:
        _script(folder / name, f"{name}, version 3.14.0 (branch: main, revision: abc)")
    assert find_programs(PROMETHEUS_PROGRAMS, env) is None
    for name in PROMETHEUS_PROGRAMS:
        _script(folder / name, f"{name}, version 3.15.0 (branch: main, revision: abc)")
    found = find_programs(PROMETHEUS_PROGRAMS, env)
    assert found is not None
    assert found.folder_of(PROMETHEUS_PROGRAMS) == folder


def test_machines_without_a_kubernetes_are_named() -> None:
    assert (go_architecture("x86_64"), go_architecture("aarch64")) == ("amd64", "arm64")
    with pytest.raises(BoxError, match="this machine is riscv64"):
        go_architecture("riscv64")


def test_the_streaming_servers_digest_follows_its_source(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    first = source_digest(tmp_path)
    (tmp_path / "main_test.go").write_text("package main")
    assert source_digest(tmp_path) == first
    (tmp_path / "main.go").write_text("package main // changed")
    assert source_digest(tmp_path) != first


def test_a_cached_program_is_taken_over_only_at_its_pinned_version(share: Path, tmp_path: Path) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache")}
    arch = go_architecture()
    helm = tmp_path / "cache" / "helm" / f"v3.21.4-linux-{arch}" / "helm"
    _script(helm, "v3.20.0")
    assert find_programs(frozenset({"helm"}), env) is None
    _script(helm, "v3.21.4")
    found = find_programs(frozenset({"helm"}), env)
    assert found is not None
    assert found.path("helm") == helm
    assert read_manifest(helm.parent)["helm"].version == "v3.21.4"


def test_a_cached_program_that_changed_is_not_trusted(share: Path, tmp_path: Path) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache")}
    helm = tmp_path / "cache" / "helm" / f"v3.21.4-linux-{go_architecture()}" / "helm"
    _script(helm, "v3.21.4")
    assert find_programs(frozenset({"helm"}), env) is not None
    _script(helm, "something else entirely")
    assert find_programs(frozenset({"helm"}), env) is None


def test_kubebuilder_assets_count_only_when_whole_and_pinned(share: Path, tmp_path: Path) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache"), "KUBEBUILDER_ASSETS": str(tmp_path / "assets")}
    needed = frozenset({"kube-apiserver", "etcd"})
    _script(tmp_path / "assets" / "kube-apiserver", "Kubernetes v1.34.4")
    assert find_programs(needed, env) is None
    _script(tmp_path / "assets" / "etcd", "etcd Version: 3.6.4")
    found = find_programs(needed, env)
    assert found is not None
    assert found.folder_of(needed) == tmp_path / "assets"
    _script(tmp_path / "assets" / "etcd", "etcd Version: 3.5.0")
    assert find_programs(needed, env) is None


def test_an_unknown_program_is_refused_by_name() -> None:
    with pytest.raises(BoxError, match="no such program: kubeadm"):
        by_module(frozenset({"kubeadm", "helm"}))


def test_programs_in_two_folders_are_not_one_folder(tmp_path: Path) -> None:
    programs = Programs({"etcd": tmp_path / "a", "helm": tmp_path / "b"})
    with pytest.raises(BoxError, match="lie in 2 folders"):
        programs.folder_of(frozenset({"etcd", "helm"}))
    with pytest.raises(BoxError, match="kubelet was not asked for"):
        programs.path("kubelet")


def test_checksum_files_are_read_in_both_forms() -> None:
    assert published_checksum("ABC\n", "x") == "abc"
    assert published_checksum("111  other\n222 *dir/x.tar.gz\n", "x.tar.gz") == "222"
    assert published_checksum("111  other\n", "x") is None


def _archive(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_download_is_unpacked_and_made_executable(tmp_path: Path) -> None:
    archive = _archive("linux-amd64/helm", b"#!/bin/sh\n")
    digest = hashlib.sha256(archive).hexdigest()
    bodies = {"u/helm.tar.gz": archive, "u/sum": f"{digest}  helm.tar.gz".encode()}
    release = Release("u/helm.tar.gz", "u/sum", "sha256", "linux-amd64/helm")
    download("helm", release, tmp_path, lambda url, _label: bodies[url])
    assert (tmp_path / "helm").read_bytes() == b"#!/bin/sh\n"
    assert os.access(tmp_path / "helm", os.X_OK)


def test_a_download_that_is_not_what_was_published_is_refused(tmp_path: Path) -> None:
    bodies = {"u/kubectl": b"evil", "u/kubectl.sha512": hashlib.sha512(b"good").hexdigest().encode()}
    release = Release("u/kubectl", "u/kubectl.sha512", "sha512")
    with pytest.raises(ChecksumMismatch, match="altered on its way"):
        download("kubectl", release, tmp_path, lambda url, _label: bodies[url])
    assert not (tmp_path / "kubectl").exists()


def test_every_published_program_has_a_release_and_ours_has_none() -> None:
    pins = read_pins(share_root())
    assert {name for name in PROGRAMS if release_of(name, pins) is None} == {"cri-streaming"}


def test_without_network_the_programs_are_built_and_remembered(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache")}
    built: list[list[str]] = []

    def build(
        module: str, names: list[str], pins: object, share: Path, work: Path, into: Path, progress: object
    ) -> None:
        built.append(names)
        for name in names:
            _script(into / name, "v3.21.4")

    monkeypatch.setattr(ensure_module, "build", build)
    programs = ensure_programs(frozenset({"helm"}), env=env, fetch=_no_network)
    again = ensure_programs(frozenset({"helm"}), env=env, fetch=_no_network)
    assert built == [["helm"]]
    assert again.path("helm") == programs.path("helm")
    manifest = json.loads((programs.path("helm").parent / "manifest.json").read_text())
    assert manifest["helm"]["origin"] == "go build"
    assert list((tmp_path / "cache" / "build").iterdir()) == []


def test_what_comes_out_with_another_version_is_never_published(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache")}
    monkeypatch.setattr(ensure_module, "build", lambda m, names, p, s, w, into, pr: _script(into / "helm", "v9.9.9"))
    with pytest.raises(BoxError, match=r"says that it is v9\.9\.9, pinned is v3\.21\.4"):
        ensure_programs(frozenset({"helm"}), env=env, fetch=_no_network)
    assert find_programs(frozenset({"helm"}), env) is None


def test_only_what_is_missing_is_got(share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"PENSTOCK_CACHE": str(tmp_path / "cache")}
    folder = tmp_path / "cache" / "kubernetes" / f"v1.34.4-linux-{go_architecture()}"
    _script(folder / "etcd", "etcd Version: 3.6.4")
    built: list[list[str]] = []

    def build(
        module: str, names: list[str], pins: object, share: Path, work: Path, into: Path, progress: object
    ) -> None:
        built.append(names)
        _script(into / "kubectl", "Client Version: v1.34.4")

    monkeypatch.setattr(ensure_module, "build", build)
    ensure_programs(frozenset({"etcd", "kubectl"}), env=env, fetch=_no_network)
    assert built == [["kubectl"]]


def test_a_damaged_manifest_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"etcd": {"version": 3}')
    assert read_manifest(tmp_path) == {}


def test_the_build_tells_clients_the_pinned_version() -> None:
    flags = link_flags(read_pins(share_root()))
    assert "-X k8s.io/component-base/version.gitVersion=v1.34.4" in flags
    assert "-X k8s.io/component-base/version.gitMinor=34" in flags
    assert "-X github.com/prometheus/common/version.Version=3.15.0" in flags


def test_the_build_cache_is_ours_and_not_the_users(tmp_path: Path) -> None:
    _script(tmp_path / "bin" / "go", "")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        toolchain = find_toolchain(tmp_path / "work", lambda *_: None)
    assert toolchain.env["GOCACHE"].startswith(str(tmp_path / "work"))
    assert toolchain.env["GOMODCACHE"].startswith(str(tmp_path / "work"))
    assert toolchain.env["CGO_ENABLED"] == "0"
    assert "-mod=readonly" in toolchain.env["GOFLAGS"]


def test_a_compiler_that_we_bring_leaves_nothing_in_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "brought" / "go", "")
    monkeypatch.setattr("penstock.box.binaries.build.shutil.which", lambda _name: None)
    monkeypatch.setattr("penstock.box.binaries.build._install_go", lambda _folder: str(tmp_path / "brought" / "go"))
    env = find_toolchain(tmp_path / "work", lambda *_: None).env
    for variable in ("HOME", "XDG_CONFIG_HOME", "GOCACHE", "GOPATH", "GOMODCACHE"):
        assert env[variable].startswith(str(tmp_path / "work"))
