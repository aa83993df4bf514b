"""The supervisor: runs inside the box's namespaces, makes its network, keeps its processes alive, obeys the channel.

It decides nothing about the cluster. When it ends, the box ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from penstock.box.control import Answer, Request, serve_control
from penstock.box.errors import BoxError
from penstock.box.netlink import make_network
from penstock.box.paths import BoxPaths
from penstock.box.process import Command, SupervisedProcess
from penstock.box.settings import Settings

_TRIM_SECONDS = 30.0
# A proxy of the host leads nowhere from inside the box, and must not be asked for the box's own addresses.
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "PENSTOCK_CACHE", "PENSTOCK_STATE")


def environment(paths: BoxPaths, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process of the box."""
    kept = {name: outer[name] for name in _KEPT if name in outer}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **kept, "HOME": str(paths.root)}


class Supervisor:
    """The processes of one box, by name."""

    def __init__(self, paths: BoxPaths, settings: Settings) -> None:
        self._paths = paths
        env = environment(paths, os.environ)
        self._processes = {
            order.name: SupervisedProcess(
                Command(
                    order.name,
                    order.kind,
                    order.arguments,
                    paths.logs / f"{order.name}.log",
                    env,
                    tuple(order.descriptors),
                )
            )
            for order in settings.processes
        }

    async def run(self) -> None:
        """Run every process until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = await serve_control(self._paths.control_socket, self.handle)
        tasks = [asyncio.create_task(process.run(), name=name) for name, process in self._processes.items()]
        tasks.append(asyncio.create_task(self._trim_logs()))
        stopped = asyncio.create_task(stop.wait())
        # A supervisor that lost one of its tasks guards nothing any more: better that the box ends visibly.
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        server.close()
        for task in done - {stopped}:
            task.result()

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            for process in self._processes.values():
                await asyncio.to_thread(process.trim_log)

    async def handle(self, request: Request) -> Answer:
        """One request of the control channel; raises BoxError for what cannot be done."""
        verb = request.get("verb")
        if verb == "list":
            return {"processes": [process.describe() for process in self._processes.values()]}
        if verb == "kill":
            return await self._kill(request)
        if verb == "start":
            process = self._find("node", request.get("node"))
            process.release()
            return {"started": process.command.name}
        raise BoxError(f"unknown verb {verb!r}; there are list, kill and start")

    async def _kill(self, request: Request) -> Answer:
        kind = "node" if "node" in request else "component"
        process = self._find(kind, request.get(kind))
        # A node that was killed stays lost until it is started; a component comes back by itself.
        running = await process.kill(hold=kind == "node")
        return {"killed": process.command.name, "was_running": running}

    def _find(self, kind: str, name: object) -> SupervisedProcess:
        known = {p.command.name: p for p in self._processes.values() if p.command.kind == kind}
        wanted = f"node-{name}" if kind == "node" else name
        if not isinstance(wanted, str) or wanted not in known:
            names = ", ".join(sorted(n.removeprefix("node-") if kind == "node" else n for n in known))
            raise BoxError(f"no {kind} {name!r} in this box; there are {names}")
        return known[wanted]


def main() -> None:
    """Entry point inside the namespaces: `python -m penstock.box.supervisor STATE_FOLDER`."""
    paths = BoxPaths(Path(sys.argv[1]))
    settings = Settings.read(paths.settings)
    make_network(settings.node_addresses)
    asyncio.run(Supervisor(paths, settings).run())


if __name__ == "__main__":
    main()
