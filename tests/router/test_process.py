"""The router as a process: flags, an orderly end, what its ports say."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import httpx
import pytest
from fake_worker import Call, FakeWorker
from penstock.router.shell.discovery.static import parse_workers
from penstock.router.shell.settings import Settings, flag_name, parse_settings, variable_name

ROOT = Path(__file__).parents[2]
BODY = b'{"model":"m","prompt":"x","stream":true}'


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass
class Process:
    """A running router."""

    process: asyncio.subprocess.Process
    base: str
    health: str
    metrics: str


@asynccontextmanager
async def process(*flags: str) -> AsyncIterator[Process]:
    """A router process that is ready."""
    ports = [free_port() for _ in range(3)]
    chosen = [f"--port={ports[0]}", f"--health-port={ports[1]}", f"--metrics-port={ports[2]}", "--host=127.0.0.1"]
    command = [sys.executable, "-m", "penstock.router", *chosen, *flags]
    running = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    base, health, metrics = (f"http://127.0.0.1:{p}" for p in ports)
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            while True:
                try:
                    if (await client.get(f"{health}/readyz")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        yield Process(running, base, health, metrics)
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def test_sigterm_turns_unready_finishes_streams_and_exits_zero() -> None:
    go_on = asyncio.Event()

    async def waits(call: Call) -> None:
        await call.start_stream()
        await call.event(b"1")
        await go_on.wait()
        await call.event(b"2")
        await call.end_stream()

    async with (
        FakeWorker(waits) as w,
        process(f"--workers=m=http://127.0.0.1:{w.port}", "--drain-lag=0.5") as p,
        httpx.AsyncClient() as client,
        client.stream("POST", f"{p.base}/v1/completions", content=BODY) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "data: 1"
        p.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await client.get(f"{p.health}/readyz")).status_code == 200:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        assert (await client.get(f"{p.health}/readyz")).text == "draining\n"
        assert (await client.get(f"{p.health}/healthz")).status_code == 200
        # Within the lag it still serves those who have not heard yet.
        assert (await client.get(f"{p.base}/v1/models")).status_code == 200
        await asyncio.sleep(0.8)
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{p.base}/v1/models")
        go_on.set()
        assert [line async for line in lines if line] == ["data: 2"]
        assert await asyncio.wait_for(p.process.wait(), 10) == 0


async def test_metrics_count_what_happened() -> None:
    async with (
        FakeWorker() as w,
        process(f"--workers=m=http://127.0.0.1:{w.port}", "--policy=RoundRobin") as p,
        httpx.AsyncClient() as client,
    ):
        for body in (BODY, BODY, b"{", b'{"model":"x"}'):
            await client.post(f"{p.base}/v1/completions", content=body)
        page = (await client.get(f"{p.metrics}/metrics")).text
        for line in (
            'penstock_router_requests_total{code="200",model="m",policy="RoundRobin"} 2.0',
            'penstock_router_requests_total{code="400",model="",policy=""} 1.0',
            'penstock_router_requests_total{code="404",model="",policy=""} 1.0',
            'penstock_router_time_to_first_byte_seconds_count{model="m"} 2.0',
            'penstock_router_picks_total{policy="RoundRobin",reason="OnlyCandidate"} 2.0',
        ):
            assert line in page.splitlines()


async def test_a_port_in_use_is_a_sentence_and_exit_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [f"--port={taken.getsockname()[1]}", "--host=127.0.0.1", "--health-port=0", "--metrics-port=0"]
        command = [sys.executable, "-m", "penstock.router", *flags, "--workers=m=http://127.0.0.1:1"]
        running = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, told = await asyncio.wait_for(running.communicate(), 20)
        assert running.returncode == 1
        assert told.decode().splitlines()[-1].startswith("penstock-router: ")


def test_environment_then_flag() -> None:
    environment = {"PENSTOCK_MAX_HEADERS": "7", "PENSTOCK_ACCESS_LOG": "true", "PENSTOCK_POLICY": "RoundRobin"}
    chosen = parse_settings(["--max-headers", "9"], environment)
    assert (chosen.max_headers, chosen.access_log, chosen.policy) == (9, True, "RoundRobin")
    assert parse_settings(["--no-access-log"], environment).access_log is False


@pytest.mark.parametrize(
    ("flags", "environment", "told"),
    [
        (["--policy", "Psychic"], {}, "known policies are RoundRobin, LeastLoaded"),
        (["--attempts", "0"], {}, "--attempts must be at least 1"),
        (["--drain-lag", "-1"], {}, "--drain-lag must not be negative"),
        ([], {"PENSTOCK_ACCESS_LOG": "maybe"}, "PENSTOCK_ACCESS_LOG must be true or false"),
        ([], {"PENSTOCK_PORT": "http"}, "invalid int value: 'http'"),
        (["--log-level", "loud"], {}, "--log-level must be"),
    ],
)
def test_bad_settings_are_refused(
    flags: list[str], environment: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_settings(flags, environment)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("entry", ["m", "=http://a:1", "m=a:1", "m=https://a:1", "m=http://a:99999", "m=http://a/x"])
def test_bad_workers_are_shown(entry: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(entry))):
        parse_workers(entry)


def test_the_reference_page_lists_every_flag_with_its_default() -> None:
    page = (ROOT / "docs" / "reference" / "gateway.md").read_text()
    for option in fields(Settings):
        default = str(option.default).lower() if isinstance(option.default, bool) else str(option.default)
        shown = f"`{default}`" if default else "empty"
        assert f"| `{flag_name(option.name)}` | {shown} | {option.metadata['help']} |" in page, variable_name(
            option.name
        )


def test_a_variable_of_the_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PENSTOCK_PORT", "8123")
    assert parse_settings([]).port == 8123
