"""`PickStream` beside Dynamo's HTTP select service, one C client for both: picks a second, latency, the server's CPU.

    python benchmarks/grpc/beside_dynamo.py --dynamo PYTHON [--rounds 3] [--seconds 3] [--workers 64] [--json FILE]

`--dynamo` is an interpreter that has `ai-dynamo-runtime==1.6.1` (`pip install --no-deps` into a virtual environment of
its own is enough). Without it, or without a C compiler, nothing is measured, and why is said.

Each pick carries the hashes of 2,048 tokens (128 blocks), chooses among `--workers`, holds a place there, and is given
back before its connection asks again. Nobody publishes KV events, so Dynamo finds no prompt cached; the router does,
because it remembers its own picks. Both speak to loopback; targets take turns within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from penstock.router.v1 import router_pb2

sys.path.insert(0, str(Path(__file__).parent))
from run import BLOCKS, HERE, REQUEST, cpu_seconds, free_port, ready, router, started

CONNECTIONS = (1, 8)
BASELINE = "Dynamo"


@dataclass
class Target:
    """A server, how it is spoken to, and what each round gave, by number of connections."""

    name: str
    protocol: str
    port: int
    pid: int
    pick: Path
    rounds: dict[int, list[dict[str, float]]] = field(default_factory=dict)


def _post(url: str, body: object) -> None:
    data = json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        answer.read()


@contextlib.contextmanager
def dynamo(python: str, workers: int, folder: Path) -> Iterator[Target]:
    """Dynamo's service with so many workers; their events come from a socket of ours that stays silent."""
    port, context = free_port(), zmq.Context()
    silent = context.socket(zmq.PUB)
    endpoint = f"tcp://127.0.0.1:{silent.bind_to_random_port('tcp://127.0.0.1')}"
    with started([python, str(HERE / "dynamo_select.py"), str(port)]) as process:
        base = f"http://127.0.0.1:{port}"
        _wait(base + "/health", process)
        for number in range(workers):
            worker = {"worker_id": number + 1, "model_name": "m", "block_size": 16, "endpoint": "http://127.0.0.1:1"}
            worker |= {"kv_events_endpoints": {"0": endpoint}, "data_parallel_start_rank": 0, "data_parallel_size": 1}
            _post(base + "/workers", worker | {"total_kv_blocks": 100_000, "max_num_batched_tokens": 8192})
        pick = folder / "pick.json"
        hashes = [number * 0x1F3D5B79 + 1 for number in range(BLOCKS)]
        asked = {"model_name": "m", "isl_tokens": BLOCKS * 16, "selection_id": "########"}
        pick.write_text(json.dumps(asked | {"block_hashes": hashes, "sequence_hashes": hashes}))
        yield Target(BASELINE, "h1", port, process.pid, pick)
    context.destroy(linger=0)


def _wait(url: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("Dynamo's select service does not start; is the wheel installed there?") from None
            time.sleep(0.1)


@contextlib.contextmanager
def penstock(policy: str, workers: int, folder: Path) -> Iterator[Target]:
    """A router with so many workers."""
    with router(policy, workers) as served:
        asyncio.run(ready(served))
        pick = folder / "pick.bin"
        pick.write_bytes(router_pb2.PickStreamRequest(correlation_id=1, pick=REQUEST).SerializeToString())
        yield Target(f"Penstock {policy}", "h2", served.port, served.pid, pick)


def measure(client: Path, target: Target, connections: int, seconds: float) -> None:
    """One round."""
    used = cpu_seconds(target.pid)
    command = [str(client), target.protocol, str(target.port), str(connections), str(seconds), str(target.pick)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise SystemExit(f"{target.name}: {done.stderr}")
    found = json.loads(done.stdout)
    if found["errors"] or not found["picks"]:
        raise SystemExit(f"{target.name}: {found}")
    found["rate"] = found["picks"] / found["seconds"]
    found["cpu_us"] = (cpu_seconds(target.pid) - used) / found["picks"] * 1e6
    target.rounds.setdefault(connections, []).append(found)


def report(targets: list[Target]) -> list[dict[str, object]]:
    """Medians of the rounds, and the rate as a multiple of Dynamo's in the same round."""
    base = next(target for target in targets if target.name == BASELINE)
    rows: list[dict[str, object]] = []
    for connections in CONNECTIONS:
        for target in targets:
            mine, theirs = target.rounds[connections], base.rounds[connections]
            ratios = [a["rate"] / b["rate"] for a, b in zip(mine, theirs, strict=True)]
            row: dict[str, object] = {"connections": connections, "target": target.name}
            row |= {
                key: statistics.median(each[key] for each in mine) for key in ("rate", "p50_us", "p99_us", "cpu_us")
            }
            rows.append(row | {"ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)]})
    return rows


def main() -> None:
    """Build the client, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dynamo", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not given.dynamo or not compiler:
        why = "no --dynamo PYTHON with ai-dynamo-runtime==1.6.1 was given" if compiler else "there is no C compiler"
        print(f"skipped: {why}")
        return
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        client = folder / "pick_load"
        subprocess.run([compiler, "-O2", "-o", str(client), str(HERE / "pick_load.c")], check=True)
        targets = [stack.enter_context(dynamo(given.dynamo, given.workers, folder))]
        targets += [stack.enter_context(penstock(p, given.workers, folder)) for p in ("LeastLoaded", "KVAware")]
        for number in range(given.rounds):
            for connections in CONNECTIONS:
                for turn in range(len(targets)):
                    measure(client, targets[(turn + number) % len(targets)], connections, given.seconds)
    rows = report(targets)
    print(f"{'conns':>5}  {'target':22} {'picks/s':>8} {'p50 us':>8} {'p99 us':>8} {'CPU us':>7}  x {BASELINE}'s rate")
    for row in rows:
        low, high = row["ratios"]  # type: ignore[misc]
        print(
            f"{row['connections']:>5}  {row['target']:22} {row['rate']:8.0f} {row['p50_us']:8.0f} {row['p99_us']:8.0f} "
            f"{row['cpu_us']:7.0f}  {row['ratio']:.2f} ({low:.2f}-{high:.2f})"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
