"""Dynamo's RadixTree from Python, measured by its own interpreter: reads a JSON case, writes JSON figures.

python dynamo_tree.py < case.json
"""

import json
import os
import sys
import time

os.environ["DYN_LOG"] = "error"
from dynamo._core import RadixTree  # type: ignore[import-not-found]


def event(number: int, keys: list[int], parent: int | None) -> bytes:
    blocks = [{"block_hash": k, "tokens_hash": k} for k in keys]
    stored = {"parent_hash": parent, "blocks": blocks}
    return json.dumps({"event_id": number, "data": {"stored": stored}}).encode()


def main() -> None:
    case = json.load(sys.stdin)
    tree = RadixTree()
    number = 0
    for worker, keys in case["filling"]:
        tree.apply_event(worker, event(number, keys, None))
        number += 1
    for worker, keys in case["prompt"]:
        for start in range(0, len(keys), 128):
            tree.apply_event(worker, event(number, keys[start : start + 128], keys[start - 1] if start else None))
            number += 1
    asked = case["asked"]
    times = []
    for _ in range(case["rounds"]):
        begin = time.perf_counter_ns()
        found = tree.find_matches(asked)
        times.append(time.perf_counter_ns() - begin)
    scores = sorted((key[0] if isinstance(key, tuple) else key, value) for key, value in found.scores.items())
    events = [(w, event(number + i, keys, None)) for i, (w, keys) in enumerate(case["events"])]
    begin = time.perf_counter()
    for worker, payload in events:
        tree.apply_event(worker, payload)
    tree.find_matches(asked)  # Events are queued; a query waits until they are in.
    seconds = time.perf_counter() - begin
    json.dump({"ns": times, "scores": scores, "event_seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
