"""KV events of all workers into the KV indexes: sockets, replays, reconnection.

Every worker is asked for its sources (`GET /kv_event_sources`, as vLLM answers it) and subscribed to; what to believe
of what comes is decided by `SequenceTracker`, what it means by `KVIndex`. All of it happens on the event loop that
picks, so an index never changes under a pick, and in turns of bounded length, so that a flood of events delays nobody.
What waits is bounded by ZeroMQ's high-water mark: beyond it batches are dropped, the gap is seen, a replay asked for.
"""

import asyncio
import ipaddress
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import msgspec
import zmq
from penstock.core.fleet import Fleet, Worker
from penstock.core.wire import AllBlocksCleared, ChangeBatch, WireError, decode_changes, decode_frames
from penstock.core.wire.kv_events import REPLAY_END, encode_sequence
from penstock.router.decisions.kv_index import (
    Action,
    Apply,
    AskReplay,
    Batch,
    Clear,
    Knowledge,
    KVIndex,
    SequenceTracker,
)
from zmq.utils.monitor import parse_monitor_message

log = logging.getLogger("penstock.router.kv_events")

Socket = zmq.Socket[bytes]

REFRESH = 15.0
"""Seconds between two looks at a worker's sources: an engine that restarts may have new ports."""
_NO_EVENTS_REFRESH = 60.0
_RETRY_FIRST, _RETRY_MOST = 0.5, 15.0
_TICK = 0.5
_TIMEOUT = 2.0
_TURN_SECONDS = 0.002
_SWEEP_BLOCKS = 2048
_HIGH_WATER_MARK = 4096
_MAX_MESSAGE_BYTES = 16 << 20
_MAX_ANSWER_BYTES = 64 << 10
_MAX_RANKS = 64
_ORDER = (Knowledge.UNKNOWN, Knowledge.PARTIAL, Knowledge.COMPLETE)


class _Source(msgspec.Struct, frozen=True):
    """One rank's entry of `/kv_event_sources`."""

    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""
    publisher: str = "zmq"


@dataclass(frozen=True, slots=True)
class StreamStats:
    """One stream in numbers; counts since it was opened. `lag` is the engine's clock to ours, seconds."""

    worker: Worker
    rank: int
    knowledge: Knowledge
    age: float | None
    """Seconds since `knowledge` last changed."""
    lag: float | None
    batches: int
    events: int
    blocks: int
    gaps: int
    resyncs: int
    duplicates: int
    unreadable: int


