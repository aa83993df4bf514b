"""A simulated engine as a real process, and the few verbs tests need to talk to it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

PROFILE = '{"prefill":[2,0.01,0],"decode":[2,0.01,0]}'


class EngineProcess:
    """One running engine: its address, its log, its end."""

    def __init__(self, *flags: str, name: str = "tiny", env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "penstock.workers.simulated", "--served-model-name", name]
        command += ["--host", "127.0.0.1", "--port", "0", "--profile", PROFILE, *flags]
        # Its own directory and no inherited settings: a test must not depend on where it runs.
        self._folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            cwd=self._folder.name,
            env={"PATH": os.environ["PATH"], **(env or {})},
            text=True,
        )
        self.log: list[str] = []
        self._ready = threading.Event()
        self._port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"serving .* on port (\d+)", line)
            if found:
                self._port = int(found[1])
                self._ready.set()
        self._ready.set()

    @property
    def port(self) -> int:
        assert self._ready.wait(30), "the engine did not start within 30 s"
        assert self._port, "".join(self.log)
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: object = None, **extra: object) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body)
        return httpx.post(self.url + path, content=content, timeout=30, **extra)  # type: ignore[arg-type]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def complete(self, **fields: object) -> dict:
        response = self.post("/v1/completions", {"model": "tiny", **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str = "/v1/completions", **fields: object) -> list[dict]:
        """The stream's events; asserts that it ends as one."""
        response = self.post(path, {"model": "tiny", "stream": True, **fields})
        assert response.status_code == 200, response.text
        return parse_events(response.text)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a series over the labels given."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def terminate(self, wait_s: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._folder.cleanup()


def parse_events(text: str) -> list[dict]:
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]", text[-200:]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(events: list[dict], index: int = 0) -> str:
    choices = [c for event in events for c in event["choices"] if c["index"] == index]
    return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices)


def until(true: Callable[[], object], seconds: float = 15) -> None:
    """Wait until `true` holds; a generous bound, since it is only reached when something is broken."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.02)


StartEngine = Callable[..., EngineProcess]


@pytest.fixture
def start_engine() -> Iterator[StartEngine]:
    """Start engines with given flags; they end with the test."""
    engines: list[EngineProcess] = []

    def start(*flags: str, **settings: object) -> EngineProcess:
        engines.append(EngineProcess(*flags, **settings))  # type: ignore[arg-type]
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    """One engine for a module's tests, quick and with everything allowed."""
    running = EngineProcess(
        *("--time-scale", "0.05", "--enable-prompt-tokens-details", "--enable-faults", "--enable-lora"),
        *("--max-model-len", "2048", "--num-gpu-blocks-override", "512", "--default-max-tokens", "40"),
        env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"},
    )
    yield running
    running.close()


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parent / "golden"
