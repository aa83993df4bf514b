"""The OpenAI gateway: what the connections share, and which request goes where.

The token path is `client` -> `exchange` -> `upstream` and back, three objects and no framework. This file
holds their common state (fleet, models, pool, budgets), checks request heads, and ages everything twice a
second in one sweep instead of a timer per connection.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time

from penstock.core.fleet import Failure, Fleet, Request, Role, Worker
from penstock.router.decisions import Attempt, RetryLimits, SplitLimits, reads_prompts
from penstock.router.decisions.explain import ExplainLog
from penstock.router.decisions.leg_forms import can_split
from penstock.router.shell.adapters import Adapters
from penstock.router.shell.client import ClientConnection
from penstock.router.shell.exchange import Exchange
from penstock.router.shell.forms import BYTES_PER_TOKEN, Fault, read_envelope, strip_transfer_params
from penstock.router.shell.inbound import Inbound
from penstock.router.shell.metrics import Counters
from penstock.router.shell.models import ModelTable
from penstock.router.shell.pool import Pool
from penstock.router.shell.prompts import Prompts
from penstock.router.shell.settings import Settings
from penstock.router.shell.upstream import UpstreamConnection

SWEEP_SECONDS = 0.5
_BACKLOG = 2048
_MAX_REQUEST_ID = 128

_CHAT = b"/v1/chat/completions"
_GENERATE = frozenset({b"/v1/completions", _CHAT})
_MODELS = b"/v1/models"
_MODEL = b"/v1/models/"
_HEALTH = b"/health"
_READ_METHODS = (b"GET", b"HEAD")
_DECODE = Role.DECODE
_NOBODY: frozenset[int] = frozenset()


class Gateway:
    """The gateway's shared state and its listening socket."""

    def __init__(self, settings: Settings, fleet: Fleet, models: ModelTable) -> None:
        """A gateway over this fleet; `start` makes it listen."""
        self.settings = settings
        self.fleet = fleet
        self.models = models
        self.adapters = Adapters(fleet)
        """LoRA adapters that workers have loaded."""
        self.counters = Counters()
        self.explanations = ExplainLog(fleet, settings.explain_picks)
        self.prompts: Prompts | None = None
        """Where policies learn of prompts; `None`: they go by load."""
        self.log = logging.getLogger("penstock.router.gateway")
        self.loop = asyncio.get_running_loop()
        self.retry_limits = RetryLimits(attempts=settings.attempts)
        self.split_limits = SplitLimits(min_tokens=settings.split_tokens, lease=settings.kv_lease)
        self.pool = Pool(self.loop.time, settings.pool_timeout)
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.draining = False
        """Whether every response ends its connection, because this process is about to end."""
        self.coarse_now = self.loop.time()
        """Loop time as of the last sweep: exact enough for time-outs, free to read."""
        self.buffered_bytes = 0
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(6).encode()

    # ---- lifetime -----------------------------------------------------------------------------

    async def start(self) -> int:
        """Listen; returns the port (useful when it was 0)."""
        self._server = await self.loop.create_server(
            lambda: ClientConnection(self), self.settings.host, self.settings.port, backlog=_BACKLOG
        )
        self._sweeper = self.loop.create_task(self._sweep())
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self, grace: float) -> bool:
        """Refuse new connections, let running requests finish for `grace` seconds; True when all did."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.drain()
        if self.exchanges:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        return not self.exchanges

    def exchange_over(self, exchange: Exchange) -> None:
        """An exchange needs nothing more."""
        self.exchanges.discard(exchange)
        if self.draining and not self.exchanges:
            self._idle.set()

    async def close(self) -> None:
        """Stop at once: cut what is left."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.cut()
        self.pool.close()
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        """Age connections, exchanges and the pool."""
        while True:
            self.coarse_now = now = self.loop.time()
            for connection in list(self.connections):
                connection.check(now)
            for exchange in list(self.exchanges):
                exchange.check(now)
            self.pool.sweep(now)
            await asyncio.sleep(SWEEP_SECONDS)

    # ---- workers --------------------------------------------------------------------------------

    async def connect(self, worker: Worker) -> UpstreamConnection:
        """A new connection to a worker; `OSError` or `TimeoutError` when there is none to be had."""
        async with asyncio.timeout(self.settings.connect_timeout):
            _, connection = await self.loop.create_connection(
                lambda: UpstreamConnection(self.pool, worker), worker.host, worker.port
            )
        return connection

    async def dial(self, worker: Worker) -> UpstreamConnection | Failure:
        """A new connection to a worker, or why there is none to be had; counted."""
        try:
            connection = await self.connect(worker)
        except TimeoutError:
            outcome = Failure.CONNECT_TIMEOUT
        except OSError:
            outcome = Failure.CONNECT_REFUSED
        else:
            self.counters.connects["Connected"] += 1
            return connection
        self.counters.connects[outcome] += 1
        return outcome

    def remove_worker(self, slot: int) -> None:
        """A worker's pod is gone: whoever waits for its first byte is sent elsewhere."""
        worker = self.fleet.remove(slot)
        for exchange in list(self.exchanges):
            exchange.worker_gone(slot)
        self.pool.drop(worker.name)

    # ---- requests -------------------------------------------------------------------------------

    def name_request(self, inbound: Inbound) -> None:
        """Keep a sensible X-Request-Id, or make one."""
        given = inbound.request_id
        if not given or len(given) > _MAX_REQUEST_ID or not given.isascii() or b" " in given or b"\t" in given:
            inbound.request_id = b"%b-%x" % (self._id_prefix, next(self._ids))

    def check_head(self, inbound: Inbound) -> Fault | None:
        """What is wrong with a request that its head already tells."""
        settings = self.settings
        if inbound.head_bytes > settings.max_header_bytes or inbound.field_count > settings.max_headers:
            limits = f"{settings.max_header_bytes} bytes or {settings.max_headers} fields"
            return Fault(431, f"The request's head has more than {limits}.", "header_too_large", close=True)
        if inbound.hosts != 1 and not inbound.http_1_0:
            return Fault(400, f"Exactly one Host header is needed, got {inbound.hosts}.", "bad_host", close=True)
        if inbound.path in _GENERATE:
            if inbound.method != b"POST":
                return _wrong_method(inbound, "POST")
            return self._too_large() if inbound.length > settings.max_body_bytes else None
        if inbound.path in (_MODELS, _HEALTH) or inbound.path.startswith(_MODEL):
            return None if inbound.method in _READ_METHODS else _wrong_method(inbound, "GET, HEAD")
        known = ", ".join(sorted(p.decode() for p in (*_GENERATE, _MODELS)))
        shown = inbound.path[:200].decode("utf-8", "replace")
        return Fault(404, f"Unknown path {shown}; this gateway serves {known}.", "unknown_path")

    def buffer(self, inbound: Inbound, size: int) -> Fault | None:
        """Take body bytes into account; a fault when they are too many."""
        self.counters.received_bytes += size
        if inbound.size > self.settings.max_body_bytes:
            return self._too_large()
        if self.buffered_bytes + size > self.settings.max_buffered_bytes:
            message = "This gateway holds as many request bytes as it may; try again shortly."
            return Fault(503, message, "TooManyBytes", type="server_error", close=True, retry_after=1.0)
        self.buffered_bytes += size
        inbound.buffered += size
        return None

    def unbuffer(self, inbound: Inbound) -> None:
        """The body of a request is not held any longer."""
        if inbound.buffered:
            self.buffered_bytes -= inbound.buffered
            inbound.buffered = 0
            inbound.body = []

    def has_room_to_keep(self) -> bool:
        """Whether a request may be kept until its answer ends, in case its worker is lost."""
        return self.buffered_bytes <= self.settings.max_buffered_bytes // 2

    def serve(self, client: ClientConnection, inbound: Inbound) -> None:
        """Answer a whole request whose head was fine."""
        path = inbound.path
        if path in _GENERATE:
            self._generate(client, inbound)
        elif path == _HEALTH:
            client.respond_json(b"", inbound)
        elif path == _MODELS:
            client.respond_json(self.models.listing(self.adapters.all()), inbound)
        else:
            self._model(client, inbound)

    def _model(self, client: ClientConnection, inbound: Inbound) -> None:
        name = inbound.path[len(_MODEL) :].decode("utf-8", "replace")
        entry = self.models.entry(name, self.adapters.find(name))
        if entry is None:
            self._fault(client, inbound, self._unknown_model(name))
        else:
            client.respond_json(entry, inbound)

    def _generate(self, client: ClientConnection, inbound: Inbound) -> None:
        """Send a completion or chat request to a worker."""
        body = inbound.body[0] if len(inbound.body) == 1 else b"".join(inbound.body)
        inbound.body = []
        envelope = read_envelope(body)
        if isinstance(envelope, Fault):
            self._fault(client, inbound, envelope)
            return
        adapter = None
        model = self.models.get(envelope.model)
        if model is None:
            adapter = self.adapters.find(envelope.model)
            model = None if adapter is None else self.models.get(adapter.base)
        if model is None:
            self._fault(client, inbound, self._unknown_model(envelope.model))
            return
        stripped = strip_transfer_params(body, envelope)
        if isinstance(stripped, Fault):
            self._fault(client, inbound, stripped)
            return
        now = self.loop.time()
        request = Request(
            id=inbound.request_id.decode("ascii"),
            model=model.name,
            prompt_tokens=len(body) // BYTES_PER_TOKEN + 1,
            max_tokens=envelope.output_tokens(),
            priority=envelope.priority or 0,
            deadline=now + self.settings.retry_deadline,
            ttft_ms=model.ttft_ms,
            tpot_ms=model.tpot_ms,
            streams=bool(envelope.stream),
            adapter=None if adapter is None else adapter.key,
        )
        barred = _NOBODY if adapter is None else self.adapters.without(adapter)
        legs = bool(self.fleet.view().candidates(model.name, _DECODE).size) and can_split(stripped)
        split = self.split_limits if legs else None
        exchange = Exchange(self, client, inbound, stripped, request, model, now, split, barred)
        self.exchanges.add(exchange)
        client.begin_exchange(exchange)
        seed = next(self._ids)
        if self.prompts is not None and reads_prompts(model.policy):
            exchange.start_described(self.prompts, chat=inbound.path == _CHAT, seed=seed)
        else:
            exchange.start(seed)

    def note_attempt(self, request: Request, attempt: Attempt) -> None:
        """Count an attempt, and remember its pick; a fresh connection for the same attempt is no new pick."""
        self.counters.picks[(attempt.pick.policy, attempt.pick.reason)] += 1
        if not attempt.fresh:
            self.explanations.remember(request, attempt.pick, attempt.number, self.loop.time())
            if self.prompts is not None:
                self.prompts.picked(request, attempt.pick)
        if attempt.split is not None:
            self.counters.splits[(request.model, attempt.split)] += 1

    def _fault(self, client: ClientConnection, inbound: Inbound, fault: Fault) -> None:
        client.respond(fault, inbound)
        client.finished(close=not inbound.keep_alive)

    def _unknown_model(self, name: str) -> Fault:
        known = self.models.names()
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") if known else "none yet"
        message = f"The model {name[:200]!r} does not exist. Models served here: {shown}."
        return Fault(404, message, "model_not_found", param="model")

    def _too_large(self) -> Fault:
        limit = self.settings.max_body_bytes
        return Fault(413, f"The request body is larger than {limit} bytes.", "body_too_large", close=True)

    def gauges(self) -> dict[str, float]:
        """The gateway's momentary numbers, for metrics."""
        return {
            "in_flight_requests": len(self.exchanges),
            "client_connections": len(self.connections),
            "buffered_bytes": self.buffered_bytes,
            "idle_upstream_connections": self.pool.idle,
        }


def _wrong_method(inbound: Inbound, allow: str) -> Fault:
    method, path = inbound.method.decode("latin-1"), inbound.path.decode("latin-1")
    return Fault(405, f"{method} is not possible on {path}; use {allow}.", "method_not_allowed", allow=allow)


def unix_now() -> int:
    """Seconds since 1970, for `created` in model listings."""
    return int(time.time())
