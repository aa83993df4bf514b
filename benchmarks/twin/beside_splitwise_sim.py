"""CPU seconds of SplitwiseSim and of the twin over the same requests, taken in turn, so that a busy machine slows both.

    git clone https://github.com/Mutinifni/splitwise-sim && cd splitwise-sim && git checkout 8f99e7d
    python3.11 -m venv .venv && .venv/bin/pip install hydra-core==1.3.2 networkx==3.1 numpy==1.25.2 pandas==2.0.3 \\
        scipy==1.11.3
    python benchmarks/twin/beside_splitwise_sim.py AzureLLMInferenceTrace_conv.csv splitwise-sim \\
        splitwise-sim/.venv/bin/python [--rounds 3]

SplitwiseSim runs its Baseline-A100 set-up (70 DGX-A100, bloom-176b, `token_jsq`, `performance_model=db`) in a directory
that is made for it and deleted. What it needs to start and to read its tables (a run of two requests) is taken off;
of the twin `simulate` counts, with the requests it makes as they arrive. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from azure import lengths_of
from penstock.core.traces import TraceRequest

MACHINES, RATE, REQUESTS = 70, 100.0, 12_095
COLUMNS = (
    "request_id", "request_type", "application_id", "arrival_timestamp", "batch_size", "prompt_size", "token_size",
)  # fmt: skip
# Its own set-up names a launcher that needs a Ray cluster; this one is the same without it.
SET_UP = f"""
defaults: [{{cluster: half_half}}, {{router: noop}}, {{arbiter: noop}}, {{hardware_repo: default}},
  {{model_repo: default}}, {{orchestrator_repo: default}}, {{performance_model: db}}, {{power_model: constant}},
  {{applications: solo}}, {{start_state: baseline}}, _self_]
cluster: {{servers: [{{sku: dgx-a100, count: {MACHINES}}}, {{sku: dgx-h100, count: 0}}]}}
end_time: 86400
debug: false
seed: 0
hydra: {{job: {{chdir: true}}}}
"""
_GENERATIVE = 2  # Its number for a request to a language model.


def rows(requests: Sequence[tuple[int, TraceRequest]]) -> Iterator[tuple[object, ...]]:
    """The requests as its traces have them."""
    for number, asked in requests:
        yield number, _GENERATIVE, 0, asked.arrival_s, 1, asked.input_tokens, asked.output_tokens


def write(path: Path, requests: Sequence[tuple[int, TraceRequest]]) -> None:
    """A trace for it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows(requests))


def theirs(checkout: Path, python: Path, trace: Path, into: Path) -> float:
    """CPU seconds of one run of it, from the start of its process to the end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    into.mkdir()
    (into / "beside.yaml").write_text(SET_UP)
    done = subprocess.run(
        [
            python, checkout / "run.py", "--config-dir", into, "--config-name", "beside",
            "applications.0.scheduler=token_jsq", f"+trace.path={trace}", f"hydra.run.dir={into}",
        ],
        cwd=checkout, capture_output=True, text=True, timeout=1800,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"SplitwiseSim in {checkout} ended with code {done.returncode}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(trace: Path, *options: str) -> float:
    """CPU seconds of one run of the twin."""
    command = [sys.executable, Path(__file__).with_name("run.py"), trace, *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return float(json.loads(done.stdout)["cpu_s"])


def main() -> None:
    """Run in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("checkout", type=Path, help="of SplitwiseSim")
    parser.add_argument("python", type=Path, help="that has what SplitwiseSim needs")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kinds = {"LeastLoaded": (), "KVAware --prefixes": ("--policy", "KVAware", "--prefixes")}
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        requests = list(lengths_of(options.trace, REQUESTS, RATE, 0).opening())
        write(work / "all.csv", requests)
        write(work / "two.csv", requests[:2])
        checkout, python = options.checkout.resolve(), options.python.absolute()
        for number in range(options.rounds):
            one = {"load_average": os.getloadavg()[0]}
            # The twin before and after it: its mean has met the load that the other has met.
            first = {kind: ours(options.trace, *flags) for kind, flags in kinds.items()}
            start = theirs(checkout, python, work / "two.csv", work / f"{number}-two")
            one["splitwise_sim"] = theirs(checkout, python, work / "all.csv", work / f"{number}-all") - start
            for kind, flags in kinds.items():
                one[kind] = (first[kind] + ours(options.trace, *flags)) / 2
            found.append({name: round(value, 3) for name, value in one.items()})
            print(found[-1], file=sys.stderr, flush=True)
    ratios = {kind: [round(one["splitwise_sim"] / one[kind], 1) for one in found] for kind in kinds}
    print(
        json.dumps(
            {
                "cpu_s": found,
                "times_as_fast": ratios,
                "median": {kind: statistics.median(values) for kind, values in ratios.items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
