"""What the P/D sidecar costs: CPU per streamed request through it, beside the same requests straight to the engine.

    python benchmarks/sidecar/run.py [--rounds 3] [--requests 200] [--json FILE]

Two simulated engines and a sidecar, each a process of its own; 64 output tokens a request, 16 at once. Three roads take
turns within each round: straight to the engine, through the sidecar, and through the sidecar with both legs. CPU is
read from the processes themselves, so that the client's own does not count.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

TOKENS, AT_ONCE, PROMPT = 64, 16, 256
TICK = os.sysconf("SC_CLK_TCK")
PROFILE = '{"prefill":[2,0.01,0],"decode":[2,0.01,0]}'
_starts = itertools.count(1)


@dataclass
class Road:
    """One way to the answer, and what it cost in each round: CPU in us per request."""

    name: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)
    sidecar: list[float] = field(default_factory=list)
    engines: list[float] = field(default_factory=list)


@contextlib.contextmanager
def running(*command: str, **env: str) -> Iterator[tuple[int, int]]:
    """A process for as long as the context lasts: its pid and the port it says it serves on."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], **env},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"on port (\d+)", line):
                yield process.pid, int(found[1])
                return
        raise SystemExit(f"{command[0]} did not start")
    finally:
        process.kill()
        process.communicate()


def engine(role: str) -> contextlib.AbstractContextManager[tuple[int, int]]:
    """A simulated engine of one role."""
    config = {"kv_connector": "NixlConnector", "kv_role": role, "kv_load_failure_policy": "recompute"}
    flags = ["--served-model-name", "tiny", "--profile", PROFILE, "--kv-transfer-config", json.dumps(config)]
    return running("penstock.workers.simulated", *flags, VLLM_NIXL_SIDE_CHANNEL_PORT="0")


def cpu_us(pid: int) -> float:
    """CPU a process has used so far, in microseconds."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / TICK * 1e6


async def load(road: Road, requests: int) -> None:
    """Send the requests, `AT_ONCE` at a time; every answer must be whole."""
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=AT_ONCE), timeout=60) as http:
        left = iter(range(requests))

        async def one_after_another() -> None:
            for _ in left:
                base = next(_starts) * 7 % 30_000
                body = {
                    "model": "tiny",
                    "prompt": list(range(base, base + PROMPT)),
                    "max_tokens": TOKENS,
                    "stream": True,
                }
                answer = await http.post(
                    f"http://127.0.0.1:{road.port}/v1/completions", json=body, headers=road.headers
                )
                assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-200:]

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


def measure(road: Road, requests: int, sidecar: int, engines: list[int]) -> None:
    """One round of one road."""
    before = cpu_us(sidecar), sum(map(cpu_us, engines))
    asyncio.run(load(road, requests))
    road.sidecar.append((cpu_us(sidecar) - before[0]) / requests)
    road.engines.append((sum(map(cpu_us, engines)) - before[1]) / requests)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        prefill, prefill_port = stack.enter_context(engine("kv_producer"))
        decode, port = stack.enter_context(engine("kv_consumer"))
        flags = ["--engine-port", str(port), "--metrics-port", "0", "--prefill-workers", f"127.0.0.1:{prefill_port}"]
        sidecar, sidecar_port = stack.enter_context(running("penstock.workers.sidecar", *flags))
        legs = {"x-prefiller-host-port": f"127.0.0.1:{prefill_port}"}
        roads = [Road("straight", port), Road("sidecar", sidecar_port), Road("sidecar, two legs", sidecar_port, legs)]
        for road in roads:
            asyncio.run(load(road, AT_ONCE))  # imports, connections, first allocations
        for number in range(options.rounds):
            for road in roads[number % 3 :] + roads[: number % 3]:
                measure(road, options.requests, sidecar, [prefill, decode])
    report(roads, options.json)


def report(roads: list[Road], file: Path | None) -> None:
    """Print the medians; ratios are taken within each round."""
    straight = roads[0].engines
    rows = {}
    for road in roads:
        whole = [s + e for s, e in zip(road.sidecar, road.engines, strict=True)]
        ratios = [w / base for w, base in zip(whole, straight, strict=True)]
        rows[road.name] = {
            "sidecar_us": round(statistics.median(road.sidecar)),
            "engines_us": round(statistics.median(road.engines)),
            "ratio": [round(f(ratios), 2) for f in (statistics.median, min, max)],
        }
        middle, least, most = rows[road.name]["ratio"]
        print(
            f"{road.name:18} sidecar {rows[road.name]['sidecar_us']:6} us  engines "
            f"{rows[road.name]['engines_us']:6} us  ratio {middle} ({least}-{most})"
        )
    if file is not None:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
