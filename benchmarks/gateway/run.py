"""The gateway beside the field's routers: requests per second, and CPU per stream, as ratios of one run.

    python benchmarks/gateway/run.py [--rounds 3] [--seconds 4] [--json FILE]

Needs a C compiler (the load generator and the workers are C, so that they are not what is measured) and, once, a
package index for the two baselines, each in a virtual environment of its own below the cache folder. Targets take
turns within each round, and the order turns with the round: a busy machine slows all of them alike, so only ratios
mean something. Client, gateway and workers share the machine's cores.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("PENSTOCK_CACHE", Path.home() / ".cache" / "penstock")) / "benchmarks"
BASELINES = {"sglang-router": "0.3.2", "vllm-router": "0.1.17"}
BASELINE_POLICIES = [
    ("sglang-router", "round_robin"),
    ("sglang-router", "cache_aware"),
    ("vllm-router", "round_robin"),
]
CHUNKS, INTERVAL_MS = 32, 2
PLAIN_CONNECTIONS, STREAM_CONNECTIONS = 32, 256
TEXT = "Say something about penstocks. "
MESSAGES = [{"role": "user", "content": TEXT * 20 + "########"}]
"""The load generator puts the request's number where the `#` stand: no two prompts are equal."""
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass
class Target:
    """Something that answers, and what it did in each round."""

    name: str
    port: int
    pid: int | None
    plain: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    streams: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    errors: int = 0


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def compiled(name: str, folder: Path) -> Path:
    """A program of ours, compiled."""
    program = folder / name
    subprocess.run(["cc", "-O2", "-w", "-o", program, HERE / f"{name}.c"], check=True)
    return program


def baseline(package: str) -> Path:
    """The baseline's command, installed on first use."""
    folder = CACHE / f"{package}-{BASELINES[package]}"
    if not (folder / "bin" / package).exists():
        print(f"installing {package} {BASELINES[package]}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", f"{package}=={BASELINES[package]}"], check=True)
    return folder / "bin" / package


