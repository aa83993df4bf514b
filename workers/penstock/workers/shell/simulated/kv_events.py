"""KV events on ZeroMQ, as vLLM publishes them: a PUB socket, and a ROUTER that replays what a subscriber missed.

PUB never blocks: a subscriber that does not keep up loses batches, sees the gap in the sequence numbers and asks for a
replay. Nothing here may slow the engine down.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zmq
from penstock.core.wire import Event, EventBatch, encode_batch, encode_frames, encode_sequence
from penstock.core.wire.kv_events import REPLAY_END

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "tcp://*:5557"
BUFFERED_BATCHES = 10_000
HIGH_WATER_MARK = 100_000


class EventPublisher:
    """Publishes batches and answers replays; all calls from the event loop's thread."""

    def __init__(self, config: Mapping[str, Any], host: str, lose: Callable[[], bool]) -> None:
        """`config` is vLLM's `--kv-events-config`; `host` replaces `*` in what is told to others.

        `lose` says of each batch whether a fault drops it. Raises `zmq.ZMQError` for an address that cannot be used.
        """
        self._lose = lose
        self._topic = str(config.get("topic") or "")
        self._sequence = 0
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=int(config.get("buffer_steps") or BUFFERED_BATCHES))
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(int(config.get("hwm") or HIGH_WATER_MARK))
        self._pub.setsockopt(zmq.LINGER, 0)
        self._replay: zmq.Socket[bytes] | None = None
        self._reader: asyncio.AbstractEventLoop | None = None
        endpoint = str(config.get("endpoint") or DEFAULT_ENDPOINT)
        self.source = {"publisher": "zmq", "endpoint": self._open(self._pub, endpoint, host)}
        if config.get("replay_endpoint"):
            self._replay = self._context.socket(zmq.ROUTER)
            self._replay.setsockopt(zmq.LINGER, 0)
            self.source["replay_endpoint"] = self._open(self._replay, str(config["replay_endpoint"]), host, bind=True)
        self.source["topic"] = self._topic

    @staticmethod
    def _open(socket: "zmq.Socket[bytes]", endpoint: str, host: str, bind: bool = False) -> str:
        """Bind where the address has a wildcard, connect otherwise, as vLLM does; returns the address to tell."""
        if not bind and "*" not in endpoint and "::" not in endpoint and not endpoint.startswith(("ipc:", "inproc:")):
            socket.connect(endpoint)
            return endpoint
        socket.bind(endpoint)
        bound = socket.getsockopt(zmq.LAST_ENDPOINT)
        text = bound.rstrip(b"\0").decode() if isinstance(bound, bytes) else endpoint
        return text.replace("0.0.0.0", host)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer replays from `loop`."""
        if self._replay is not None:
            loop.add_reader(_number(self._replay, zmq.FD), self._serve_replays)
            self._reader = loop

    def publish(self, events: Sequence[Event]) -> None:
        """Send one batch; a lost one (fault) takes its sequence number with it."""
        if not events:
            return
        payload = encode_batch(EventBatch(time.time(), list(events), 0))
        sequence, self._sequence = self._sequence, self._sequence + 1
        self._buffer.append((sequence, payload))
        if not self._lose():
            self._pub.send_multipart(encode_frames(self._topic, sequence, payload), flags=zmq.NOBLOCK)

    def _serve_replays(self) -> None:
        """Answer every request there is: ZeroMQ's descriptor tells of a change only once."""
        assert self._replay is not None
        while _number(self._replay, zmq.EVENTS) & zmq.POLLIN:
            frames = self._replay.recv_multipart(flags=zmq.NOBLOCK)
            if len(frames) != 3 or len(frames[2]) != 8:
                log.warning("a KV event replay request had %d frames; expected delimiter and sequence", len(frames))
                continue
            self._replay_from(frames[0], int.from_bytes(frames[2], "big"))

    def _replay_from(self, peer: bytes, start: int) -> None:
        assert self._replay is not None
        wanted = [(s, payload) for s, payload in self._buffer if s >= start]
        for sequence, payload in [*wanted, (REPLAY_END, b"")]:
            message = [peer, b"", self._topic.encode(), encode_sequence(sequence), payload]
            try:
                self._replay.send_multipart(message, flags=zmq.NOBLOCK)
            except zmq.ZMQError as error:
                log.warning("a KV event replay from %d stopped at %d: %s", start, sequence, error)
                return

    def close(self) -> None:
        """Close both sockets; what was not sent is dropped."""
        if self._reader is not None and self._replay is not None:
            self._reader.remove_reader(_number(self._replay, zmq.FD))
        self._context.destroy(linger=0)


def _number(socket: "zmq.Socket[bytes]", option: int) -> int:
    value = socket.getsockopt(option)
    assert isinstance(value, int)
    return value
