"""Dynamo's SelectionService in its own interpreter: reads a JSON case, writes JSON figures (microseconds).

python dynamo_service.py < case.json     {"workers": 64, "blocks": 128, "picks": 2000, "endpoint": "tcp://..."}
"""

import asyncio
import json
import os
import sys
import time

os.environ["DYN_LOG"] = "error"
from dynamo._core import SelectionService  # type: ignore[import-not-found]


async def measured(case: dict[str, int | str]) -> dict[str, list[float]]:
    """What a select, and a select that books with its release, take."""
    service = SelectionService()
    blocks = int(case["blocks"])
    for number in range(int(case["workers"])):
        worker = {"worker_id": number + 1, "model_name": "m", "block_size": 16, "endpoint": "http://127.0.0.1:1"}
        worker |= {"kv_events_endpoints": {0: case["endpoint"]}, "data_parallel_start_rank": 0, "data_parallel_size": 1}
        await service.upsert_worker(worker | {"total_kv_blocks": 100_000, "max_num_batched_tokens": 8192})
    hashes = [number * 0x1F3D5B79 + 1 for number in range(blocks)]
    asked = {"model_name": "m", "isl_tokens": blocks * 16, "block_hashes": hashes, "sequence_hashes": hashes}
    select, book = [], []
    for number in range(int(case["picks"])):
        begin = time.perf_counter_ns()
        await service.select(asked)
        middle = time.perf_counter_ns()
        await service.select_and_reserve(asked | {"selection_id": f"b{number}"})
        await service.free_reservation(f"b{number}")
        end = time.perf_counter_ns()
        select.append((middle - begin) / 1e3)
        book.append((end - middle) / 1e3)
    service.shutdown()
    return {"select": sorted(select), "select+reserve+free": sorted(book)}


json.dump(asyncio.run(measured(json.load(sys.stdin))), sys.stdout)
