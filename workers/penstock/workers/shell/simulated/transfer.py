"""KV transfer between simulated engines: a prefill worker holds blocks under a lease, a decode worker pulls them.

The blocks themselves are not sent; the time they would take is, over a link whose transfers queue behind each other.
Everything else is real: the lease runs on a clock, the peer is asked over TCP on the side channel, and a peer that has
died, moved or forgotten shows as it does with NIXL. A pull after the lease moves somebody else's blocks: no error, a
wrong text, and a counter on the prefill side.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from penstock.core.engine import Finished, Transfer
from penstock.core.wire import RemoteBlocks
from penstock.workers.shell.simulated.driver import Driver, Live
from penstock.workers.shell.simulated.metrics import EngineMetrics
from penstock.workers.shell.simulated.options import Options

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
"""How long a peer may take to answer a pull, the transfer's own time aside."""
MAX_LINE = 1 << 20


class Pull(msgspec.Struct, frozen=True):
    """What a decode worker asks: these blocks of that engine."""

    engine_id: str
    request_id: str
    blocks: list[int]
    tokens: int


class Granted(msgspec.Struct, frozen=True):
    """The peer's answer, sent when the transfer's time is over."""

    ok: bool
    error: str = ""
    stale: bool = False
    """The blocks were no longer the request's: the lease had ended."""


@dataclass(slots=True)
class _Hold:
    name: str
    """The sequence in this engine."""
    tokens: int


class TransferError(Exception):
    """A pull failed; the message says how."""


