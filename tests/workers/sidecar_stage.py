"""A sidecar as a real process, and prefill workers that misbehave on purpose."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

import httpx


class SidecarProcess:
    """One running sidecar: its addresses, its log, its end."""

    def __init__(self, engine_port: int, *flags: str) -> None:
        command = [sys.executable, "-m", "penstock.workers.sidecar", "--host", "127.0.0.1", "--port", "0"]
        command += ["--metrics-port", "0", "--engine-port", str(engine_port), *flags]
        # Its own directory and no inherited settings: a test must not depend on where it runs.
        self._folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, cwd=self._folder.name, env={"PATH": os.environ["PATH"]}, text=True
        )
        self.log: list[str] = []
        self._ready = threading.Event()
        self._ports = (0, 0)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"on port (\d+), metrics on (\d+)", line)
            if found:
                self._ports = int(found[1]), int(found[2])
                self._ready.set()
        self._ready.set()

    @property
    def port(self) -> int:
        assert self._ready.wait(30), "the sidecar did not start within 30 s"
        assert self._ports[0], "".join(self.log)
        return self._ports[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: object, prefiller: str = "", path: str = "/v1/completions", **headers: str) -> httpx.Response:
        if prefiller:
            headers["x-prefiller-host-port"] = prefiller
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a series of ours over the labels given."""
        assert self.port
        total = 0.0
        for line in httpx.get(f"http://127.0.0.1:{self._ports[1]}/metrics", timeout=30).text.splitlines():
            named = line.startswith((f"penstock_workers_sidecar_{name}{{", f"penstock_workers_sidecar_{name} "))
            if named and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def healthy(self) -> int:
        assert self.port
        return httpx.get(f"http://127.0.0.1:{self._ports[1]}/healthz", timeout=30).status_code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        self._folder.cleanup()
