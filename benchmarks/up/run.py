"""From nothing to the first tokens: seconds of each stage of `penstock up`, and of `penstock down`.

The baseline, in the same run, is the empty cluster (`penstock up --no-install`): what Kubernetes itself takes here.

    python benchmarks/up/run.py [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from penstock.box.binaries import ALL_PROGRAMS, find_programs

NAME = "bench"
Rounds = list[dict[str, float]]
"""Seconds by stage, of each round."""


def penstock(*arguments: str) -> None:
    """Run a verb of the command; its words reach the terminal only when it fails."""
    command = [sys.executable, "-m", "penstock.cli.main", *arguments, "--name", NAME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def one_round(state: Path, *options: str) -> dict[str, float]:
    """Seconds by stage of one box from nothing to gone; `all`: the wall clock of `up`."""
    started = time.monotonic()
    penstock("up", *options)
    wall = time.monotonic() - started
    stages: dict[str, float] = json.loads((state / NAME / "stages.json").read_text())["stages"]
    started = time.monotonic()
    penstock("down")
    return {**stages, "all": wall, "down": time.monotonic() - started}


def table(bare: Rounds, whole: Rounds) -> str:
    """Median and range of each stage, as a Markdown table."""
    lines = ["| stage | empty cluster | with Penstock and the example |", "|---|---|---|"]
    lines += [f"| {stage} | {_cell(bare, stage)} | {_cell(whole, stage)} |" for stage in whole[0]]
    return "\n".join(lines)


def _cell(rounds: Rounds, stage: str) -> str:
    seconds = [one[stage] for one in rounds if stage in one]
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f}-{max(seconds):.1f})" if seconds else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and store all rounds where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="boxes of each kind, taken in turns (default 3)")
    parser.add_argument("--json", type=Path, help="store every round's seconds here")
    asked = parser.parse_args(arguments)
    if find_programs(ALL_PROGRAMS) is None:
        raise SystemExit("bench: the Kubernetes programs are not in the cache; run `make binaries` first")
    bare: Rounds = []
    whole: Rounds = []
    with tempfile.TemporaryDirectory(prefix="psk-") as state:
        os.environ["PENSTOCK_STATE"] = state
        try:
            for number in range(1, max(1, asked.rounds) + 1):
                print(f"bench: round {number} of {asked.rounds}", file=sys.stderr)
                bare.append(one_round(Path(state), "--no-install"))
                whole.append(one_round(Path(state)))
        finally:
            penstock("down")
    print(table(bare, whole))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if asked.json:
        asked.json.write_text(json.dumps({"empty": bare, "whole": whole}, indent=2) + "\n")


if __name__ == "__main__":
    main()