class _Stream:
    """The subscription to one rank of one worker."""

    def __init__(self, owner: "KvEvents", worker: Worker, slot: int, rank: int, source: _Source) -> None:
        self.worker, self.slot, self.rank, self.source = worker, slot, rank, source
        self.tracker = SequenceTracker(can_replay=source.replay_endpoint is not None)
        self.events = self.blocks = self.unreadable = 0
        self.lag: float | None = None
        self._owner = owner
        self._closed = False
        self._address = _reachable(source.endpoint, worker.host)
        self._replay_address = source.replay_endpoint and _reachable(source.replay_endpoint, worker.host)
        self._replay: Socket | None = None
        self._scheduled = False
        self._sub = owner.context.socket(zmq.SUB)
        self._configure(self._sub)
        self._sub.setsockopt(zmq.RECONNECT_IVL, 100)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        self._sub.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        self._sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        self._sub.subscribe(source.topic.encode())
        self._monitor: Socket = self._sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        for socket in (self._sub, self._monitor):
            owner.loop.add_reader(_descriptor(socket), self._drain)
        self._sub.connect(self._address)
        self._again()

    @staticmethod
    def _configure(socket: Socket) -> None:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, 1)
        socket.set_hwm(_HIGH_WATER_MARK)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)

    def close(self) -> None:
        """Close the sockets. What the index knows stays."""
        self._closed = True
        self._close_replay()
        self._owner.loop.remove_reader(_descriptor(self._monitor))
        self._owner.loop.remove_reader(_descriptor(self._sub))
        self._sub.disable_monitor()
        self._monitor.close()
        self._sub.close()

    def tick(self) -> None:
        """Give up what was not answered."""
        self._act(self.tracker.tick(self._owner.clock()))

    # ---- reading ---------------------------------------------------------------------------

    def _again(self) -> None:
        """ZeroMQ's descriptor tells of a change only once: whoever stops early must come back."""
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._owner.loop.call_soon(self._drain_scheduled)

    def _drain_scheduled(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        """Read what there is, connections first, for one turn."""
        if self._closed:
            return
        end = time.perf_counter() + _TURN_SECONDS
        try:
            while self._read_one():
                if time.perf_counter() > end:
                    self._again()
                    return
        except zmq.ZMQError as error:
            log.warning("KV events cannot be read", extra={"worker": self.worker.name, "problem": str(error)})

    def _read_one(self) -> bool:
        frames = _receive(self._monitor)
        if frames is not None:
            if parse_monitor_message(frames)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._act(self.tracker.connected(self._owner.clock()))
            return True
        frames = _receive(self._sub)
        if frames is not None:
            self._take(frames, replayed=False)
            return True
        if self._replay is None or (frames := _receive(self._replay)) is None:
            return False
        self._take(frames, replayed=True)
        return True

    def _take(self, frames: list[bytes], replayed: bool) -> None:
        now = self._owner.clock()
        try:
            _, sequence, payload = decode_frames(frames)
        except WireError as error:
            self._unreadable(error)
            return
        if replayed and sequence == REPLAY_END:
            self._close_replay()
            self._act(self.tracker.replay_ended(now))
            return
        try:
            batch = decode_changes(payload)
        except (WireError, RecursionError) as error:  # Nested too deeply is one more way to be unreadable.
            self._unreadable(error)
            self._close_replay()
            self._act(self.tracker.lost(sequence, "a batch could not be read", now))
            return
        numbered = Batch(sequence, batch.ts, batch)
        if not replayed:
            self.lag = max(0.0, self._owner.wall() - batch.ts)
        self._act(self.tracker.replayed(numbered, now) if replayed else self.tracker.live(numbered, now))

    def _unreadable(self, error: Exception) -> None:
        self.unreadable += 1
        if self.unreadable & (self.unreadable - 1) == 0:
            extra = {"worker": self.worker.name, "count": self.unreadable, "problem": str(error)}
            log.warning("unreadable KV events", extra=extra)

    # ---- acting ----------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Apply(batch):
                    assert isinstance(batch.payload, ChangeBatch)
                    self._apply(batch.payload)
                case Clear(reason):
                    log.info("KV index cleared", extra={"worker": self.worker.name, "reason": reason})
                    self._owner.index(self.worker.model).clear(self.slot, self.rank)
                case AskReplay(start):
                    self._ask(start)

    def _apply(self, batch: ChangeBatch) -> None:
        index = self._owner.index(self.worker.model)
        self.events += len(batch.events)
        for event in batch.events:
            index.apply(self.slot, event, self.rank)
            if isinstance(event, AllBlocksCleared):
                self.tracker.emptied(self._owner.clock())
            else:
                self.blocks += len(event.block_hashes)

    def _ask(self, start: int) -> None:
        """A new socket for each replay: answers to an older question can then not be taken for this one's."""
        self._close_replay()
        assert self._replay_address is not None
        self._replay = self._owner.context.socket(zmq.DEALER)
        self._configure(self._replay)
        self._replay.connect(self._replay_address)
        self._owner.loop.add_reader(_descriptor(self._replay), self._drain)
        self._replay.send_multipart([b"", encode_sequence(start)], flags=zmq.NOBLOCK)
        self._again()

    def _close_replay(self) -> None:
        if self._replay is not None:
            self._owner.loop.remove_reader(_descriptor(self._replay))
            self._replay.close()
            self._replay = None

    def stats(self) -> StreamStats:
        """The stream in numbers."""
        t = self.tracker
        return StreamStats(
            worker=self.worker,
            rank=self.rank,
            knowledge=t.knowledge,
            age=None if t.changed_at is None else max(0.0, self._owner.clock() - t.changed_at),
            lag=self.lag,
            batches=t.applied,
            events=self.events,
            blocks=self.blocks,
            gaps=t.gaps,
            resyncs=t.resyncs,
            duplicates=t.duplicates,
            unreadable=self.unreadable,
        )


class _Feed:
    """One worker: its sources, looked at now and then, and the streams they name."""

    def __init__(self, owner: "KvEvents", worker: Worker, slot: int) -> None:
        self.worker, self.slot = worker, slot
        self.streams: dict[int, _Stream] = {}
        self._owner = owner
        self._task = owner.loop.create_task(self._follow(), name=f"kv-events {worker.name}")

    def close(self) -> None:
        self._task.cancel()
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()

    async def _follow(self) -> None:
        retry = _RETRY_FIRST
        while True:
            try:
                self._open(await self._owner.sources(self.worker))
                wait, retry = (self._owner.refresh if self.streams else _NO_EVENTS_REFRESH), _RETRY_FIRST
            except (httpx.HTTPError, WireError, zmq.ZMQError, ValueError) as problem:
                # What is known stays: a worker that is gone for good will be taken out of the fleet.
                log.debug("no KV event sources", extra={"worker": self.worker.name, "problem": repr(problem)})
                wait, retry = retry, min(2 * retry, _RETRY_MOST)
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))

    def _open(self, sources: dict[int, _Source]) -> None:
        for rank, stream in list(self.streams.items()):
            if sources.get(rank) != stream.source:
                stream.close()
                del self.streams[rank]
                self._owner.index(self.worker.model).clear(self.slot, rank)
        for rank, source in sources.items():
            if rank not in self.streams:
                self.streams[rank] = _Stream(self._owner, self.worker, self.slot, rank, source)


