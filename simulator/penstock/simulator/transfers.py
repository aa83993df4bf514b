"""KV caches on their way from prefill to decode workers, over ports that transfers share.

Processor sharing: each port gives every transfer through it an equal part, and a transfer goes at the pace of the
narrowest of its ports. What one of them cannot use there is not given to the others, which errs on the slow side.
Between two events every pace is constant, so the end of each transfer is known; it moves whenever somebody joins or
leaves one of its ports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from penstock.core.models.roofline import Efficiency
from penstock.simulator.events import TRANSFERRED, EventQueue
from penstock.simulator.links import Level, Link, Topology
from penstock.simulator.scenario import Scenario, WorkerSpec

__all__ = ["Ports", "Transfers", "transfer_ms_per_token", "ways"]

Ports = tuple[tuple[str, float], ...]
"""What a transfer goes through: each port's name and its bytes per second."""
Done = Callable[[int, float], None]
"""Called with a transfer's number and the time of its end."""


def ways(link: Link, topology: Topology, source: WorkerSpec, target: WorkerSpec) -> Ports:
    """The ports from one worker to another: through the lowest part of the tree that holds both.

    A worker on several nodes is taken to be where its pipeline begins.
    """
    here, there = source.nodes[0], target.nodes[0]
    meeting = topology.meeting(here, there)
    if meeting is Level.NODE:
        return ((f"{source.name}>", _own_rate(source)), (f">{target.name}", _own_rate(target)))
    rate = link.gbytes_per_s * 1e9
    ports = [(f"node-{here}>", rate), (f">node-{there}", rate)]
    if meeting > Level.RACK and topology.rack_gbytes_per_s is not None:
        up = topology.rack_gbytes_per_s * 1e9
        ports += [(f"rack-{topology.rack(here)}>", up), (f">rack-{topology.rack(there)}", up)]
    if meeting > Level.ROW and topology.row_gbytes_per_s is not None:
        up = topology.row_gbytes_per_s * 1e9
        ports += [(f"row-{topology.row(here)}>", up), (f">row-{topology.row(there)}", up)]
    return tuple(ports)


def transfer_ms_per_token(scenario: Scenario, spec: WorkerSpec) -> float:
    """What the router is told a prompt token's KV takes to come to this worker, alone and beyond the latency."""
    node_only = scenario.topology.domain is Level.NODE
    rate = _own_rate(spec) if node_only else scenario.transfer.gbytes_per_s * 1e9
    return scenario.model.kv_bytes_per_token() * (1.0 - scenario.transfer.overlap) / rate * 1e3


def _own_rate(spec: WorkerSpec) -> float:
    """Bytes a second that a worker's accelerators send or take over their own link, at the rate it sustains."""
    accelerator = spec.accelerator
    return accelerator.link.bytes_per_second * Efficiency.of(accelerator).link * spec.parallelism.accelerators


class _State(Enum):
    ASKING = auto()  # The hand-shake lasts.
    MOVING = auto()
    STALLED = auto()


@dataclass(slots=True, eq=False)
class _Moving:
    """One transfer. `pace` has held since `since`, when `left` bytes were missing."""

    number: int
    ports: Ports
    left: float
    ends: tuple[int, int]
    done: Done
    since: float
    pace: float = 0.0
    state: _State = _State.ASKING
    version: int = 0
    """Events of older versions are void."""