@contextlib.contextmanager
def running(command: list[object], log: Path) -> Iterator[int]:
    """A process for as long as the context lasts; yields its pid."""
    with log.open("wb") as output:
        process = subprocess.Popen([str(c) for c in command], stdout=output, stderr=output, start_new_session=True)
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, body: bytes, log: Path) -> None:
    """Return when a whole answer came through a port."""
    for _ in range(150):
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"nothing answers on port {port}; its log ends with:\n{log.read_text()[-2000:]}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (all its threads) so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(load: Path, target: Target, connections: int, seconds: float, body: Path) -> tuple[float, float, float]:
    """Answers a second, p99 in ms, CPU milliseconds of the target for each answer."""
    before = cpu_seconds(target.pid) if target.pid else 0.0
    done = subprocess.run(
        [load, str(target.port), str(connections), str(seconds), body], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    spent = (cpu_seconds(target.pid) - before) if target.pid else 0.0
    target.errors += result["errors"]
    answers = max(1, result["answers"])
    return result["answers"] / result["seconds"], result["p99_ms"], 1e3 * spent / answers


def model_folder(folder: Path) -> Path:
    """A folder with model `m`'s own tokenizer and chat template, small but real: what KVAware makes tokens with."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|user|>", "<|assistant|>", "<|end|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=letters)
    tokenizer.train_from_iterator([TEXT, "0 1 2 3 4 5 6 7 8 9"] * 4, trainer)
    (folder / "models" / "m").mkdir(parents=True)
    tokenizer.save(str(folder / "models" / "m" / "tokenizer.json"))
    (folder / "models" / "m" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder / "models"


def commands(workers: list[int], folder: Path) -> dict[str, tuple[int, list[object]]]:
    """Port and command of each gateway: in turn, and by what workers have cached."""
    urls = [f"http://127.0.0.1:{p}" for p in workers]
    chosen: dict[str, tuple[int, list[object]]] = {}
    models = model_folder(folder)
    for policy in ("RoundRobin", "KVAware"):
        port, health, metrics = free_port(), free_port(), free_port()
        flags = ["--host", "127.0.0.1", "--port", port, "--health-port", health, "--metrics-port", metrics]
        flags += ["--policy", policy, "--model-folders", models, "--workers", ",".join(f"m={u}" for u in urls)]
        chosen[f"penstock {policy}"] = (port, [sys.executable, "-m", "penstock.router", *flags])
    for package, policy in BASELINE_POLICIES:
        port, metrics = free_port(), free_port()
        start = [baseline(package)] + (["launch"] if package == "sglang-router" else [])
        flags = ["--host", "127.0.0.1", "--port", port, "--prometheus-host", "127.0.0.1", "--prometheus-port", metrics]
        chosen[f"{package} {policy}"] = (port, [*start, *flags, "--worker-urls", *urls, "--policy", policy])
    return chosen


def run(count: int, seconds: float) -> list[Target]:
    """All targets, all rounds."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        load, backend = compiled("load", folder), compiled("backend", folder)
        plain, stream = folder / "plain.json", folder / "stream.json"
        plain.write_text(json.dumps({"model": "m", "messages": MESSAGES, "max_tokens": 32}))
        stream.write_text(plain.read_text()[:-1] + ',"stream":true}')
        workers = [free_port(), free_port()]
        for i, port in enumerate(workers):
            stack.enter_context(running([backend, port, CHUNKS, INTERVAL_MS], folder / f"backend{i}.log"))
            wait_for(port, plain.read_bytes(), folder / f"backend{i}.log")
        targets = [Target("direct (one worker)", workers[0], None)]
        for name, (port, command) in commands(workers, folder).items():
            log = folder / f"{name.replace(' ', '-')}.log"
            targets.append(Target(name, port, stack.enter_context(running(command, log))))
            wait_for(port, plain.read_bytes(), log)
        for number in range(count):
            turned = targets[number % len(targets) :] + targets[: number % len(targets)]
            for target in turned:
                rate, p99, cpu = measure(load, target, PLAIN_CONNECTIONS, seconds, plain)
                target.plain.append(rate)
                target.p99.append(p99)
                target.cpu_us.append(1e3 * cpu)
                rate, _, cpu = measure(load, target, STREAM_CONNECTIONS, seconds, stream)
                target.streams.append(rate)
                target.cpu_ms.append(cpu)
            print(f"round {number + 1} of {count} done", file=sys.stderr)
        return targets


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of ours by theirs within one round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def rounds(values: list[float], form: str) -> str:
    """One figure a round."""
    return " / ".join(format(v, form) for v in values)


def report(targets: list[Target]) -> str:
    """The table, in Markdown."""
    base = next(t for t in targets if t.name.startswith("sglang"))
    lines = [
        "| target | plain req/s, each round | x sglang | p99 ms | CPU us a request | x sglang "
        "| streams/s | CPU ms a stream | x sglang |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for t in targets:
        cells = [
            t.name,
            rounds(t.plain, ",.0f"),
            f"{ratio(t.plain, base.plain):.2f}",
            f"{statistics.median(t.p99):.1f}",
        ]
        cells += [rounds(t.cpu_us, ".0f"), f"{ratio(t.cpu_us, base.cpu_us):.2f}"] if t.pid else ["-", "-"]
        cells += [rounds(t.streams, ",.0f")]
        cells += [rounds(t.cpu_ms, ".2f"), f"{ratio(t.cpu_ms, base.cpu_ms):.2f}"] if t.pid else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if shutil.which("cc") is None:
        raise SystemExit("this benchmark compiles its load generator: install a C compiler (cc)")
    targets = run(chosen.rounds, chosen.seconds)
    print(f"load average before and after: {', '.join(f'{x:.1f}' for x in os.getloadavg())}")
    print(report(targets))
    if errors := {t.name: t.errors for t in targets if t.errors}:
        print(f"errors: {errors}")
    if chosen.json:
        chosen.json.write_text(json.dumps([vars(t) | {"pid": None} for t in targets], indent=1))


if __name__ == "__main__":
    main()