class KvEvents:
    """The KV indexes, one for each model, and the streams that feed them."""

    def __init__(
        self,
        fleet: Fleet,
        budget: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        refresh: float = REFRESH,
    ) -> None:
        """`budget`: bytes for each model's index; `clock` is the one picks are made by. Needs a running event loop."""
        self.loop = asyncio.get_running_loop()
        self.context = zmq.Context()
        self.clock, self.wall, self.refresh = clock, wall, refresh
        self._fleet = fleet
        self._budget = budget
        self._indexes: dict[str, KVIndex] = {}
        self._feeds: dict[tuple[str, int, int], _Feed] = {}  # By worker's name, slot and the slot's generation.
        self._by_name: dict[str, _Feed] = {}
        self._epoch = -1
        limits = httpx.Limits(max_connections=16, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=False)
        self._ticking = self.loop.create_task(self._tick(), name="kv-events tick")

    def index(self, model: str) -> KVIndex:
        """The index of a model's workers."""
        index = self._indexes.get(model)
        if index is None:
            index = self._indexes[model] = KVIndex(self._budget)
        return index

    def sync(self) -> None:
        """Follow the fleet: subscribe to newcomers, forget who left.

        To be called before a pick, so that no slot is matched with what its last worker held; cheap when nothing moved.
        """
        if self._epoch == self._fleet.epoch:
            return
        self._epoch = self._fleet.epoch
        fleet = self._fleet
        here = {(name, slot, int(fleet.generation[slot])): slot for name, slot in fleet.workers().items()}
        for key in [key for key in self._feeds if key not in here]:
            feed = self._feeds.pop(key)
            feed.close()
            self.index(feed.worker.model).remove_worker(feed.slot)
        for key, slot in here.items():
            if key not in self._feeds and fleet.ready[slot]:
                self._feeds[key] = _Feed(self, fleet.worker(slot), slot)
        self._by_name = {feed.worker.name: feed for feed in self._feeds.values()}
        models = {feed.worker.model for feed in self._feeds.values()}
        self._indexes = {model: index for model, index in self._indexes.items() if model in models}

    def tells(self, worker: Worker) -> bool:
        """Whether a worker's events are followed now: it offers them, and what it said can be relied on."""
        return self.knowledge(worker) is not Knowledge.UNKNOWN

    def knowledge(self, worker: Worker) -> Knowledge:
        """How much is known of a worker's cache: the least of its ranks; `UNKNOWN` where it sends no events."""
        feed = self._by_name.get(worker.name)
        known = [stream.tracker.knowledge for stream in feed.streams.values()] if feed else []
        return min(known, key=_ORDER.index, default=Knowledge.UNKNOWN)

    def stats(self) -> list[StreamStats]:
        """Every stream in numbers."""
        return [stream.stats() for feed in self._feeds.values() for stream in feed.streams.values()]

    def silent(self) -> list[Worker]:
        """Workers that offer no events."""
        return [feed.worker for feed in self._feeds.values() if not feed.streams]

    def indexes(self) -> dict[str, KVIndex]:
        """The indexes by model: a copy."""
        return dict(self._indexes)

    async def close(self) -> None:
        """End all subscriptions."""
        self._ticking.cancel()
        for feed in self._feeds.values():
            feed.close()
        self._feeds.clear()
        await self._http.aclose()
        self.context.destroy(linger=0)

    async def sources(self, worker: Worker) -> dict[int, _Source]:
        """What a worker says of its event streams, by rank; empty when it has none.

        Raises `httpx.HTTPError` when it cannot be asked and `WireError` when the answer is no such thing.
        """
        async with self._http.stream("GET", f"http://{worker.address}/kv_event_sources") as response:
            if response.status_code in (404, 405, 501):
                return {}
            response.raise_for_status()
            body = b""
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _MAX_ANSWER_BYTES:
                    raise WireError(f"{worker.name} lists its KV event sources in more than {_MAX_ANSWER_BYTES} bytes")
        return _parse_sources(worker.name, body)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.sync()
            for feed in list(self._feeds.values()):
                for stream in list(feed.streams.values()):
                    stream.tick()
            for index in list(self._indexes.values()):
                await _sweep(index)


