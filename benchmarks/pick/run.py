"""Picks in process, from a prompt's block hashes to the reserved worker, for fleets of 8 to 1,024 workers, in one run.

    python benchmarks/pick/run.py [--rounds 3] [--picks 2000] [--dynamo PYTHON] [--json FILE]

A prompt has 2,048 tokens (128 blocks of 16). Its system prompt (64 blocks) is cached by half of the workers, the rest
by one; every worker has some requests running. Columns: the prefix look-up alone, the whole pick (look-up, prediction
for every candidate, choice) by KVAware, the same sums in a plain loop over workers as the baseline, LeastLoaded and
PrefixAffinity, and reserve + release. With `--dynamo`, an interpreter that has `ai-dynamo-runtime==1.6.1` (`pip install
--no-deps` into a virtual environment of its own is enough), also Dynamo's SelectionService from Python, asked by block
hashes too; it hears no KV events, so it finds nothing cached. Times are microseconds; p50 and p99 are of the round with
the lowest p50, since what disturbs a round is never the code.
"""

import argparse
import gc
import json
import math
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.core.fleet import Fleet, Pick, Request, Worker
from penstock.router.decisions import find_policy
from penstock.router.decisions.kv_index import KVIndex

WORKERS = (8, 64, 256, 1024)
TOKENS, BLOCK, SHARED = 2048, 16, 64
PREFILL, DECODE, PRICE = (10.0, 0.1, 1e-6), (15.0, 0.1, 1e-4), 4.0
GOAL_US, GOAL_RESERVES = 50.0, 20_000


@dataclass(frozen=True, slots=True)
class Result:
    """One column of one row."""

    p50: float
    p99: float


