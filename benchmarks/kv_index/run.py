"""The KV index beside a bare dict that is walked and Dynamo's RadixTree: longest prefix, events, memory, in one run.

    python benchmarks/kv_index/run.py [--rounds 3] [--filling 1000000] [--dynamo PYTHON] [--json FILE]

`--dynamo` is an interpreter that has `ai-dynamo-runtime==1.6.1` (`pip install --no-deps` into a virtual environment of
its own is enough); without it those columns are left out.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.core.wire import BlockRemoved, BlockStored, EventBatch, decode_changes, encode_batch
from penstock.router.decisions.kv_index import KVIndex

WORKERS, DEPTH, EVENT, TOKENS = 64, 1024, 16, 16
BUDGET = 1 << 30
DISTINCT = (1, 4, 16, 64)
QUERIES = 1000


def hashes(rng: random.Random, count: int) -> list[int]:
    return [rng.getrandbits(64) for _ in range(count)]


def prompt(rng: random.Random, distinct: int) -> tuple[list[int], list[int]]:
    """A prompt's blocks, and how many of them each worker holds: `distinct` different numbers, the whole among them."""
    depths = [*rng.sample(range(1, DEPTH), distinct - 1), DEPTH]
    return hashes(rng, DEPTH), [depths[worker % distinct] for worker in range(WORKERS)]


def timed(call: Callable[[], object], times: int) -> list[int]:
    taken = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - begin)
    return taken


