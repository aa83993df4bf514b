"""What a container needs, worked out from the kubelet's wish without touching the machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.box.node import images, plan
from penstock.box.node.plan import CAPABILITIES, HostView
from penstock.box.node.wire import cri_pb2 as cri

TABLE = images.table("/venv", {"acme/tool": ("tool", "--serve")})
HOST = HostView("/scratch", (("/bin", "usr/bin"),), ("/usr",), ())


def config(**fields: object) -> cri.ContainerConfig:
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="main"), **fields)  # type: ignore[arg-type]


def test_arguments_alone_go_to_the_images_command_and_a_command_replaces_it() -> None:
    router = TABLE["penstock/router"]
    with_args = plan.process(config(args=["--port=1"]), router, "pod")
    assert with_args.argv == ("python", "-m", "penstock.router", "--port=1")
    replaced = plan.process(config(command=["sh"], args=["-c", "true"]), router, "pod")
    assert replaced.argv == ("sh", "-c", "true")


def test_the_pods_environment_wins_over_the_images() -> None:
    wish = config(envs=[cri.KeyValue(key="HOME", value="/data"), cri.KeyValue(key="X", value="1")])
    env = dict(plan.process(wish, TABLE["penstock/router"], "pod-7").env)
    assert (env["HOME"], env["X"], env["HOSTNAME"]) == ("/data", "1", "pod-7")
    assert env["PATH"].startswith("/venv/bin:")


def test_the_user_is_the_pods_else_the_images() -> None:
    asked = config(linux=cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=7), run_as_group=cri.Int64Value(value=8)
    )))  # fmt: skip
    process = plan.process(asked, TABLE["penstock/router"], "p")
    assert (process.uid, process.gid) == (7, 8)
    assert plan.process(config(), TABLE["penstock/router"], "p").uid == images.ROLE_USER
    assert plan.process(config(), TABLE["penstock/toolbox"], "p").uid == 0


def test_an_explicit_root_beats_the_images_user() -> None:
    zero = cri.LinuxContainerSecurityContext(run_as_user=cri.Int64Value(value=0))
    wish = config(linux=cri.LinuxContainerConfig(security_context=zero))
    assert plan.process(wish, TABLE["penstock/router"], "p").uid == 0


def test_a_user_name_is_refused_with_the_remedy() -> None:
    named = cri.LinuxContainerSecurityContext(run_as_username="nginx")
    with pytest.raises(ValueError, match=r"'nginx'.*runAsUser"):
        plan.process(config(linux=cri.LinuxContainerConfig(security_context=named)), TABLE["penstock/toolbox"], "p")


def security(add: list[str], drop: list[str], *, privileged: bool = False) -> cri.LinuxContainerSecurityContext:
    kept = cri.Capability(add_capabilities=add, drop_capabilities=drop)
    return cri.LinuxContainerSecurityContext(capabilities=kept, privileged=privileged)


def test_capabilities_are_dropped_before_they_are_added() -> None:
    assert plan.capabilities(security([], ["ALL"])) == frozenset()
    assert plan.capabilities(security(["NET_BIND_SERVICE"], ["ALL"])) == {CAPABILITIES["NET_BIND_SERVICE"]}
    assert CAPABILITIES["SYS_ADMIN"] not in plan.capabilities(security([], []))
    assert plan.capabilities(security([], [], privileged=True)) == frozenset(CAPABILITIES.values())


def test_capability_numbers_are_the_kernels() -> None:
    # From capabilities(7) / <linux/capability.h>: the ends of the list and two in the middle.
    assert {name: CAPABILITIES[name] for name in ("CHOWN", "NET_BIND_SERVICE", "SYS_ADMIN", "CHECKPOINT_RESTORE")} == {
        "CHOWN": 0, "NET_BIND_SERVICE": 10, "SYS_ADMIN": 21, "CHECKPOINT_RESTORE": 40,
    }  # fmt: skip


def test_a_misspelt_capability_is_refused() -> None:
    with pytest.raises(ValueError, match="NET_BIND"):
        plan.capabilities(security(["NET_BIND"], []))


@given(st.lists(st.from_regex(r"(/[a-c]{1,2}){1,4}", fullmatch=True), unique=True))
def test_a_volume_is_mounted_after_those_above_it(targets: list[str]) -> None:
    mounts = [cri.Mount(container_path=target, host_path="/src") for target in targets]
    process = plan.process(config(command=["x"]), TABLE["penstock/toolbox"], "p")
    order = [volume.target for volume in plan.root(HOST, process, mounts, {}, readonly=False).volumes]
    assert sorted(order) == sorted(targets)
    for index, path in enumerate(order):
        assert not any(path.startswith(later + "/") for later in order[index + 1 :])


def test_links_cannot_lead_out_of_a_root_under_construction() -> None:
    process = plan.process(config(command=["x"]), TABLE["penstock/toolbox"], "p")
    root = plan.root(HOST, process, [], {}, readonly=True)
    assert all(not target.startswith("/") for _path, target in root.links)
    assert root.readonly


def test_the_account_file_knows_the_containers_user() -> None:
    asked = cri.LinuxContainerSecurityContext(run_as_user=cri.Int64Value(value=1234))
    wish = config(linux=cri.LinuxContainerConfig(security_context=asked))
    process = plan.process(wish, TABLE["penstock/router"], "p")
    files = {path: text for path, text, _mode in plan.root(HOST, process, [], {}, readonly=False).files}
    assert "user:x:1234:0:" in files["/etc/passwd"]


def test_resolv_conf_has_what_the_kubelet_says() -> None:
    text = plan.resolv_conf(["10.96.0.10"], ["a.svc", "b"], ["ndots:5"])
    assert text == "nameserver 10.96.0.10\nsearch a.svc b\noptions ndots:5\n"


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("penstock/router", "penstock/router"),
        ("penstock/router:1.2.3", "penstock/router"),
        ("docker.io/penstock/router:dev", "penstock/router"),
        ("localhost:5000/penstock/toolbox@sha256:0f0f", "penstock/toolbox"),
        ("acme/tool:v1", "acme/tool"),
        ("penstock", None),
        ("other/penstock/router", None),
        ("nginx:1.29", None),
    ],
)
def test_image_references(reference: str, found: str | None) -> None:
    image = images.find(TABLE, reference)
    assert (image.repository if image else None) == found


def test_an_image_is_found_by_its_id() -> None:
    for image in TABLE.values():
        assert images.find(TABLE, image.id) is image


def test_an_unknown_image_is_told_what_there_is() -> None:
    assert all(name in images.unknown_image(TABLE, "nginx") for name in TABLE)
