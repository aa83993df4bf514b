"""A pod's way through spawner, sandbox and launch, in namespaces of its own, without any Kubernetes.

The tests below start this file again as a program inside `unshare`; what it found out comes back as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENTER = [
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--net",
    "--ipc",
    "--pid",
    "--mount-proc",
    "--fork",
    "--kill-child",
]
SCRIPT = """
id -u; id -g; hostname
cat /data/in
touch /data/in 2>/dev/null || echo volume is read-only
cat "$COVERED"/env/in
touch "$COVERED"/made && echo cover is writable
touch /anything 2>/dev/null || echo root is read-only
echo $$
echo oops >&2
exit 9
"""


def main() -> None:
    """Inside the namespaces: fork the server side, be the spawner."""
    from penstock.box.node import linux, spawner
    from pyroute2 import IPRoute

    linux.make_private()
    with IPRoute() as netlink:
        netlink.link("add", ifname="cni0", kind="bridge")
        bridge = netlink.link_lookup(ifname="cni0")[0]
        netlink.addr("add", index=bridge, address="10.244.0.1", prefixlen=16)
        netlink.link("set", index=bridge, state="up")
    ours, theirs = socket.socketpair()
    server = os.fork()
    if server == 0:
        ours.close()
        print(json.dumps(asyncio.run(_explore(theirs))), flush=True)
        os._exit(0)
    theirs.close()
    raise SystemExit(spawner.serve(ours, server))


async def _explore(channel: socket.socket) -> dict[str, Any]:
    from penstock.box.node import images, plan
    from penstock.box.node.addresses import AddressPool
    from penstock.box.node.containers import Containers
    from penstock.box.node.forks import CannotStart, Spawner
    from penstock.box.node.plan import HostView
    from penstock.box.node.pods import Pods
    from penstock.box.node.records import ContainerRecord, Sandbox
    from penstock.box.node.rootfs import outermost, python_folders, system_folders, system_links
    from penstock.box.node.wire import cri_pb2 as cri

    scratch = Path(sys.argv[1])
    (scratch / "root").mkdir()
    (scratch / "data").mkdir()
    (scratch / "data" / "in").write_text("from outside\n")
    (scratch / "env").mkdir()
    (scratch / "env" / "in").write_text("from below a volume\n")
    (scratch / "cover").mkdir()
    spawner = Spawner(channel)
    spawner.start()
    pods, containers = Pods(spawner, AddressPool("10.244.1.0/24")), Containers(spawner)
    folders = outermost((*system_folders(), *python_folders(Path(sys.prefix)), str(scratch / "env")))
    host = HostView(str(scratch / "root"), system_links(), folders, ())
    metadata = cri.PodSandboxMetadata(name="pod", namespace="default", uid="u")
    own = cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)
    linux = cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=own))
    sandbox = await pods.open(cri.PodSandboxConfig(metadata=metadata, hostname="pod-name", linux=linux))

    def record(name: str, command: list[str], sandbox: Sandbox) -> ContainerRecord:
        security = cri.LinuxContainerSecurityContext(
            run_as_user=cri.Int64Value(value=77), run_as_group=cri.Int64Value(value=88)
        )
        wish = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name), command=command,
            envs=[cri.KeyValue(key="COVERED", value=str(scratch))],
            linux=cri.LinuxContainerConfig(security_context=security),
        )  # fmt: skip
        image = images.table(sys.prefix)["penstock/toolbox"]
        process = plan.process(wish, image, sandbox.hostname)
        mounts = [
            cri.Mount(container_path="/data", host_path=str(scratch / "data"), readonly=True),
            cri.Mount(container_path=str(scratch), host_path=str(scratch / "cover")),
        ]
        root = plan.root(host, process, mounts, {}, readonly=True)
        return ContainerRecord(name, sandbox, wish, image, process, root, 0, scratch / f"{name}.log")

    told: dict[str, Any] = {"address": sandbox.address}
    short = record("short", ["sh", "-c", SCRIPT], sandbox)
    await containers.start(short)
    await short.exited.wait()
    told["code"] = short.exit_code
    told["log"] = [line.split(" ", 3)[1:] for line in (scratch / "short.log").read_text().splitlines()]

    typo = record("typo", ["pyhton"], sandbox)
    try:
        await containers.start(typo)
    except CannotStart as error:
        told["typo"] = str(error)

    # A container that ignores SIGTERM, with a child that holds its output open.
    deaf = record("deaf", ["sh", "-c", "trap '' TERM; sleep 1000 & echo ready; wait; sleep 1000"], sandbox)
    await containers.start(deaf)
    out, err, code = await containers.run(deaf, ["sh", "-c", "id -u; echo bad >&2; exit 4"], 10)
    told["exec"] = [out.decode(), err.decode(), code]
    try:
        await containers.run(deaf, ["sleep", "1000"], 0.3)
    except TimeoutError:
        told["timeout"] = True
    out, _err, _code = await containers.run(deaf, ["sh", "-c", "cat /proc/[0-9]*/comm"], 10)
    told["left"] = out.decode().split().count("sleep")
    await containers.stop(deaf, 0.2)
    told["deaf"] = deaf.exit_code
    pods.close(sandbox)
    told["files here"] = sorted(path.name for path in (scratch / "root").iterdir())
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if subprocess.run([*ENTER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow user namespaces")
    command = [*ENTER, sys.executable, __file__, str(tmp_path_factory.mktemp("node"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_a_container_is_the_user_it_asked_for_with_the_files_it_was_given(told: dict[str, Any]) -> None:
    lines = [rest[-1] for rest in told["log"] if rest[0] == "stdout"]
    assert lines == [
        "77",
        "88",
        "pod-name",
        "from outside",
        "volume is read-only",
        "from below a volume",  # as when the box's Python environment lies in /tmp and the pod has an emptyDir there
        "cover is writable",
        "root is read-only",
        "1",
    ]
    assert ["stderr", "F", "oops"] in told["log"]


def test_its_exit_code_is_kept(told: dict[str, Any]) -> None:
    assert told["code"] == 9


def test_a_pod_gets_an_address_of_its_node(told: dict[str, Any]) -> None:
    assert told["address"] == "10.244.1.2"


def test_a_missing_program_is_named(told: dict[str, Any]) -> None:
    assert told["typo"] == 'exec: "pyhton": executable file not found in $PATH'


def test_a_command_inside_is_the_same_user(told: dict[str, Any]) -> None:
    assert told["exec"] == ["77\n", "bad\n", 4]


def test_a_command_that_takes_too_long_is_killed(told: dict[str, Any]) -> None:
    assert told["timeout"]
    assert told["left"] == 1, "only the container's own sleep may be left"


def test_a_deaf_container_ends_by_kill_with_its_children(told: dict[str, Any]) -> None:
    assert told["deaf"] == 137


def test_nothing_of_a_root_shows_outside_its_container(told: dict[str, Any]) -> None:
    assert told["files here"] == []


if __name__ == "__main__":
    main()
