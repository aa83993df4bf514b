"""Drain one engine before SIGTERM: wait until it has had no work for a while, or until time is up.

Run as a preStop hook inside the engine's own image, so: one file, standard library only, any Python from 3.8 on.
The router stops picking a worker when it sees the pod's deletion, but a pick made a moment earlier may still be on its
way and a finished prompt's KV blocks may still be on lease; hence "idle for idle-s", not "idle". It always exits 0:
a failing hook would only add noise, since Kubernetes goes on to SIGTERM either way.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from pathlib import Path

RUNNING = ("vllm:num_requests_running", "vllm:num_requests_waiting")
FINISHED = "vllm:request_success_total"
SIDECAR = "penstock_workers_sidecar_in_flight_requests"
ENGINE_MARKS = (b"vllm", b"penstock.workers.simulated")
MAX_BODY = 8 << 20
REFUSALS = 3  # polls in a row that find nobody listening: the engine is gone, and with it the work


def read_load(text: str) -> tuple[float, float] | None:
    """(running + waiting, finished so far) over all engine ranks; None where the page lacks the gauges.

    Finished requests are counted because one that came and went between two polls is work too.
    """
    present: set[str] = set()
    busy = finished = 0.0
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name not in RUNNING and name != FINISHED:
            name, _, rest = line.partition(" ")
        try:
            value = float(rest.rpartition(" ")[2])
        except ValueError:
            continue
        if name in RUNNING:
            present.add(name)
            busy += value
        elif name == FINISHED:
            finished += value
    return (busy, finished) if len(present) == len(RUNNING) else None


def read_sidecar(text: str) -> float | None:
    """Requests the P/D sidecar has under way, also where the prompt is still computed elsewhere; None: unsaid."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == SIDECAR:
            try:
                return float(value)
            except ValueError:
                return None
    return None


def sidecar_load(port: int | None, timeout_s: float) -> float | None:
    """As `read_sidecar` of the sidecar on that port; 0 where there is none, or it is gone and its requests with it."""
    if port is None:
        return 0.0
    try:
        return read_sidecar(fetch(port, timeout_s))
    except ConnectionRefusedError:
        return 0.0
    except (OSError, http.client.HTTPException):
        return None


def fetch(port: int, timeout_s: float) -> str:
    """The engine's metrics page; raises OSError or HTTPException. Proxies in the environment are not asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read(MAX_BODY).decode("utf-8", "replace")
        if response.status != 200:
            raise http.client.HTTPException(f"/metrics answered {response.status}")
        return body
    finally:
        connection.close()


def log(message: str) -> None:
    """Say it on stderr and, where process 1 is the engine, in the engine's own log, which `kubectl logs` shows."""
    line = f"drain: {message}\n"
    sys.stderr.write(line)
    try:
        command = Path("/proc/1/cmdline").read_bytes()
        if any(mark in command for mark in ENGINE_MARKS):
            Path("/proc/1/fd/2").write_text(line)
    except OSError:
        pass


class Watch:
    """What has been seen so far, and when the engine was last known to have work."""

    def __init__(self, started: float) -> None:
        self.busy_until = started  # idle time is counted from here
        self.finished: float | None = None
        self.refused = 0
        self.last = "nothing seen yet"

    def saw(self, load: tuple[float, float] | None, now: float, beside: float | None = 0.0) -> None:
        """Note one page's load; an unreadable page counts as work, since missing data is not zero.

        `beside`: requests in the sidecar, which the engine may not have seen yet; None counts as work too.
        """
        self.refused = 0
        if load is None or beside is None:
            whose = "metrics page" if load is None else "sidecar's metrics page"
            self.busy_until, self.last = now, f"the {whose} lacks the request gauges"
            return
        busy, finished = load
        busy = max(busy, beside)
        if busy > 0 or (self.finished is not None and finished != self.finished):
            self.busy_until = now
        self.finished = finished
        self.last = f"{busy:.0f} requests running or waiting"

    def failed(self, error: Exception, now: float) -> None:
        """Note that the page could not be read."""
        self.busy_until, self.last = now, f"cannot read the metrics page ({error})"
        self.refused = self.refused + 1 if isinstance(error, ConnectionRefusedError) else 0


def drain(port: int, idle_s: float, deadline_s: float, period_s: float = 0.5, sidecar_port: int | None = None) -> str:
    """Wait; returns the sentence that says why waiting ended."""
    started = time.monotonic()
    watch = Watch(started)
    while True:
        try:
            timeout_s = max(1.0, period_s)
            beside = sidecar_load(sidecar_port, timeout_s)
            watch.saw(read_load(fetch(port, timeout_s)), time.monotonic(), beside)
        except (OSError, http.client.HTTPException) as error:
            watch.failed(error, time.monotonic())
        now = time.monotonic()
        if watch.refused >= REFUSALS:
            return f"nobody listens on port {port} any more after {now - started:.1f} s"
        if now - watch.busy_until >= idle_s:
            return f"idle for {now - watch.busy_until:.1f} s, after {now - started:.1f} s in all"
        if now - started >= deadline_s:
            return f"gave up after {now - started:.1f} s: {watch.last}"
        time.sleep(max(0.0, min(period_s, started + deadline_s - now)))


def main(argv: list[str] | None = None) -> int:
    """Parse, drain, say why; the exit status is 0 whatever happened."""
    parser = argparse.ArgumentParser(description="Wait until the local engine has no work.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--idle-s", type=float, default=5.0, help="seconds without work that count as idle")
    parser.add_argument("--deadline-s", type=float, default=90.0, help="seconds after which to stop waiting")
    parser.add_argument("--period-s", type=float, default=0.5, help="seconds between two looks")
    parser.add_argument("--sidecar-port", type=int, help="metrics port of the P/D sidecar; left out: there is none")
    options = parser.parse_args(argv)
    try:
        log(f"waiting for {options.idle_s:.1f} s without work, at most {options.deadline_s:.1f} s")
        log(drain(options.port, options.idle_s, options.deadline_s, options.period_s, options.sidecar_port))
    except Exception as error:  # the hook must never fail a goodbye
        log(f"stopped: {error!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