async def _sweep(index: KVIndex) -> None:
    """Free what removed workers and cleared caches held, in small steps between which others have their turn."""
    working = True
    while working:
        working = index.sweep(_SWEEP_BLOCKS)
        await asyncio.sleep(0)


def _parse_sources(name: str, body: bytes) -> dict[int, _Source]:
    try:
        listed = msgspec.json.decode(body, type=dict[int, _Source])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{name} does not list KV event sources: {error}") from error
    if len(listed) > _MAX_RANKS:
        raise WireError(f"{name} lists {len(listed)} KV event sources; at most {_MAX_RANKS} are followed")
    return {rank: source for rank, source in listed.items() if source.publisher == "zmq"}


def _reachable(endpoint: str, host: str) -> str:
    """An engine's own address as others reach it: `host` in place of a wildcard or loopback. `WireError` if not TCP."""
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or port is None:
        raise WireError(f"KV events are read over tcp://host:port, the engine offers {endpoint!r}")
    named = parts.hostname or "*"
    told = host if _is_nowhere(named) else named
    return f"tcp://[{told}]:{port}" if ":" in told else f"tcp://{told}:{port}"


def _is_nowhere(host: str) -> bool:
    """Whether an address means nothing, or something else, to another machine."""
    if host in ("*", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_unspecified or address.is_loopback


def _descriptor(socket: Socket) -> int:
    number = socket.getsockopt(zmq.FD)
    assert isinstance(number, int)
    return number


def _receive(socket: Socket) -> list[bytes] | None:
    """The next message, `None` when there is none."""
    try:
        return socket.recv_multipart(flags=zmq.NOBLOCK)
    except zmq.Again:
        return None