def fleet_of(count: int, rng: random.Random) -> tuple[Fleet, list[Request]]:
    """Workers with requests running and queued, and prompts of which they have parts cached."""
    fleet = Fleet(capacity=count)
    index = KVIndex(256 << 20)
    fleet.index_by("m", index, BLOCK)
    for number in range(count):
        worker = Worker(f"w{number}", "h", number, "m", prefill_ms=PREFILL, decode_ms=DECODE, price_per_hour=PRICE)
        fleet.set_ready(fleet.add(worker), True)
        for _ in range(rng.randrange(8)):
            held = fleet.reserve(number, rng.randrange(4000), 200)
            if rng.random() < 0.9:
                fleet.prefilled(held)
    system = [rng.randbytes(32) for _ in range(SHARED)]
    for slot in range(0, count, 2):
        index.store(slot, system)
    requests = []
    for number in range(64):
        own = [rng.randbytes(32) for _ in range(TOKENS // BLOCK - SHARED)]
        index.store(2 * rng.randrange(count // 2), own[: rng.randrange(len(own))], system[-1])
        hashes = tuple(system + own)
        requests.append(Request(str(number), "m", TOKENS, 256, block_hashes=hashes, ttft_ms=500.0, tpot_ms=60.0))
    return fleet, requests


def loop(fleet: Fleet, request: Request) -> int:
    """The baseline: the same prediction, worker by worker."""
    cached = fleet.cached_tokens(request)
    assert cached is not None
    (a, b, c), (d, e, f), price = PREFILL, DECODE, PRICE / 3.6e6
    least, best = float("inf"), -1
    prompt, output = request.prompt_tokens, 256.0
    added = output * (e + f * (prompt + output / 2))
    for slot in range(len(fleet)):
        hit = float(cached[slot])
        n, t, s = fleet.pending[slot]
        queue = a * n + b * t + c * s
        own = max(a + b * (prompt - hit) + c * (prompt * prompt - hit * hit), d)
        flight = float(fleet.in_flight[slot])
        stall, square = fleet.stalls[slot].tolist()
        tpot = d + e * (flight + 1) + f * (float(fleet.context_tokens[slot]) + prompt) + stall
        spread = math.sqrt(square / output)
        cost = ((own + added) * (max(flight - n, 0.0) + 1) + queue + own) * price
        if queue + own <= 500.0 and tpot + 4.0 * spread <= 60.0 and cost < least:
            least, best = cost, slot
    return best


def timed(call: Callable[[Request], object], requests: Sequence[Request], times: int, rounds: int) -> Result:
    """Percentiles, in microseconds, of the quietest round."""
    found = []
    for _ in range(rounds):
        taken = []
        for number in range(times):
            request = requests[number % len(requests)]
            begin = time.perf_counter_ns()
            call(request)
            taken.append((time.perf_counter_ns() - begin) / 1e3)
        taken.sort()
        found.append(Result(statistics.median(taken), taken[len(taken) * 99 // 100]))
    return min(found, key=lambda result: result.p50)


def measure(count: int, picks: int, rounds: int) -> dict[str, Result]:
    """All columns for one size of fleet."""
    fleet, requests = fleet_of(count, random.Random(count))
    columns: dict[str, Result] = {"look-up": timed(fleet.cached_tokens, requests, picks, rounds)}
    for name in ("KVAware", "LeastLoaded", "PrefixAffinity"):
        policy = find_policy(name)

        def pick(request: Request, policy: Any = policy) -> Pick:
            answer = policy.pick(request, fleet.view(), 0.0, 1)
            assert isinstance(answer, Pick)
            return answer

        columns[name] = timed(pick, requests, picks, rounds)
    columns["loop"] = timed(lambda request: loop(fleet, request), requests, max(64, picks // 10), rounds)

    def hold(request: Request) -> None:
        fleet.release(fleet.reserve(0, TOKENS, 256, 1024))

    columns["reserve+release"] = timed(hold, requests, picks, rounds)
    return columns


def dynamo(python: str, count: int, picks: int) -> dict[str, Result]:
    """Dynamo's columns for one size of fleet, measured by its own interpreter."""
    script = Path(__file__).parent / "dynamo_service.py"
    case = {"workers": count, "blocks": TOKENS // BLOCK, "picks": picks, "endpoint": "tcp://127.0.0.1:9"}
    done = subprocess.run([python, script], input=json.dumps(case), capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{python} cannot run Dynamo's SelectionService: {done.stderr[-500:]}")
    found = json.loads(done.stdout).items()
    return {f"Dynamo {name}": Result(statistics.median(t), t[len(t) * 99 // 100]) for name, t in found}


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picks", type=int, default=2000)
    parser.add_argument("--dynamo", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not given.dynamo:
        print("without Dynamo's columns: no --dynamo PYTHON with ai-dynamo-runtime==1.6.1 was given")
    gc.disable()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    names = ("look-up", "KVAware", "loop", "LeastLoaded", "PrefixAffinity", "reserve+release")
    print("workers  " + "".join(f"{name:>22}" for name in names) + "   us: p50 (p99)")
    for count in WORKERS:
        columns = measure(count, given.picks, given.rounds)
        cells = "".join(f"{columns[n].p50:>13.1f} ({columns[n].p99:6.1f})" for n in names)
        rate = 1e6 / columns["reserve+release"].p50
        ratio = columns["loop"].p50 / columns["KVAware"].p50
        print(f"{count:>7}  {cells}   loop/KVAware {ratio:.1f}x, {rate:,.0f} reserve+release/s")
        if given.dynamo:
            theirs = dynamo(given.dynamo, count, given.picks)
            print("".join(f"         {name} {r.p50:.1f} ({r.p99:.1f})" for name, r in theirs.items()))
            columns |= theirs
        rows[str(count)] = {name: {"p50_us": r.p50, "p99_us": r.p99} for name, r in columns.items()}
    if given.json is not None:
        given.json.write_text(
            json.dumps({"goal_us": GOAL_US, "goal_reserves": GOAL_RESERVES, "workers": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
