"""Make a pod's namespaces: network with one interface at the bridge, host name, and message queues.

Runs in a child of the spawner. It opens its connection to the box's network before it leaves it, so the one
process can configure both ends of the cable.
"""

from __future__ import annotations

import os
import signal
import socket

from penstock.box.node import linux
from penstock.box.node.channel import OpenSandbox, PodNetwork
from pyroute2 import IPRoute

# What the common runtimes grant every pod: a server without privileges may listen on port 80.
_DEFAULT_SYSCTLS = (("net.ipv4.ip_unprivileged_port_start", "0"),)


def hold(plan: OpenSandbox, report: int, keep: int) -> None:
    """Make the namespaces, write "ok" to `report`, and keep them until `keep` is closed at the other end."""
    box = IPRoute() if plan.network is not None else None
    flags = linux.CLONE_NEWUTS if plan.network is not None else 0
    flags |= linux.CLONE_NEWIPC if plan.own_ipc else 0
    flags |= linux.CLONE_NEWNET if plan.network is not None else 0
    if flags:
        linux.unshare(flags)
    if box is not None and plan.network is not None:
        socket.sethostname(plan.hostname)
        connect(box, plan.network)
        for name, value in (*_DEFAULT_SYSCTLS, *plan.sysctls):
            _set_sysctl(name, value)
    os.write(report, b"ok")
    os.close(report)
    if plan.shared_pids:
        _be_first_process()
    os.read(keep, 1)
    os._exit(0)


def connect(box: IPRoute, network: PodNetwork) -> None:
    """Lay a cable from the box's bridge into the network namespace we are in now."""
    bridge = box.link_lookup(ifname=network.bridge)
    if not bridge:
        raise OSError(f"the box's network has no bridge {network.bridge}")
    peer = {"ifname": "eth0", "net_ns_pid": os.getpid(), "address": network.mac}
    box.link("add", ifname=network.host_link, kind="veth", peer=peer)
    near = box.link_lookup(ifname=network.host_link)[0]
    box.link("set", index=near, master=bridge[0], state="up")
    with IPRoute() as pod:
        pod.link("set", index=pod.link_lookup(ifname="lo")[0], state="up")
        inside = pod.link_lookup(ifname="eth0")[0]
        pod.addr("add", index=inside, address=network.address, prefixlen=network.prefix)
        pod.link("set", index=inside, state="up")
        pod.route("add", dst="default", gateway=network.gateway)


def _set_sysctl(name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, value.encode())
    os.close(fd)


def _be_first_process() -> None:
    """Reap what a pod with one process namespace for all containers leaves behind, until killed."""
    with open("/proc/self/comm", "w") as name:  # noqa: PTH123 - as everywhere between fork and end
        name.write("pause")  # what `ps` in such a pod shows with any runtime
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            signal.sigwait({signal.SIGCHLD})