class Transfers:
    """Every transfer that is on its way, by number."""

    def __init__(self, events: EventQueue, link: Link) -> None:
        self._events, self._link = events, link
        self._moving: dict[int, _Moving] = {}
        self._through: dict[str, dict[int, _Moving]] = {}  # By port, the transfers that move through it.
        self._due_then: dict[int, tuple[_Moving, int]] = {}  # By ticket of an event: whom it is for, its version.
        self._tickets = 0
        self.started = 0
        self.bytes_moved = 0.0
        """Of transfers that came to their end, and of the others as far as they came."""

    def __len__(self) -> int:
        """Transfers on their way, hand-shakes included."""
        return len(self._moving)

    def start(self, ports: Ports, size: float, ends: tuple[int, int], done: Done, now: float) -> int:
        """Begin to move `size` bytes after the link's latency; `done(number, time)` is called once they are there.

        `ends` are the numbers of the two workers, by which `between` finds it. Returns the transfer's own number.
        """
        number, self.started = self.started, self.started + 1
        moving = self._moving[number] = _Moving(number, ports, size, ends, done, now)
        self._look_at(now + self._link.latency_s, moving)
        return number

    def cancel(self, number: int, now: float) -> None:
        """Forget a transfer; nothing is called. One that has ended is no error."""
        moving = self._moving.pop(number, None)
        if moving is not None:
            self._leave(moving, now)

    def between(self, one: int, other: int | None = None) -> tuple[int, ...]:
        """Numbers of the transfers that have this worker, or both of these workers, at their ends."""
        return tuple(
            moving.number
            for moving in self._moving.values()
            if one in moving.ends and (other is None or other in moving.ends)
        )

    def stall(self, number: int, now: float) -> None:
        """Nothing of it gets through until `resume`."""
        moving = self._moving.get(number)
        if moving is not None:
            self._leave(moving, now)
            moving.state = _State.STALLED
            moving.version += 1

    def resume(self, number: int, now: float) -> None:
        """It gets through again."""
        moving = self._moving.get(number)
        if moving is not None and moving.state is _State.STALLED:
            self._join(moving, now)

    def paces(self) -> dict[str, float]:
        """Bytes a second that go through each port now, for checks."""
        return {port: sum(each.pace for each in through.values()) for port, through in self._through.items()}

    # Inside

    def _join(self, moving: _Moving, now: float) -> None:
        moving.state, moving.since = _State.MOVING, now
        for port, _ in moving.ports:
            self._through.setdefault(port, {})[moving.number] = moving
        self._share_out(moving, now)

    def _leave(self, moving: _Moving, now: float) -> None:
        """Take a transfer off its ports, so that the others there get more."""
        if moving.state is not _State.MOVING:
            return
        self._settle(moving, now)
        moving.pace = 0.0
        for port, _ in moving.ports:
            through = self._through[port]
            del through[moving.number]
            if not through:
                del self._through[port]
        self._share_out(moving, now)

    def _share_out(self, changed: _Moving, now: float) -> None:
        """Give everybody who shares a port with `changed` the pace that is due now."""
        beside: dict[int, _Moving] = {}
        for port, _ in changed.ports:
            beside.update(self._through.get(port, ()))
        for number in sorted(beside):
            self._set_pace(beside[number], now)

    def _set_pace(self, moving: _Moving, now: float) -> None:
        shared = self._link.shared
        pace = min(rate / (len(self._through[port]) if shared else 1) for port, rate in moving.ports)
        if pace != moving.pace:
            self._settle(moving, now)
            moving.pace = pace
            self._look_at(now + moving.left / pace, moving)

    def _settle(self, moving: _Moving, now: float) -> None:
        moved = min(moving.left, moving.pace * (now - moving.since))
        moving.left -= moved
        moving.since = now
        self.bytes_moved += moved

    def _look_at(self, time: float, moving: _Moving) -> None:
        """Look at a transfer at this time, and no more at the time that was set before."""
        moving.version += 1
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._due_then[ticket] = moving, moving.version
        self._events.at(time, TRANSFERRED, ticket, self._due, ticket)

    def _due(self, now: float, ticket: int) -> None:
        moving, version = self._due_then.pop(ticket)
        if version != moving.version or moving.number not in self._moving:
            return
        if moving.state is _State.ASKING:
            self._join(moving, now)
            return
        del self._moving[moving.number]
        self.bytes_moved += moving.left
        moving.left = 0.0
        self._leave(moving, now)
        moving.done(moving.number, now)
