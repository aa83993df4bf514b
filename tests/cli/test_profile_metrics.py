"""`penstock profile fit --metrics`: pages over real HTTP or from a file in, an object that the API takes out."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from fitting_stage import TRUE, Asked, scraped, traffic
from penstock.api import PerformanceProfile
from penstock.cli.main import app
from penstock.cli.profile_scrape import Scraping, metrics_url, next_due, scrape
from penstock.cli.profile_scrapes_file import line_of, read_scrapes
from penstock.core.models import LatencyProfile, ProfileSource
from penstock.core.models.fitting_pages import Scrape
from typer.testing import CliRunner

ACCELERATOR = ("--accelerator", "a100-80g")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["profile", "fit", *ACCELERATOR, *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --save would have written in five minutes."""
    file = tmp_path_factory.mktemp("scrapes") / "scrapes.jsonl"
    pages = scraped(traffic((0.3, 0.8, 1.6, 2.4, 3.0), 60.0), seconds=300.0)
    file.write_text("".join(map(line_of, pages)))
    return file


@contextmanager
def served(answer: Callable[[int], tuple[int, str, float]]) -> Iterator[str]:
    """A server whose answer number n is (status, page, seconds it takes)."""
    count = iter(range(10**6))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, page, seconds = answer(next(count))
            time.sleep(seconds)
            if status == 0:
                self.close_connection = True
                return
            with suppress(OSError):  # Who waited has gone.
                self.send_response(status)
                self.end_headers()
                self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


PAGE = scraped([Asked(0.1, 100, 20)], seconds=2.0)[-1].page


# From a file.


def test_the_object_can_be_applied_and_says_its_error(saved: Path) -> None:
    code, out, err = run("--metrics", str(saved), "--tensor", "2", "--max-num-batched-tokens", "1024")
    assert code == 0, err
    made = PerformanceProfile.model_validate(yaml.safe_load(out))
    assert (made.metadata.name, made.spec.model_name) == ("tiny-a100-80g-tp2", "tiny")
    assert made.spec.source == "Online" and made.spec.kv_capacity_tokens == 8192 * 16
    assert "mean error on intervals held out: prefill" in made.spec.provenance
    profile = LatencyProfile(made.spec.prefill.values, made.spec.decode.values, ProfileSource.ONLINE, "")
    assert profile.prefill_ms(800) == pytest.approx(TRUE.prefill_ms(800), rel=0.02)
    assert profile.decode_ms(5, 4000) == pytest.approx(TRUE.decode_ms(5, 4000), rel=0.02)
    for said in ("profile: decode: off by", "R2 0.9", "per squared token", "seen: batches of 1.0", "x nothing ran"):
        assert said in err


