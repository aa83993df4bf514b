"""Start, serve, and go last.

In a pod the kubelet ends a native sidecar after the engine. Where SIGTERM comes to both at once, the sidecar still
serves until the engine has ended, because the engine's running answers go through here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys

import uvloop
from penstock.workers.shell.sidecar.options import Options, parse_options
from penstock.workers.shell.sidecar.proxy import Proxy
from penstock.workers.shell.simulated.http import Exchange, Request, Server
from penstock.workers.shell.simulated.main import set_up_logging

log = logging.getLogger("penstock.workers.sidecar")

SWEEP_S = 1.0
LOOK_S = 0.1
"""Time between two looks at an engine that is expected to end."""
LAST_WORDS_S = 2.0
"""How long what was written last has to leave the sockets' buffers."""


class Sidecar:
    """Both ports, and the order in which they open and close."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._proxy = Proxy(options)
        self._admin = Server(self._ask, keep_alive_s=75.0, max_body_bytes=0)
        self._stop = asyncio.Event()
        self._second = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT and the engine's end; a second signal ends it at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        options = self._options
        port = await self._proxy.server.listen(options.host, options.port)
        metrics_port = await self._admin.listen(options.host, options.metrics_port)
        log.info(
            "in front of %s:%d on port %d, metrics on %d", options.engine_host, options.engine_port, port, metrics_port
        )
        sweeper = loop.create_task(self._sweep())
        try:
            await self._stop.wait()
            await self._goodbye()
        finally:
            sweeper.cancel()
            self._proxy.close()
            self._admin.close()

    def _signalled(self) -> None:
        (self._second if self._stop.is_set() else self._stop).set()

    async def _sweep(self) -> None:
        while True:
            self._proxy.connections.sweep()
            await asyncio.sleep(SWEEP_S)

    async def _goodbye(self) -> None:
        """Go on while the engine answers or an answer of it is under way, at most the shutdown time-out."""
        log.info("told to stop: waiting for the engine's end")
        until = asyncio.get_running_loop().time() + self._options.shutdown_timeout
        while not self._over(until) and (self._proxy.running or await self._engine_listens()):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)  # no event announces that another process ends
        self._proxy.server.stop_accepting()
        until = asyncio.get_running_loop().time() + LAST_WORDS_S
        while not self._over(until) and self._proxy.server.connections:  # noqa: ASYNC110 - bounded, and short
            await asyncio.sleep(LOOK_S)
        log.info("ended; %d requests cut", len(self._proxy.running))

    def _over(self, until: float) -> bool:
        return self._second.is_set() or asyncio.get_running_loop().time() >= until

    async def _engine_listens(self) -> bool:
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                _, writer = await asyncio.open_connection(self._options.engine_host, self._options.engine_port)
        except TimeoutError:
            return True  # a full backlog is not an end
        except OSError:
            return False
        writer.close()
        return True

    def _ask(self, request: Request, exchange: Exchange) -> None:
        """The second port: metrics for Prometheus and the engine's drain, and whether this process is alive."""
        if request.path == "/metrics":
            exchange.respond(200, self._proxy.metrics.page(), b"text/plain; version=0.0.4; charset=utf-8")
        elif request.path == "/healthz":
            exchange.respond(200)
        else:
            exchange.respond(404, b"this port has /metrics and /healthz\n", b"text/plain")


def main(arguments: list[str] | None = None) -> int:
    """Run one sidecar; the exit status is 0 after a goodbye, 1 where it could not start."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    set_up_logging(options.log_level)
    gc.collect()
    gc.freeze()

    async def serve() -> None:
        await Sidecar(options).run()

    try:
        uvloop.run(serve())
    except OSError as error:
        log.error("the sidecar cannot start: %s", error)
        return 1
    return 0
