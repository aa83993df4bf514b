"""CPU seconds, events and memory of the twin on Azure-conversation lengths.

    python benchmarks/twin/run.py AzureLLMInferenceTrace_conv.csv [--requests 12095] [--machines 70] [--rate 100]
    python benchmarks/twin/run.py AzureLLMInferenceTrace_conv.csv --policy KVAware --prefixes

With `--prefixes` the same requests, of the same lengths at the same times, belong to conversations of four turns: each
prompt begins with as much of the one before as both are long, in blocks of 64 tokens.

Prints one JSON object. CPU time is the process's own, of `simulate` alone: the trace is read and drawn before. Beside
it stands the CPU time of a fixed loop of plain Python in the same process, because a busy machine makes both slower.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path

from azure import in_conversations, lengths_of
from penstock.core.models import Parallelism, find_model
from penstock.simulator import Scenario, make_report, parse_nodes, simulate
from penstock.simulator.workloads import as_workload


def calibration() -> float:
    """CPU seconds of ten million additions."""
    began = time.process_time()
    total = 0
    for number in range(10_000_000):
        total += number
    return time.process_time() - began


def resident_mib() -> float:
    """Most memory this process had so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main() -> None:
    """Run once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--requests", type=int, default=12_095)
    parser.add_argument("--machines", type=int, default=70)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--policy", default="LeastLoaded")
    parser.add_argument("--prefixes", action="store_true", help="let requests go on from one another")
    parser.add_argument("--walk", action="store_true", help="take every decode step singly")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plain = lengths_of(options.trace, options.requests, options.rate, options.seed)
    workload = as_workload(in_conversations(plain, options.seed)) if options.prefixes else plain
    begun = resident_mib()
    model = find_model("llama-3-70b")
    assert model is not None
    scenario = Scenario(
        model, parse_nodes(f"a100-80g={options.machines}x8"), parallelism=Parallelism(tensor=8), policy=options.policy,
        walk=options.walk, seed=options.seed, block_size=16,
    )  # fmt: skip
    before = calibration()
    wall, cpu = time.perf_counter(), time.process_time()
    result = simulate(scenario, workload)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = calibration()
    report = make_report(result, ttft_s=1.0, tpot_s=0.1)
    count = workload.total
    print(
        json.dumps(
            {
                "requests": count,
                "completed": report.requests.completed,
                "machines": options.machines,
                "policy": options.policy,
                "prefix_hit_ratio": report.prefix_hit_ratio,
                "walk": options.walk,
                "cpu_s": round(cpu, 3),
                "wall_s": round(wall, 3),
                "cpu_us_per_request": round(cpu / count * 1e6, 1),
                "events": result.events,
                "events_per_cpu_s": round(result.events / cpu),
                "engine_steps": result.steps,
                "engine_steps_per_cpu_s": round(result.steps / cpu),
                "events_per_request": round(result.events / count, 2),
                "rss_before_mib": begun,
                "peak_rss_mib": resident_mib(),
                "calibration_s": [round(before, 3), round(after, 3)],
                "python": platform.python_version(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
