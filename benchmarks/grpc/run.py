"""Picks over gRPC beside a bare gRPC echo: picks per second and the server's CPU per pick, as ratios of one run.

    python benchmarks/grpc/run.py [--rounds 3] [--seconds 2] [--json FILE]

Every pick carries the hashes of a prompt of 2,048 tokens and is released. The echo answers the same messages without
deciding anything: what the router adds to it is the price of the decision. Targets take turns within each round. The
client is Python too and shares the machine, so picks per second say little; the server's CPU per pick says what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from penstock.router.client import RouterClient
from penstock.router.v1 import router_pb2

HERE = Path(__file__).parent
WORKERS, BLOCKS, AT_ONCE = 8, 128, 32
POLICIES = ("LeastLoaded", "KVAware")
BASELINE = "echo"
PROMPT = router_pb2.BlockHashes(hashes=[i.to_bytes(32, "big") for i in range(BLOCKS)], prompt_tokens=BLOCKS * 16)
REQUEST = router_pb2.PickRequest(model="m", block_hashes=PROMPT, max_tokens=128)
Ask = Callable[[], Awaitable[None]]


@dataclass
class Target:
    """A server, and for each way of asking what every round gave: picks per second, CPU microseconds per pick."""

    name: str
    port: int
    pid: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def echo() -> Iterator[Target]:
    """The baseline."""
    with started([sys.executable, str(HERE / "echo.py")]) as process:
        assert process.stdout is not None
        yield Target(BASELINE, int(process.stdout.readline()), process.pid)


@contextlib.contextmanager
def router(policy: str, count: int = WORKERS) -> Iterator[Target]:
    """A router process; its `count` workers are addresses nobody listens on, for `Pick` never talks to them."""
    workers = ",".join(f"m=http://127.0.0.1:{20000 + i}" for i in range(count))
    port = free_port()
    flags = ["--host=127.0.0.1", f"--port={free_port()}", "--health-port=0", "--metrics-port=0", "--scrape-interval=0"]
    flags += [f"--grpc-port={port}", f"--policy={policy}", f"--workers={workers}"]
    with started([sys.executable, "-m", "penstock.router", *flags]) as process:
        yield Target(policy, port, process.pid)


async def ready(target: Target) -> None:
    """Wait until it answers; a router's port opens some time after its process starts."""
    until = time.monotonic() + 30
    async with RouterClient(f"127.0.0.1:{target.port}") as client:
        while True:
            try:
                await client.release((await client.pick(REQUEST, timeout=2)).lease_id)
                return
            except Exception:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)


async def hammer(ask: Ask, seconds: float) -> int:
    """Ask from so many tasks at once for so long; how many answers came."""
    until, done = time.monotonic() + seconds, 0

    async def one() -> None:
        nonlocal done
        while time.monotonic() < until:
            await ask()
            done += 1

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return done


async def measure(target: Target, seconds: float) -> None:
    """One round: calls of their own, then one stream."""
    async with RouterClient(f"127.0.0.1:{target.port}") as client, client.session(AT_ONCE) as session:

        async def calls() -> None:
            await client.release((await client.pick(REQUEST)).lease_id)

        async def stream() -> None:
            await session.release((await session.pick(REQUEST)).lease_id)

        for name, ask in (("Pick", calls), ("PickStream", stream)):
            await ask()
            began, used = time.monotonic(), cpu_seconds(target.pid)
            done = await hammer(ask, seconds)
            target.rates.setdefault(name, []).append(done / (time.monotonic() - began))
            target.cpu_us.setdefault(name, []).append((cpu_seconds(target.pid) - used) / done * 1e6)


async def rounds(targets: list[Target], count: int, seconds: float) -> None:
    """All rounds; the order turns, so that nobody always comes after the same other."""
    for target in targets:
        await ready(target)
    for number in range(count):
        turn = number % len(targets)
        for target in [*targets[turn:], *targets[:turn]]:
            await measure(target, seconds)


def report(targets: list[Target]) -> list[dict[str, object]]:
    """Medians, and the ratio of CPU to the baseline's in the same round."""
    base = next(t for t in targets if t.name == BASELINE)
    rows: list[dict[str, object]] = []
    for way in ("Pick", "PickStream"):
        for target in targets:
            ratios = [mine / theirs for mine, theirs in zip(target.cpu_us[way], base.cpu_us[way], strict=True)]
            row = {"way": way, "target": target.name, "picks_per_second": round(statistics.median(target.rates[way]))}
            row["cpu_us_per_pick_and_release"] = round(statistics.median(target.cpu_us[way]))
            rows.append(row | {"cpu_ratio": round(statistics.median(ratios), 2), "ratios": [min(ratios), max(ratios)]})
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        targets = [stack.enter_context(echo()), *(stack.enter_context(router(p)) for p in POLICIES)]
        uvloop.run(rounds(targets, chosen.rounds, chosen.seconds))
    rows = report(targets)
    print(f"{'':11} {'target':12} {'picks/s':>8} {'CPU us':>8} {'CPU ratio':>10}")
    for row in rows:
        low, high = row["ratios"]  # type: ignore[misc]
        shown = f"{row['cpu_ratio']:.2f} ({low:.2f}-{high:.2f})"
        print(
            f"{row['way']:11} {row['target']:12} {row['picks_per_second']:8} "
            f"{row['cpu_us_per_pick_and_release']:8} {shown:>20}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
