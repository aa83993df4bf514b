"""After the cluster stands: is the example available, and what does the gateway stream?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from penstock.box import install as install_module
from penstock.box.errors import BoxError
from penstock.box.install import Deployment, availability, find_example, pods_in_words, stream_tokens
from penstock.box.lifecycle import Box
from penstock.box.paths import BoxPaths
from penstock.box.settings import Settings

DEPLOYMENT = Deployment("default", "m", "org/m")


def _condition(kind: str, status: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "Because", "message": message}


def test_a_deployment_is_available_when_its_condition_says_so() -> None:
    ready = {"status": {"conditions": [_condition("Available", "True", "2 of 2 workers")]}}
    assert availability(ready) == (True, "2 of 2 workers")


def test_until_then_the_user_hears_what_is_wrong() -> None:
    conditions = [_condition("Accepted", "False", "no such class"), _condition("Degraded", "False", "fine")]
    assert availability({"status": {"conditions": conditions}}) == (False, "Accepted: no such class")
    assert availability({}) == (False, "the operator has not reported yet")


def test_while_helm_waits_the_user_hears_for_what() -> None:
    ready = {"conditions": [_condition("Ready", "True")]}
    crashed = {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}
    pending = {"conditions": [_condition("PodScheduled", "False", "0/1 nodes are available")]}
    pods = [
        {"metadata": {"name": name}, "status": status}
        for name, status in (("a", ready), ("b", crashed), ("c", pending), ("d", {}), ("e", {"phase": "Succeeded"}))
    ]
    said = "2 of 5 pods ready; b CrashLoopBackOff; c 0/1 nodes are available; d starting"
    assert pods_in_words(pods) == said


def test_an_example_is_a_path_or_one_that_we_ship(tmp_path: Path) -> None:
    assert find_example(str(tmp_path)) == tmp_path
    assert find_example("quickstart").is_dir()
    with pytest.raises(BoxError, match="quickstart"):
        find_example("nothing-like-this")


class _Gateway(BaseHTTPRequestHandler):
    answers: list[tuple[int, bytes]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def gateway() -> Iterator[tuple[Box, list[tuple[int, bytes]]]]:
    """A box whose gateway gives the answers in the list, one for each request."""
    answers: list[tuple[int, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Gateway,), {"answers": answers}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = Settings("b", "v", "cpu=1x0", [], [], [], {}, 0, server.server_address[1])
    yield Box(BoxPaths(Path("/none")), settings), answers
    server.shutdown()
    server.server_close()


STREAM = b'data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": " b"}]}\n\ndata: [DONE]\n\n'


def test_tokens_come_piece_by_piece(gateway: tuple[Box, list[tuple[int, bytes]]]) -> None:
    box, answers = gateway
    answers.append((200, STREAM))
    assert list(stream_tokens(box, DEPLOYMENT)) == ["a", " b"]


def test_a_gateway_that_does_not_know_the_model_yet_is_asked_again(
    gateway: tuple[Box, list[tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_module, "_RETRY_SECONDS", 0.01)
    box, answers = gateway
    answers += [(404, b"no such model"), (200, b"data: [DONE]\n\n"), (200, STREAM)]
    assert "".join(stream_tokens(box, DEPLOYMENT)) == "a b"


def test_a_gateway_that_never_answers_is_reported_with_its_last_words(
    gateway: tuple[Box, list[tuple[int, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(install_module, "_FIRST_TOKEN_SECONDS", 0.2)
    box, answers = gateway
    answers += [(503, b"nobody there")] * 100
    with pytest.raises(BoxError, match="status 503, nobody there"):
        list(stream_tokens(box, DEPLOYMENT))


def _box(folder: Path) -> Box:
    return Box(BoxPaths(folder), Settings("b", "v", "cpu=1x0", [], [], [], {}, 0, 0))


def test_a_slow_tool_is_watched_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_module, "_MEANWHILE_SECONDS", 0.02)
    calls: list[int] = []
    # It ends when it was watched three times, and not before.
    script = f"cat; until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo done"

    def meanwhile() -> None:
        calls.append(1)
        if len(calls) == 3:
            (tmp_path / "go").touch()

    assert install_module._run(_box(tmp_path), ["sh", "-c", script], "sh", "given ", meanwhile) == "given done\n"
    assert len(calls) >= 3


def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BoxError, match="`helm` failed: no such chart"):
        install_module._run(_box(tmp_path), ["sh", "-c", "echo no such chart >&2; exit 1"], "helm")