class KvTransfer:
    """Both sides of one engine's connector."""

    def __init__(self, options: Options, config: Mapping[str, Any], driver: Driver, metrics: EngineMetrics) -> None:
        extra = config.get("kv_connector_extra_config") or {}
        self.engine_id = str(config.get("engine_id") or uuid.uuid4())
        self.lease_s = float(extra.get("kv_lease_duration", 30))
        self.recompute = config.get("kv_load_failure_policy", "fail") == "recompute"
        self.port = options.side_channel_port
        self._options = options
        self._driver = driver
        self._metrics = metrics
        self._holds: dict[int, _Hold] = {}
        """By first block number: blocks decide what is moved, the request's id only what is let go."""
        self._next_block = 1
        self._sources: dict[str, RemoteBlocks] = {}
        """Where a sequence's KV is to come from."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._link_free_at = 0.0
        self._server: asyncio.Server | None = None
        driver.on_transfer = self._fetch

    async def listen(self) -> None:
        """Open the side channel."""
        self._server = await asyncio.start_server(self._serve, self._options.host, self.port, limit=MAX_LINE)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Close the side channel and drop what is on the way."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    # The prefill side.

    def finished(self, name: str, end: Finished) -> RemoteBlocks | None:
        """What leg 1 answers about an ended sequence; None where nothing is held for a peer."""
        self._sources.pop(name, None)  # where it ended before its turn to pull came
        if end.held is None:
            return None
        count = -(-end.held.tokens // self._options.block_size)
        first, self._next_block = self._next_block, self._next_block + count
        self._holds[first] = _Hold(name, end.held.tokens)
        # Remembered beyond the lease, so that a late pull is known for what it is; not for ever.
        asyncio.get_running_loop().call_later(self.lease_s * 10, self._holds.pop, first, None)
        return RemoteBlocks(
            do_remote_prefill=True,
            do_remote_decode=False,
            remote_block_ids=[list(range(first, first + count))],
            remote_engine_id=self.engine_id,
            remote_request_id=name,
            remote_host=self._options.side_channel_host,
            remote_port=self.port,
            remote_num_tokens=end.held.tokens,
            remote_prefill_cached_tokens=end.cached_tokens,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), CONNECT_TIMEOUT_S)
            answer = await self._answer(msgspec.json.decode(line, type=Pull))
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError, msgspec.DecodeError) as error:
            log.warning("a KV pull could not be answered: %s", error)
        finally:
            writer.close()

    async def _answer(self, pull: Pull) -> Granted:
        if pull.engine_id != self.engine_id:
            return Granted(False, f"this is engine {self.engine_id}, not {pull.engine_id}")
        hold = self._holds.get(pull.blocks[0]) if pull.blocks else None
        leased = hold is not None and any(held.id == hold.name for held in self._driver.engine.held())
        await self._move(pull.tokens)
        if hold is None or not leased:
            # The reader cannot know: blocks were there, only not the ones it wanted.
            self._metrics.add("nixl_num_notifications_after_expiry")
            log.warning("KV of %s was pulled after its lease; its text will be wrong", pull.request_id)
            return Granted(True, stale=True)
        if pull.request_id == hold.name:
            self._holds.pop(pull.blocks[0], None)
            self._driver.engine.release(hold.name)
            self._driver.kick()
        return Granted(True)

    async def _move(self, tokens: int) -> None:
        """Wait for the link and then for the bytes."""
        loop = asyncio.get_running_loop()
        seconds = tokens * self._options.kv_bytes_per_token / self._options.link_bytes_per_s
        self._link_free_at = max(self._link_free_at, loop.time()) + seconds * self._options.time_scale
        await asyncio.sleep(self._link_free_at - loop.time())

    # The decode side.

    def expect(self, name: str, blocks: RemoteBlocks) -> None:
        """Remember where the KV of a sequence is to come from when its turn comes."""
        self._sources[name] = blocks

    def _fetch(self, transfer: Transfer, live: Live) -> None:
        task = asyncio.get_running_loop().create_task(self._pull(transfer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pull(self, transfer: Transfer) -> None:
        blocks = self._sources.pop(transfer.id, None)
        if blocks is None:
            return  # the client left in the moment the transfer was asked for
        tokens = transfer.tokens
        started = asyncio.get_running_loop().time()
        try:
            granted = await self._ask(blocks, tokens)
        except TransferError as error:
            log.warning("KV of %s did not come: %s", transfer.id, error)
            if self.recompute:
                self._driver.transferred(transfer.id, arrived=False)
            else:
                self._driver.fail(transfer.id, f"KV load failed: {error}")
            return
        self._observe(asyncio.get_running_loop().time() - started, tokens)
        self._driver.transferred(transfer.id, arrived=True, stale=granted.stale)

    async def _ask(self, blocks: RemoteBlocks, tokens: int) -> Granted:
        """Pull, or raise `TransferError`."""
        if blocks.remote_engine_id == self.engine_id:
            raise TransferError("this engine did the prefill itself")
        ids = [number for group in blocks.remote_block_ids for number in group]
        pull = Pull(blocks.remote_engine_id, blocks.remote_request_id, ids, tokens)
        seconds = tokens * self._options.kv_bytes_per_token / self._options.link_bytes_per_s
        patience = CONNECT_TIMEOUT_S + 20 * seconds * self._options.time_scale
        try:
            async with asyncio.timeout(patience):
                granted = await _exchange(blocks.remote_host, blocks.remote_port, pull)
        except (OSError, ValueError, TimeoutError, msgspec.DecodeError) as error:
            detail = str(error) or type(error).__name__
            raise TransferError(f"{blocks.remote_host}:{blocks.remote_port}: {detail}") from error
        if not granted.ok:
            raise TransferError(granted.error)
        return granted

    def _observe(self, seconds: float, tokens: int) -> None:
        observe: Mapping[str, float] = {
            "nixl_xfer_time_seconds": seconds,
            "nixl_post_time_seconds": min(seconds, 0.001),
            "nixl_bytes_transferred": tokens * self._options.kv_bytes_per_token,
            "nixl_num_descriptors": -(-tokens // self._options.block_size),
        }
        for name, value in observe.items():
            self._metrics.histogram(name).observe(value)


async def _exchange(host: str, port: int, pull: Pull) -> Granted:
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_LINE)
    try:
        writer.write(msgspec.json.encode(pull) + b"\n")
        await writer.drain()
        return msgspec.json.decode(await reader.readline(), type=Granted)
    finally:
        writer.close()