def walk(masks: dict[int, int], keys: list[int]) -> dict[int, int]:
    """The baseline: every block is looked up, masks are ANDed, and who drops out is written down."""
    depths: dict[int, int] = {}
    held = (1 << WORKERS) - 1
    for number, key in enumerate(keys):
        now = held & masks.get(key, 0)
        if now != held:
            gone = held ^ now
            while gone:
                low = gone & -gone
                depths[low.bit_length() - 1] = number
                gone ^= low
            held = now
            if not held:
                break
    while held:
        low = held & -held
        depths[low.bit_length() - 1] = len(keys)
        held ^= low
    return depths


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds)
    return {"p50": ordered[len(ordered) // 2] / 1e3, "p99": ordered[len(ordered) * 99 // 100] / 1e3}


def dynamo(python: str, case: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).parent / "dynamo_tree.py"
    done = subprocess.run([python, script], input=json.dumps(case), capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{python} cannot run Dynamo's tree: {done.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure_queries(filling: int, python: str | None, rng: random.Random) -> dict[str, Any]:
    """Longest prefix among `filling` other blocks, all three asked the same and found equal."""
    other = [(n % WORKERS, hashes(rng, EVENT)) for n in range(filling // EVENT)]
    events = [(n % WORKERS, hashes(rng, EVENT)) for n in range(20_000)]
    index, masks = KVIndex(BUDGET), dict[int, int]()
    for worker, keys in other:
        index.store(worker, keys)
        for key in keys:
            masks[key] = 1 << worker
    figures: dict[str, Any] = {}
    for distinct in DISTINCT:
        keys, depths = prompt(rng, distinct)
        for worker, depth in enumerate(depths):
            index.store(worker, keys[:depth])
            for key in keys[:depth]:
                masks[key] = masks.get(key, 0) | 1 << worker
        assert index.longest_prefix(keys, WORKERS).tolist() == depths == [walk(masks, keys)[w] for w in range(WORKERS)]
        ours: list[int] = []
        bare: list[int] = []
        for _ in range(10):  # In turns, so that what else runs meets both.
            ours += timed(lambda keys=keys: index.longest_prefix(keys, WORKERS), QUERIES // 10)
            bare += timed(lambda keys=keys: walk(masks, keys), QUERIES // 10)
        figures[str(distinct)] = {"penstock": percentiles(ours), "walk": percentiles(bare)}
        if python:
            held = [(worker, keys[:depth]) for worker, depth in enumerate(depths)]
            case = {"filling": other, "prompt": held, "asked": keys, "rounds": QUERIES, "events": events}
            theirs = dynamo(python, case)
            assert [depth for _, depth in theirs["scores"]] == depths, "the two do not agree"
            figures[str(distinct)]["dynamo"] = percentiles(theirs["ns"])
            figures["dynamo_events"] = len(events) * EVENT / theirs["event_seconds"]
    figures["bytes_per_block"] = index.stats().bytes / index.stats().blocks
    return figures


def rate(blocks: int, call: Callable[[], None]) -> float:
    begin = time.process_time()
    call()
    return blocks / (time.process_time() - begin)


def measure_events(filling: int, rng: random.Random) -> dict[str, float]:
    """Blocks a CPU second, counts and budget on, into an index of `filling` blocks that has grown before."""
    events = [(n % WORKERS, hashes(rng, EVENT)) for n in range(20_000)]
    index, masks = KVIndex(BUDGET), dict[int, int]()
    for number in range(filling // EVENT):
        keys = hashes(rng, EVENT)
        index.store(number % WORKERS, keys)
        masks.update(dict.fromkeys(keys, 1))
    stored = [(w, BlockStored(block_hashes=k, token_ids=[1], block_size=TOKENS, medium="GPU")) for w, k in events]
    removed = [(w, BlockRemoved(block_hashes=k[::-1], medium="GPU")) for w, k in events]
    tokens = list(range(1000, 1000 + EVENT * TOKENS))
    wire = [
        (w, encode_batch(EventBatch(1.0, [BlockStored(block_hashes=k, token_ids=tokens, block_size=TOKENS)], 0)))
        for w, k in events
    ]
    blocks = len(events) * EVENT

    def apply(many: list[tuple[int, Any]]) -> None:
        for worker, event in many:
            index.apply(worker, event)

    def read(many: list[tuple[int, bytes]]) -> None:
        for worker, payload in many:
            for event in decode_changes(payload).events:
                index.apply(worker, event)

    def bare() -> None:
        for worker, keys in events:
            bit = 1 << worker
            for key in keys:
                masks[key] = masks.get(key, 0) | bit

    apply(stored), apply(removed), bare()  # Tables grow here, once.
    figures = {"stored": rate(blocks, lambda: apply(stored)), "again": rate(blocks, lambda: apply(stored))}
    apply(removed)
    figures["removed"] = rate(blocks, lambda: apply(removed))
    figures["decoded and stored"] = rate(blocks, lambda: read(wire))
    figures["bare dict"] = rate(blocks, bare)
    return figures


def measure_memory(blocks: int, rng: random.Random) -> dict[str, float]:
    """Bytes a block, by the allocator's own count, and how the estimate compares."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = KVIndex(BUDGET)
    for number in range(blocks // EVENT):
        index.store(number % WORKERS, hashes(rng, EVENT))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"bytes_per_block": used / len(index._table), "estimate_ratio": index.stats().bytes / used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--filling", type=int, default=1_000_000)
    parser.add_argument("--dynamo", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rng = random.Random(7)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # As the router does.
    queries = [measure_queries(options.filling, options.dynamo, rng) for _ in range(options.rounds)]
    events = [measure_events(options.filling, rng) for _ in range(options.rounds)]
    memory = measure_memory(200_000, rng)
    for distinct in map(str, DISTINCT):
        for name in queries[0][distinct]:
            p50 = [round(each[distinct][name]["p50"], 1) for each in queries]
            ratio = statistics.median(e[distinct][name]["p50"] / e[distinct]["walk"]["p50"] for e in queries)
            p99 = statistics.median(e[distinct][name]["p99"] for e in queries)
            print(f"{distinct:>3} depths  {name:9} p50 us {p50}  p99 {p99:.0f}  x walk {ratio:.2f}")
    for name in events[0]:
        rates = [round(each[name] / 1e6, 2) for each in events]
        ratio = statistics.median(e[name] / e["bare dict"] for e in events)
        print(f"events {name:20} M blocks/CPU s {rates}  x bare dict {ratio:.2f}")
    if options.dynamo:
        print(f"events dynamo, JSON         M blocks/s {[round(e['dynamo_events'] / 1e6, 2) for e in queries]}")
    print(f"memory {memory['bytes_per_block']:.0f} bytes a block; the estimate is {memory['estimate_ratio']:.2f} of it")
    if options.json:
        options.json.write_text(json.dumps({"queries": queries, "events": events, "memory": memory}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
