"""The goodbye script, run as the pod runs it, against real HTTP servers."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from penstock.workers.decisions.adapters import drain_script
from penstock.workers.drain import read_load

from .conftest import StartEngine

PAGE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_running{{engine="1",model_name="m"}} 0.0
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 7.0
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="m"}} {finished}
vllm:request_success_created{{engine="0",model_name="m"}} 1.79e+09
"""


class FakeEngine:
    """A metrics page that a test changes."""

    def __init__(self) -> None:
        self.page = PAGE.format(running=0, waiting=0, finished=0)
        self.status = 200
        self.looks = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.looks += 1
                body = outer.page.encode()
                self.send_response(outer.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def say(self, running: float = 0, waiting: float = 0, finished: float = 0) -> None:
        self.page = PAGE.format(running=running, waiting=waiting, finished=finished)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.close()


class Drain:
    """The script as a process, from the text that goes into the ConfigMap."""

    def __init__(
        self, folder: Path, port: int, idle: float = 0.3, deadline: float = 20.0, sidecar: int | None = None
    ) -> None:
        file = folder / "drain.py"
        file.write_text(drain_script())
        flags = ["--port", str(port), "--idle-s", str(idle), "--deadline-s", str(deadline), "--period-s", "0.03"]
        flags += ["--sidecar-port", str(sidecar)] if sidecar else []
        # A proxy in the environment must not be asked for the local engine.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(file), *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        )

    def said(self) -> str:
        _, text = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, text
        return text


def test_an_idle_engine_is_let_go(fake: FakeEngine, tmp_path: Path):
    assert "idle for" in Drain(tmp_path, fake.port).said()


@pytest.mark.parametrize("work", [{"running": 1}, {"waiting": 2}])
def test_work_is_waited_for(fake: FakeEngine, tmp_path: Path, work: dict):
    fake.say(**work)
    drain = Drain(tmp_path, fake.port)
    wait_for_looks(fake, 15)
    assert drain.process.poll() is None
    fake.say()
    assert "idle for" in drain.said()


def test_work_between_two_looks_counts(fake: FakeEngine, tmp_path: Path):
    drain = Drain(tmp_path, fake.port, idle=3.0)
    for finished in range(1, 8):
        fake.say(finished=finished)
        wait_for_looks(fake, 8)
    assert drain.process.poll() is None, "seven requests ended within the seconds that were called idle"
    assert "idle for" in drain.said()


def test_the_deadline_ends_it(fake: FakeEngine, tmp_path: Path):
    fake.say(running=3)
    said = Drain(tmp_path, fake.port, deadline=0.5).said()
    assert "gave up" in said
    assert "3 requests" in said


@pytest.mark.parametrize(("page", "status"), [("", 200), ("vllm:num_requests_running 0\n", 200), ("busy", 503)])
def test_an_unreadable_page_counts_as_work(fake: FakeEngine, tmp_path: Path, page: str, status: int):
    fake.page, fake.status = page, status
    assert "gave up" in Drain(tmp_path, fake.port, idle=0.2, deadline=0.8).said()


def test_a_dead_engine_is_not_waited_for(fake: FakeEngine, tmp_path: Path):
    fake.close()
    assert "nobody listens" in Drain(tmp_path, fake.port, idle=60, deadline=60).said()


def test_a_deadline_that_is_over_is_heeded_at_once(tmp_path: Path):
    assert "gave up" in Drain(tmp_path, 1, idle=60, deadline=0).said()


@pytest.fixture
def sidecar() -> Iterator[FakeEngine]:
    """The sidecar's metrics page."""
    beside = FakeEngine()
    beside.page = "penstock_workers_sidecar_in_flight_requests 0.0\n"
    yield beside
    beside.close()


def test_a_request_that_only_the_sidecar_has_yet_is_waited_for(fake: FakeEngine, sidecar: FakeEngine, tmp_path: Path):
    """Its prompt is being computed elsewhere, for longer than an idle worker is waited for."""
    sidecar.page = "# TYPE penstock_workers_sidecar_in_flight_requests gauge\n" + sidecar.page.replace("0.0", "1.0")
    drain = Drain(tmp_path, fake.port, sidecar=sidecar.port)
    wait_for_looks(fake, 25)
    assert drain.process.poll() is None
    sidecar.page = sidecar.page.replace("1.0", "0.0")
    assert "idle for" in drain.said()


@pytest.mark.parametrize(("page", "status"), [("", 200), ("busy", 503)])
def test_a_sidecar_that_cannot_be_read_counts_as_work(
    fake: FakeEngine, sidecar: FakeEngine, tmp_path: Path, page: str, status: int
):
    sidecar.page, sidecar.status = page, status
    said = Drain(tmp_path, fake.port, idle=0.2, deadline=0.8, sidecar=sidecar.port).said()
    assert "gave up" in said and "sidecar" in said


def test_a_sidecar_that_is_gone_is_not_waited_for(fake: FakeEngine, sidecar: FakeEngine, tmp_path: Path):
    sidecar.close()
    assert "idle for" in Drain(tmp_path, fake.port, sidecar=sidecar.port).said()


def test_series_without_labels_are_read_as_well():
    page = "vllm:num_requests_running 1\nvllm:num_requests_waiting 2\nvllm:request_success_total 5\n"
    assert read_load(page) == (3.0, 5.0)
    assert read_load(PAGE.format(running=1, waiting=2, finished=4)) == (3.0, 4.0)
    assert read_load("vllm:num_requests_waiting 2\n") is None


def test_it_understands_the_engine_it_is_made_for(start_engine: StartEngine, tmp_path: Path):
    engine = start_engine("--time-scale", "1")
    with engine.connect() as client:
        body = b'{"prompt":"a b","max_tokens":300,"stream":true}'
        client.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert client.recv(12) == b"HTTP/1.1 200"
        drain = Drain(tmp_path, engine.port, idle=0.1)
        data = b""
        while b"[DONE]" not in data:
            assert drain.process.poll() is None, "the drain ended before the stream did"
            data += client.recv(65536)
    assert "idle for" in drain.said()


def wait_for_looks(fake: FakeEngine, more: int) -> None:
    goal, deadline = fake.looks + more, time.monotonic() + 20
    while fake.looks < goal:
        assert time.monotonic() < deadline
        time.sleep(0.01)
