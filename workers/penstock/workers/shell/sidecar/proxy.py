"""The port in front of a decode engine: what comes in is checked here, and sent on its errand."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets

from penstock.core.fleet import Fleet
from penstock.router.decisions.steps import Life
from penstock.workers.decisions.sidecar.door import refused, without_transfer_params
from penstock.workers.decisions.sidecar.life import can_have_legs, engine_worker, fleet_of, given_life, prefill_workers
from penstock.workers.decisions.sidecar.prefillers import HEADER, BadHeader, read_header, tell_apart
from penstock.workers.shell.sidecar.errand import CLIENT_LEFT, REQUEST_ID, Errand, error_body
from penstock.workers.shell.sidecar.metrics import Metrics
from penstock.workers.shell.sidecar.options import Options
from penstock.workers.shell.sidecar.peers import Peers
from penstock.workers.shell.sidecar.upstream import Connections
from penstock.workers.shell.simulated.http import Exchange, Request, Server

log = logging.getLogger("penstock.workers.sidecar")

CLIENT_KEEP_ALIVE_S = 75.0
ENGINE_KEEP_ALIVE_S = 4.0
"""How long an idle connection to an engine is kept; vLLM closes after 5 s."""
_MAX_ID = 128


class Proxy:
    """The sidecar's requests, and what they share."""

    def __init__(self, options: Options) -> None:
        """A proxy that does not listen yet."""
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.connections = Connections(options.connect_timeout, ENGINE_KEEP_ALIVE_S)
        self.peers = Peers(options.prefill_service, options.prefill_workers)
        self.server = Server(
            self._handle,
            CLIENT_KEEP_ALIVE_S,
            max_body_bytes=options.max_body_bytes,
            max_connections=options.max_connections,
            max_arriving_bytes=options.max_buffered_bytes,
        )
        self.running: set[asyncio.Task[None]] = set()
        self.metrics = Metrics(lambda: len(self.running))
        self._engine = engine_worker(options.engine_host, options.engine_port)
        self._alone = fleet_of(self._engine)
        self._buffered = 0
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(6)

    def close(self) -> None:
        """Drop everything."""
        self.server.close()
        self.peers.close()
        self.connections.close()
        for task in self.running:
            task.cancel()

    # ---- requests -------------------------------------------------------------------------------

    def _handle(self, request: Request, exchange: Exchange) -> None:
        """Begin to serve a whole request, or refuse it."""
        fault = self._fault(request, exchange)
        if fault is not None:
            status, message, code = fault
            self.metrics.requests.labels(str(status)).inc()
            exchange.respond(status, error_body(message, code))
            return
        task = self.loop.create_task(self._serve(request, exchange))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        exchange.on_close = lambda: _end(task)

    def _fault(self, request: Request, exchange: Exchange) -> tuple[int, str, str] | None:
        if exchange.old:
            return 505, "The sidecar speaks HTTP/1.1 only.", "http_version"
        door = refused(request.method, request.path)
        if door is not None:
            return (*door, "not_passed")
        if len(self.running) >= self.options.max_requests:
            return 503, "The sidecar serves as many requests as it may; try again shortly.", "TooManyRequests"
        if self._buffered + len(request.body) > self.options.max_buffered_bytes:
            return 503, "The sidecar holds as many request bytes as it may; try again shortly.", "TooManyBytes"
        return None

    async def _serve(self, request: Request, exchange: Exchange) -> None:
        size = len(request.body)
        self._buffered += size
        code = CLIENT_LEFT
        errand: Errand | None = None
        try:
            body = without_transfer_params(request.body)
            if body is None:
                code = self._answer(exchange, 400, "The request body is not valid JSON.", "invalid_json")
                return
            if body is not request.body:
                self.metrics.stripped.inc()
            try:
                fleet = await self._fleet(request, body)
            except BadHeader as bad:
                self.metrics.refused.labels("Malformed").inc()
                code = self._answer(exchange, 400, f"{bad}.", "bad_prefiller")
                return
            errand = Errand(self, request, exchange, body, self._name(request))
            await errand.run(self._life(request, fleet))
        except asyncio.CancelledError:
            if errand is not None:
                errand.code = CLIENT_LEFT
            raise
        except Exception:
            log.exception("a request could not be served")
            code = 500
            if exchange.begun:
                exchange.cut()
            else:
                self._answer(exchange, code, "The sidecar could not serve the request.", "internal")
        finally:
            self._buffered -= size
            self.metrics.requests.labels(str(errand.code if errand is not None and code != 500 else code)).inc()

    def _answer(self, exchange: Exchange, status: int, message: str, code: str) -> int:
        exchange.respond(status, error_body(message, code))
        return status

    async def _fleet(self, request: Request, body: bytes) -> Fleet:
        """The engine, and those prefill workers of ours that the header names; raises `BadHeader`."""
        header = request.headers.get(HEADER)
        if header is None:
            return self._alone
        named = read_header(header)
        if not named or not can_have_legs(request.path, body):
            return self._alone
        parted = tell_apart(named, await self.peers.known(named))
        if parted.unknown:
            self.metrics.refused.labels("UnknownWorker").inc(len(parted.unknown))
            shown = ", ".join(f"{host}:{port}" for host, port in parted.unknown)
            log.warning("x-prefiller-host-port names %s, no prefill worker of this deployment: not contacted", shown)
        return fleet_of(self._engine, prefill_workers(parted.known)) if parted.known else self._alone

    def _life(self, request: Request, fleet: Fleet) -> Life:
        now = self.loop.time()
        return given_life(
            request.path,
            fleet,
            now=now,
            until=now + self.options.retry_deadline,
            lease=self.options.kv_lease,
            seed=next(self._ids),
        )

    def _name(self, request: Request) -> bytes:
        """A sensible request id of the client's, or one of ours: both legs go under it."""
        given = request.headers.get(REQUEST_ID, b"")
        if given and len(given) <= _MAX_ID and given.isascii() and b" " not in given and b"\t" not in given:
            return given
        return f"{self._id_prefix}-{next(self._ids):x}".encode()


def _end(task: asyncio.Task[None]) -> None:
    """The client has left: neither leg is of use to anybody."""
    task.cancel()
