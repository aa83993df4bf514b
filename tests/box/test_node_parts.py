"""The small parts of a node: addresses, spec file, statistics, wire helpers, folders, the stand-in for curl."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.box.node import channel, curl, gpus, kubelet, rootfs, rpc
from penstock.box.node.addresses import AddressPool, NoAddressLeft, hardware_address
from penstock.box.node.spec import NodeSpec, SpecError, load
from penstock.box.node.stats import parse_stat
from penstock.box.node.wire import cri_pb2 as cri
from penstock.box.node.wire import deviceplugin_pb2 as plugin

# ---- addresses ----


@given(st.lists(st.booleans(), max_size=600))
def test_no_address_is_ever_held_twice(takes: list[bool]) -> None:
    pool, held = AddressPool("10.244.3.0/28"), []
    for take in takes:
        if take and len(held) < 13:
            address = pool.take()
            assert address not in held
            held.append(address)
        elif held:
            pool.give_back(held.pop(0))


def test_a_returned_address_rests_as_long_as_possible() -> None:
    pool = AddressPool("10.244.3.0/29")
    first = pool.take()
    pool.give_back(first)
    assert first not in [pool.take() for _ in range(4)]


def test_an_empty_pool_says_what_to_do() -> None:
    pool = AddressPool("10.244.3.0/30")
    pool.take()
    with pytest.raises(NoAddressLeft, match="add nodes"):
        pool.take()


def test_network_bridge_and_broadcast_are_never_given() -> None:
    pool = AddressPool("10.244.0.0/29")
    assert [pool.take() for _ in range(5)] == [f"10.244.0.{n}" for n in (2, 3, 4, 5, 6)]


def test_a_hardware_address_is_locally_administered_and_follows_the_address() -> None:
    assert hardware_address("10.244.1.2") == "0a:58:0a:f4:01:02"


# ---- spec ----

SPEC = {
    "name": "a-0", "ip": "10.89.0.10", "kubeconfig": "/k", "ca": "/ca", "clientCA": "/ca", "servingCert": "/c",
    "servingKey": "/key", "stateDir": "/s", "logDir": "/l", "binDir": "/b", "podCIDR": "10.244.1.0/24", "venv": "/v",
    "labels": {"penstock.dev/accelerator": "h100-80g"}, "taints": [{"key": "k", "effect": "NoSchedule"}],
    "gpus": {"resource": "nvidia.com/gpu", "count": 8}, "images": {},
}  # fmt: skip


def spec(**changes: object) -> NodeSpec:
    return NodeSpec.model_validate({**SPEC, **changes})


def test_a_misspelt_field_of_the_spec_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({**SPEC, "podCidr": "10.0.0.0/8"}))
    with pytest.raises(SpecError, match="podCidr"):
        load(path)


def test_a_missing_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.json"):
        load(tmp_path / "nothing.json")


def test_the_kubelet_is_told_to_believe_only_certificates_and_the_api_server() -> None:
    told = kubelet.configuration(spec())
    assert told["authentication"]["anonymous"] == {"enabled": False}
    assert told["authentication"]["x509"]["clientCAFile"] == "/ca"
    assert told["authorization"] == {"mode": "Webhook"}
    assert told["registerWithTaints"] == [{"key": "k", "value": "", "effect": "NoSchedule"}]


def test_a_node_renews_its_lease_several_times_within_the_boxs_grace_of_20_s() -> None:
    lease = kubelet.configuration(spec())["nodeLeaseDurationSeconds"]
    assert lease / 4 * 3 < 20  # a kubelet renews at a quarter of the lease; three misses must fit


def test_the_kubelets_labels_and_address_are_on_its_command_line() -> None:
    line = kubelet.arguments(spec(), Path("/c.json"))
    assert "--node-labels=penstock.dev/accelerator=h100-80g" in line
    assert "--node-ip=10.89.0.10" in line
    assert not any(part.startswith("--node-labels") for part in kubelet.arguments(spec(labels={}), Path("/c.json")))


# ---- wire ----


def test_every_method_the_box_names_is_served() -> None:
    from penstock.box.node.imageservice import ImageService
    from penstock.box.node.runtime import RuntimeService

    for name, implementation in (("RuntimeService", RuntimeService), ("ImageService", ImageService)):
        methods = cri.DESCRIPTOR.services_by_name[name].methods
        missing = [m.name for m in methods if not hasattr(implementation, rpc.snake_case(m.name))]
        assert missing == []


def test_method_names_become_python_names() -> None:
    assert rpc.snake_case("RunPodSandbox") == "run_pod_sandbox"
    assert rpc.snake_case("ListAndWatch") == "list_and_watch"


def test_messages_keep_fields_of_a_newer_kubelet_out_of_the_way() -> None:
    # Field 99 of VersionRequest does not exist; the rest must still be read.
    assert cri.VersionRequest.FromString(b"\x0a\x02v1" + b"\x9a\x06\x01x").version == "v1"


def test_a_message_travels_with_its_descriptors_and_none_survives_an_exec() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        read, write = os.pipe()
        request = channel.RunProgram(("x" * 300_000,), (("A", "b"),), True)
        sender = threading.Thread(target=channel.send, args=(ours, (7, request), (write,)))
        sender.start()
        message, fds = channel.receive(theirs)
        sender.join()
    assert message == (7, request)
    assert [os.get_inheritable(fd) for fd in fds] == [False]
    os.write(fds[0], b"same pipe")
    assert os.read(read, 20) == b"same pipe"
    for fd in (read, write, *fds):
        os.close(fd)


def test_a_closed_channel_is_told() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(EOFError):
        channel.receive(theirs)


# ---- GPUs ----


def test_visible_devices_are_indices_in_order() -> None:
    assert gpus.visible_devices(["gpu-10", "gpu-2", "gpu-0"]) == "0,2,10"


async def test_the_plugin_offers_its_devices_and_assigns_them_by_container() -> None:
    offered = await anext(gpus.DevicePlugin(2).list_and_watch(plugin.Empty()))
    assert [(device.ID, device.health) for device in offered.devices] == [("gpu-0", "Healthy"), ("gpu-1", "Healthy")]
    wishes = [
        plugin.ContainerAllocateRequest(devices_ids=["gpu-1"]),
        plugin.ContainerAllocateRequest(devices_ids=["gpu-0"]),
    ]
    answer = await gpus.DevicePlugin(2).allocate(plugin.AllocateRequest(container_requests=wishes))
    assert [dict(a.envs) for a in answer.container_responses] == [
        {"NVIDIA_VISIBLE_DEVICES": "1"},
        {"NVIDIA_VISIBLE_DEVICES": "0"},
    ]


# ---- statistics ----


def test_stat_is_read_past_a_name_with_spaces_and_brackets() -> None:
    tail = "S 1 2 3 4 5 6 70 8 9 11 100 50 25 25 20 0 1 0 500 1000000 42 " + "0 " * 30
    usage = parse_stat(f"17 (a) name) ( {tail}".replace("( S", "S"))
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert usage.cpu_ns == 200 * tick
    assert usage.rss == 42 * os.sysconf("SC_PAGE_SIZE")
    assert (usage.faults, usage.major_faults, usage.processes) == (70, 9, 1)


def test_our_own_stat_makes_sense() -> None:
    usage = parse_stat(Path("/proc/self/stat").read_text())
    assert usage.rss > 1 << 20
    assert usage.cpu_ns > 0


# ---- folders ----


def test_nested_folders_are_bound_once() -> None:
    assert rootfs.outermost(["/a/b", "/a", "/ab", "/a/b/c"]) == ("/a", "/ab")


def test_an_editable_environment_brings_its_sources_and_interpreter(tmp_path: Path) -> None:
    home, venv, source = tmp_path / "python" / "bin", tmp_path / "venv", tmp_path / "source"
    site = venv / "lib" / "python3.11" / "site-packages"
    for folder in (home, venv / "bin", site, source):
        folder.mkdir(parents=True)
    (home / "python3.11").touch()
    (venv / "bin" / "python3").symlink_to(home / "python3.11")
    (venv / "pyvenv.cfg").write_text(f"home = {home}\nversion = 3.11.7\n")
    (site / "penstock.pth").write_text(f"{source}\n{tmp_path}/gone\nimport nothing\n")
    assert rootfs.python_folders(venv) == tuple(sorted(map(str, (home.parent, source, venv))))


# ---- curl ----


class _Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        self.wfile.write(self.headers["Content-Type"].encode() + b" " + body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def echo() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_curl_posts_what_it_is_given(echo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["-s", "-o", str(out), "-w", "%{http_code}\\n", "-H", "content-type: application/json", "-d", '{"a":1}']
    assert curl.main([*options, f"{echo}/x"]) == 0
    assert out.read_bytes() == b'application/json {"a":1}'
    assert capsys.readouterr().out == "200\n"


def test_curl_fails_as_curl_does(echo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert curl.main(["-sS", "--fail", "-d", "x", f"{echo}/missing"]) == 22
    assert "404" in capsys.readouterr().err
    assert curl.main(["-s", "http://127.0.0.1:1/"]) == 7
    assert curl.main(["-s", "ftp://127.0.0.1/"]) == 3
    with pytest.raises(SystemExit):
        curl.main(["--unheard-of", echo])


# ---- logs of the node's own programs ----


def test_a_programs_log_is_cut_from_the_front_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"old " * 100)
        kubelet.trim(path, limit=1000, kept=8)
        assert path.stat().st_size == 400
        writer.write(b"new " * 200)
        kubelet.trim(path, limit=1000, kept=8)
        writer.write(b"more")
    assert path.read_bytes() == b"new new more"


def test_a_log_that_is_not_there_yet_is_no_matter(tmp_path: Path) -> None:
    kubelet.trim(tmp_path / "none.log", limit=1, kept=1)