def test_a_given_model_is_taken_and_the_difference_told(saved: Path) -> None:
    code, out, err = run("--metrics", str(saved), "--model", "org/other", "--provenance", "me, today")
    assert code == 0 and "the workers serve tiny, the profile is for org/other" in err
    spec = yaml.safe_load(out)["spec"]
    assert spec["modelName"] == "org/other" and spec["provenance"].startswith("me, today; mean error")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("what\n", "line 1 is no scrape (Invalid JSON"),
        ('{"at": 1, "page": ""}\n{"at": "x", "page": ""}\n', "line 2 is no scrape (at: "),
        ('{"at": 1}\n', "line 1 is no scrape (page: Field required)"),
        ('{"at": NaN, "page": ""}\n', "line 1 is no scrape"),
        ('{"at": 1, "page": "<html>"}\n', "none of 1 answers was a page of vLLM's metrics"),
    ],
)
def test_what_are_no_scrapes_is_said(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(content)
    code, out, err = run("--metrics", str(file))
    assert code == 2 and said in err and not out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of --outcomes"),
        (("--metrics", "none.jsonl"), "none.jsonl: cannot be read: No such file"),
        (("--metrics", "none.jsonl", "--outcomes", "none.jsonl"), "give one of --outcomes"),
        (("--outcomes", "none.jsonl"), "does not say which model was served; give --model"),
        (("--metrics", "ftp://there"), "'ftp://there' is no address"),
        (("--metrics", "http://there:port"), "is no address"),
        (("--metrics", "http://there", "--interval", "1ms"), "give 100ms to 10m"),
        (("--metrics", "http://there", "--for", "1s"), "fewer than three scrapes"),
        (("--metrics", "http://there", "--for", "100h", "--interval", "100ms"), "more than 100000; scrape less often"),
        (("--metrics", "http://there", "--timeout", "0s"), "a time-out of 0 s"),
        (("--metrics", "none.jsonl", "--save", "x"), "no source is a URL; leave it out"),
        (("--metrics", "http://there", "--save", "/none/at/all"), "its folder does not exist"),
        (("--metrics", "there:8000"), "to scrape a worker there write http://there:8000"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_fetched(arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and said in err and not out


def test_a_file_that_is_read_is_not_written_over(saved: Path) -> None:
    before = saved.read_bytes()
    code, out, err = run("--metrics", str(saved), "--metrics", "http://there", "--save", str(saved))
    assert code == 2 and "--save would overwrite" in err and not out
    assert saved.read_bytes() == before


def test_files_that_name_no_worker_are_of_several(tmp_path: Path) -> None:
    page = json.dumps(PAGE)
    for name in ("one", "two"):
        (tmp_path / name).write_text("".join(f'{{"at": {at}, "page": {page}}}\n' for at in (1, 2)))
    found = [scrape.worker for name in ("one", "two") for scrape in read_scrapes(tmp_path / name)]
    assert found == [str(tmp_path / "one")] * 2 + [str(tmp_path / "two")] * 2


def test_addresses_are_of_the_metrics_page() -> None:
    assert metrics_url("http://w:8000") == metrics_url("http://w:8000/") == "http://w:8000/metrics"
    assert metrics_url("https://gate/pods/w/proxy/metrics?x=1") == "https://gate/pods/w/proxy/metrics?x=1"


# Over HTTP.


async def gathered(plan: Scraping, enough: Callable[[], bool]) -> list[Scrape]:
    """What is kept until it is enough; how long that takes is the machine's affair."""
    stop, kept = asyncio.Event(), list[Scrape]()

    async def watch() -> None:
        while not enough():  # noqa: ASYNC110  # It asks of what no event tells.
            await asyncio.sleep(0.05)
        stop.set()

    watcher = asyncio.create_task(watch())
    await scrape(plan, stop, kept.append)
    watcher.cancel()
    return kept


async def test_a_worker_that_dies_or_talks_nonsense_costs_only_its_own_scrapes() -> None:
    with (
        served(lambda n: (200, PAGE, 0.0)) as well,
        served(lambda n: (200, PAGE, 0.0) if n < 3 else (0, "", 0.0)) as dies,
        served(lambda n: (200, "<html>login</html>", 0.0)) as garbage,
        served(lambda n: (503, "", 0.0)) as busy,
    ):
        urls = [metrics_url(url) for url in (well, dies, garbage, busy)]
        plan = Scraping(urls, interval_s=0.1, duration_s=200.0, timeout_s=60.0)
        kept = await gathered(
            plan, lambda: plan.tallies[0].answered >= 5 and all(one.failed for one in plan.tallies[1:])
        )
    good, dead, nonsense, refused = plan.tallies
    assert good.failed == 0 and dead.answered == 3 and "disconnected" in dead.problem
    assert nonsense.answered == refused.answered == 0
    assert "has no vllm: series" in nonsense.problem and refused.problem == "HTTP 503"
    assert kept == plan.scrapes and {one.worker for one in kept} == {good.url, dead.url}
    times = [one.at_s for one in kept if one.worker == good.url]
    assert times == sorted(times) and abs(times[-1] - time.time()) < 600.0


async def test_a_slow_worker_and_an_endless_page_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda n: (200, PAGE, 2.0)) as slow:
        plan = Scraping([metrics_url(slow)], interval_s=0.1, duration_s=200.0, timeout_s=0.2)
        assert not await gathered(plan, lambda: False)
    assert plan.hopeless and plan.tallies[0].problem == "no answer within 0.2 s"
    monkeypatch.setattr("penstock.cli.profile_scrape.MOST_BYTES", 1 << 20)
    with served(lambda n: (200, "x" * (3 << 20), 0.0)) as huge:
        plan = Scraping([metrics_url(huge)], interval_s=0.1, duration_s=200.0, timeout_s=60.0)
        assert not await gathered(plan, lambda: False)
    assert plan.hopeless and plan.tallies[0].problem == "the answer is larger than 1 MiB"


def test_who_does_not_answer_is_asked_less_and_less_often() -> None:
    pauses = [next_due(10.0, 10.0, 0.1, failures) - 10.0 for failures in range(1, 12)]
    for count, pause in enumerate(pauses, start=1):
        assert 0.8 <= pause / min(0.1 * 2**count, 15.0) <= 1.2
    assert next_due(10.0, 10.05, 0.1, 0) == pytest.approx(10.1)
    assert next_due(10.0, 10.35, 0.1, 0) == pytest.approx(10.4), "intervals that have passed are not made up for"
    assert next_due(10.0, 10.0, 600.0, 3) <= 10.0 + 720.0


def test_where_nobody_answers_it_ends_early() -> None:
    with served(lambda n: (404, "", 0.0)) as url:
        code, out, err = run("--metrics", url, "--interval", "100ms", "--for", "10m")
    assert code == 2 and not out
    assert "3 failed, the last with: HTTP 404" in err and "no worker answered" in err


@pytest.mark.parametrize("keeps", [False, True])
def test_what_was_scraped_in_vain_need_not_be_lost(tmp_path: Path, keeps: bool) -> None:
    kept = tmp_path / "kept.jsonl"
    with served(lambda n: (200, PAGE, 0.0)) as url:
        save = ("--save", str(kept)) if keeps else ()
        code, out, err = run("--metrics", url, "--interval", "200ms", "--for", "1s", *save)
    assert code == 2 and not out and "x nothing ran" in err
    assert (f"the scrapes are in {kept}" if keeps else "with --save the scrapes would be kept") in err


def test_an_interrupt_fits_what_is_there(saved: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    with served(lambda n: (200, PAGE, 0.0)) as url:
        command = [sys.executable, "-m", "penstock.cli.main", "profile", "fit", *ACCELERATOR, "--metrics", str(saved)]
        command += ["--metrics", url, "--interval", "200ms", "--for", "10m", "--save", str(kept)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60.0
            while time.monotonic() < deadline and not (kept.exists() and len(kept.read_text().splitlines()) >= 3):
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(r"stopped after \d+ s; fitting what was scraped until then", err)
    assert yaml.safe_load(out)["kind"] == "PerformanceProfile"
    assert [json.loads(line)["worker"] for line in kept.read_text().splitlines()].count(f"{url}/metrics") >= 3


def test_a_running_engine_is_fitted_and_its_saved_scrapes_give_the_same(tmp_path: Path) -> None:
    """A simulated engine as a process, five times as fast as its profile, with traffic that rises."""
    scale, scrapes = 0.2, tmp_path / "scrapes.jsonl"
    flags = ["--profile", json.dumps(TRUE.to_dict()), "--time-scale", str(scale), "--max-model-len", "8192"]
    flags += ["--num-gpu-blocks-override", "8192", "--block-size", "16", "--served-model-name", "tiny"]
    command = [sys.executable, "-m", "penstock.workers.simulated", "--host", "127.0.0.1", "--port", "0", *flags]
    settings = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings, cwd=tmp_path) as engine:
        try:
            assert engine.stderr is not None
            found = next(m for line in engine.stderr if (m := re.search(r"serving .* on port (\d+)", line)))
            url = f"http://127.0.0.1:{found[1]}"
            with ThreadPoolExecutor(64) as pool:
                for one in traffic((0.5, 1.5, 2.5), 50.0, seed=4):
                    pool.submit(_ask, url, one, time.monotonic() + one.at * scale)
                code, out, err = run(
                    "--metrics", url, "--interval", "200ms", "--for", "30s", "--save", str(scrapes)
                )  # fmt: skip
        finally:
            engine.kill()
    if "are needed to judge" in err:
        pytest.skip("the machine was too busy for its engine to be seen often enough")
    assert code == 0, err
    made = PerformanceProfile.model_validate(yaml.safe_load(out))
    profile = LatencyProfile(made.spec.prefill.values, made.spec.decode.values, ProfileSource.ONLINE, "")
    # A machine that starves the engine makes it slower than its profile; what is far off is an error of ours.
    assert profile.decode_ms(2, 1600) == pytest.approx(scale * TRUE.decode_ms(2, 1600), rel=0.5)
    assert profile.prefill_ms(700) == pytest.approx(scale * TRUE.prefill_ms(700), rel=0.5)
    again = run("--metrics", str(scrapes))
    assert again[:2] == (0, out)


def _ask(url: str, one: Asked, at: float) -> None:
    time.sleep(max(at - time.monotonic(), 0.0))
    body = {"model": "tiny", "prompt": list(range(1000, 1000 + one.prompt)), "max_tokens": one.output}
    # Every prompt is its own: what another has cached would not be computed.
    body["prompt"] = [(7 * token + int(1e6 * one.at)) % 30_000 + 300 for token in body["prompt"]]
    httpx.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}, timeout=60).raise_for_status()
