"""Processes: reaped, restarted, held, asked about; and never mistaken for another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from penstock.box import init as init_module
from penstock.box import process as process_module
from penstock.box.control import ask, serve_control
from penstock.box.errors import BoxError
from penstock.box.paths import BoxPaths
from penstock.box.pidfile import ProcessIdentity, end_box
from penstock.box.process import Command, SupervisedProcess
from penstock.box.settings import ProcessOrder, Settings
from penstock.box.supervisor import Supervisor, environment

INIT = [sys.executable, "-I", "-S", str(init_module.__file__)]


def _command(folder: Path, *arguments: str) -> Command:
    return Command("thing", "component", arguments, folder / "thing.log", {"PATH": os.environ["PATH"]})


async def _until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(0.02)


def test_init_passes_on_the_exit_status() -> None:
    assert subprocess.run([*INIT, "sh", "-c", "exit 7"], check=False).returncode == 7
    assert subprocess.run([*INIT, "sh", "-c", "kill -9 $$"], check=False).returncode == 128 + 9


def test_init_passes_on_signals() -> None:
    with subprocess.Popen(
        [*INIT, "sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"], stdout=-1
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        run.terminate()
        assert run.wait(20) == 5


async def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    process = SupervisedProcess(_command(tmp_path, "sh", "-c", "echo once; exit 3"))
    task = asyncio.create_task(process.run())
    await _until(lambda: process.restarts >= 2)
    task.cancel()
    assert (tmp_path / "thing.log").read_text().startswith("once\nonce\n")


async def test_a_process_held_down_stays_down_until_it_is_released(tmp_path: Path) -> None:
    process = SupervisedProcess(_command(tmp_path, "sleep", "60"))
    task = asyncio.create_task(process.run())
    await _until(lambda: process.describe()["state"] == "Running")
    first = process.describe()["pid"]
    assert await process.kill(hold=True)
    assert process.describe()["state"] == "Held"
    assert not await process.kill(hold=True)
    await asyncio.sleep(0.5)
    assert process.describe()["state"] == "Held"
    process.release()
    await _until(lambda: process.describe()["state"] == "Running")
    assert process.describe()["pid"] != first
    await process.kill(hold=True)
    task.cancel()


async def test_a_killed_process_that_is_wanted_comes_back(tmp_path: Path) -> None:
    process = SupervisedProcess(_command(tmp_path, "sleep", "60"))
    task = asyncio.create_task(process.run())
    await _until(lambda: process.describe()["state"] == "Running")
    await process.kill(hold=False)
    await _until(lambda: process.restarts == 1 and process.describe()["state"] == "Running")
    await process.kill(hold=True)
    task.cancel()


def test_a_full_log_is_cut_and_its_past_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_LOG_BYTES", 10)
    process = SupervisedProcess(_command(tmp_path, "true"))
    process.trim_log()
    log = tmp_path / "thing.log"
    log.write_text("0123456789A")
    process.trim_log()
    assert (log.read_text(), (tmp_path / "thing.log.1").read_text()) == ("", "0123456789A")


async def test_the_control_channel_works_in_a_folder_with_a_very_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()

    async def handle(request: dict[str, object]) -> dict[str, object]:
        if request["verb"] != "list":
            raise BoxError("no such verb")
        return {"heard": request}

    server = await serve_control(folder / "control.sock", handle)
    answer = await asyncio.to_thread(ask, folder / "control.sock", {"verb": "list"})
    assert answer == {"heard": {"verb": "list"}}
    with pytest.raises(BoxError, match="no such verb"):
        await asyncio.to_thread(ask, folder / "control.sock", {"verb": "explode"})
    assert (folder / "control.sock").stat().st_mode & 0o777 == 0o600
    server.close()
    (folder / "control.sock").unlink()
    with pytest.raises(BoxError, match="does not answer"):
        await asyncio.to_thread(ask, folder / "control.sock", {"verb": "list"}, 1.0)


def _settings(orders: list[ProcessOrder]) -> Settings:
    return Settings("b", "v1", "cpu=1x0", ["cpu-0"], ["10.89.0.10"], orders, {"kubectl": "/k"}, 1, 2)


def test_the_supervisors_orders_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = _settings([ProcessOrder("etcd", "component", ["etcd", "--x"], [3, 4])])
    settings.write(tmp_path / "box.json")
    assert Settings.read(tmp_path / "box.json") == settings


async def test_the_supervisor_obeys_and_refuses(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    orders = [
        ProcessOrder("etcd", "component", ["sleep", "60"], []),
        ProcessOrder("node-n", "node", ["sleep", "60"], []),
    ]
    supervisor = Supervisor(BoxPaths(tmp_path), _settings(orders))
    task = asyncio.create_task(supervisor.run())
    socket = tmp_path / "control.sock"

    async def states() -> dict[str, str]:
        listed = await asyncio.to_thread(ask, socket, {"verb": "list"})
        return {process["name"]: process["state"] for process in listed["processes"]}

    async def reach(name: str, state: str) -> None:
        async with asyncio.timeout(20):
            while (await states())[name] != state:  # noqa: ASYNC110 - another process's state has no event
                await asyncio.sleep(0.02)

    await _until(socket.exists)
    await reach("etcd", "Running")
    await reach("node-n", "Running")
    await asyncio.to_thread(ask, socket, {"verb": "kill", "node": "n"})
    assert (await states())["node-n"] == "Held"
    await asyncio.to_thread(ask, socket, {"verb": "start", "node": "n"})
    await reach("node-n", "Running")
    for request, said in (
        ({"verb": "kill", "node": "m"}, "there are n"),
        ({"verb": "kill"}, "there are etcd"),
        ({"verb": "dance"}, "unknown verb"),
    ):
        with pytest.raises(BoxError, match=said):
            await asyncio.to_thread(ask, socket, request)
    listed = await asyncio.to_thread(ask, socket, {"verb": "list"})
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 20)
    # The pid namespace would end them with us; here there is none.
    for process in listed["processes"]:
        os.kill(process["pid"], signal.SIGKILL)


def test_processes_of_a_box_know_nothing_of_the_hosts_proxies() -> None:
    env = environment(BoxPaths(Path("/s")), {"HTTPS_PROXY": "x", "PATH": "/p", "AWS_SECRET_ACCESS_KEY": "y"})
    assert env == {"PATH": "/p", "HOME": "/s"}


def test_a_process_is_known_by_its_start_too(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as run:
        identity = ProcessIdentity.of(run.pid)
        identity.write(tmp_path / "pid")
        assert ProcessIdentity.read(tmp_path / "pid") == identity
        assert identity.alive()
        assert not ProcessIdentity(run.pid, identity.started + 1).alive()
        # Ending another process's namesake does nothing.
        end_box(ProcessIdentity(run.pid, identity.started + 1))
        assert run.poll() is None
        end_box(identity)
        assert not identity.alive()


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"pid": "x"}), json.dumps({"pid": 1})])
def test_a_damaged_pid_file_names_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    assert ProcessIdentity.read(tmp_path / "pid") is None
