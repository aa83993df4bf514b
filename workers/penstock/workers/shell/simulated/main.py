"""Start, serve, say goodbye: the life of one simulated engine process.

SIGTERM follows vLLM: new connections are refused at once; with `--shutdown-timeout` the running requests have that
long to end; what is left is ended with finish reason `abort`.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import uvloop
import zmq
from penstock.core.wire import Event
from penstock.workers.shell.simulated.app import App
from penstock.workers.shell.simulated.driver import Driver
from penstock.workers.shell.simulated.http import Server
from penstock.workers.shell.simulated.kv_events import EventPublisher
from penstock.workers.shell.simulated.metrics import EngineMetrics
from penstock.workers.shell.simulated.options import Options, parse_options
from penstock.workers.shell.simulated.transfer import KvTransfer

log = logging.getLogger("penstock.workers.simulated")

ABORT_SETTLE_S = 0.2
"""How long aborted requests have to reach their clients."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class Engine:
    """One worker: driver, server, events, transfer, wired together."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stop = asyncio.Event()
        self._second = asyncio.Event()
        self._metrics = EngineMetrics(
            options.names[0],
            options.max_model_len,
            lora=options.enable_lora,
            transfer=options.kv_transfer is not None,
        )
        self._events: EventPublisher | None = None
        self._driver = Driver(options, self._metrics, self._publish)
        self._transfer: KvTransfer | None = None
        if options.kv_transfer is not None:
            self._transfer = KvTransfer(options, options.kv_transfer, self._driver, self._metrics)
        if options.kv_events is not None and options.kv_events.get("enable_kv_cache_events", False):
            host = os.environ.get("VLLM_HOST_IP") or "127.0.0.1"
            self._events = EventPublisher(options.kv_events, host, self._driver.loses_events)
        self._app = App(options, self._driver, self._events, self._transfer, self._die)
        self._server = Server(self._app.handle, options.keep_alive_s)
        self._app.server = self._server

    def _publish(self, events: list[Event]) -> None:
        if self._events is not None:
            self._events.publish(events)

    @staticmethod
    def _die(why: str) -> None:
        log.critical("EngineCore died: AssertionError: %s", why)
        logging.shutdown()
        os._exit(1)

    async def run(self) -> None:
        """Load, serve until SIGTERM or SIGINT, say goodbye."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if await self._load():
            await self._serve()
            await self._goodbye()
        self._close()

    def _signalled(self) -> None:
        """The first signal asks for a goodbye, the second ends it."""
        (self._second if self._stop.is_set() else self._stop).set()

    async def _load(self) -> bool:
        """Take as long as loading weights takes; False when told to stop meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._options.startup_s)
            return False
        return True

    async def _serve(self) -> None:
        if self._events is not None:
            self._events.start(asyncio.get_running_loop())
        if self._transfer is not None:
            await self._transfer.listen()
        port = await self._server.listen(self._options.host, self._options.port)
        self._app.apply_faults(self._options.faults)
        log.info("serving %s on port %d", ", ".join(self._options.names), port)
        await self._stop.wait()

    async def _goodbye(self) -> None:
        self._server.stop_accepting()
        timeout = self._options.shutdown_timeout_s
        log.info("told to stop: %d sequences have %g s to end", len(self._driver.live), timeout)
        await self._until(lambda: not self._driver.busy or self._second.is_set(), timeout)
        cut = len(self._driver.live)
        self._driver.abort_all()
        if cut:
            log.warning("%d sequences were aborted", cut)
        # What was written last still has to leave the sockets' buffers.
        await self._until(lambda: not self._server.connections, ABORT_SETTLE_S)

    @staticmethod
    async def _until(true: Callable[[], bool], seconds: float) -> None:
        """Wait until `true` holds, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not true() and time.monotonic() < deadline:  # noqa: ASYNC110 - asks what no event announces
            await asyncio.sleep(0.02)

    def _close(self) -> None:
        self._server.close()
        if self._transfer is not None:
            self._transfer.close()
        if self._events is not None:
            self._events.close()


def set_up_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one engine; the exit status is 0 after a goodbye, 1 where it could not start."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    set_up_logging(options.log_level)
    if options.ignored:
        log.info("accepted without effect: %s", " ".join(options.ignored))
    # What was imported lives for ever: keep the collector from walking it, and it runs rarely.
    gc.collect()
    gc.freeze()

    async def serve() -> None:
        await Engine(options).run()

    try:
        uvloop.run(serve())
    except (OSError, zmq.ZMQError, ValueError) as error:
        log.error("the engine cannot start: %s", error)
        return 1
    return 0
