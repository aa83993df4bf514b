"""Tokens in the router: files found, engines compared with and asked, limits kept, trouble survived."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core_tokens"))

import families
from penstock.core.tokens import builtin
from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.files import read_files
from penstock.core.tokens.prompts import BlockNaming
from penstock.core.tokens.requests import ChatPrompt, read_request
from penstock.core.tokens.tokenizer import ModelTokenizer
from penstock.router.shell.tokens import Ask, EngineTokenizer, ModelFolders, TokenOptions, TokenService

NOW = datetime(2026, 3, 1)
NAMING = BlockNaming(4)
MESSAGES = [{"role": "user", "content": "Which worker?"}]
TOOL = {"type": "function", "function": {"name": "f"}}
LONG = "the gate meters water " * 2000


def request(chat: bool = False, **body: Any) -> Any:
    return read_request(json.dumps({"model": "m", **body}).encode(), chat=chat)


class Engine:
    """What engines say to `/tokenize`: a tokenizer of their own, or trouble."""

    def __init__(self, family: str = "llama3", template: str | None = None) -> None:
        files = families.files(family)
        if template is not None:
            files["chat_template.jinja"] = template.encode()
        self.tokenizer = ModelTokenizer(read_files(files))
        self.asked: list[dict[str, Any]] = []
        self.trouble: Callable[[httpx.Request], httpx.Response] | None = None
        self.dead: set[str] = set()

    async def __call__(self, http: httpx.Request) -> httpx.Response:
        body = json.loads(http.content)
        self.asked.append(body)
        if http.url.host in self.dead:
            raise httpx.ConnectError("refused")
        if self.trouble is not None:
            return self.trouble(http)
        text = body.get("prompt")
        if text is None:
            chat = ChatPrompt(
                body["messages"],
                body.get("tools"),
                add_generation_prompt=body["add_generation_prompt"],
                continue_final_message=body["continue_final_message"],
                arguments=body.get("chat_template_kwargs", {}),
            )
            text = self.tokenizer.render(chat, NOW)
        ids = self.tokenizer.encode(text, special=body["add_special_tokens"])
        return httpx.Response(200, json={"count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": None})


class Stage:
    """A service over a folder of models and one engine, with a clock in the test's hand."""

    def __init__(self, root: Path, engine: Engine, **options: Any) -> None:
        self.time = 1000.0
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(engine))
        asker = EngineTokenizer(self.client, timeout=0.5)
        limits = TokenOptions(**{"compute_timeout": 30.0, "load_timeout": 30.0, **options})
        self.service = TokenService([root], asker, lambda: self.time, options=limits, now=lambda: NOW)
        self.ask = Ask("m", NAMING, ("http://a:8000", "http://b:8000"))

    async def source(self, chat: bool = False, **body: Any) -> str:
        return (await self.service.tokenize(request(chat, **body), self.ask)).source

    async def settle(self) -> None:
        """Let what goes on behind the scenes end."""
        for model in list(self.service._models.values()):
            if model.task is not None:
                await asyncio.wait((model.task,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    families.write("llama3", tmp_path / "m")
    return tmp_path


@pytest.fixture
async def stage(root: Path) -> AsyncIterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(engine: Engine, at: Path | None = None, **options: Any) -> Stage:
        made.append(Stage(root if at is None else at, engine, **options))
        return made[-1]

    yield make
    for one in made:
        await one.service.close()
        await one.client.aclose()


async def test_files_an_engine_agrees_with_make_the_tokens(stage: Any) -> None:
    engine = Engine()
    s = stage(engine)
    done = await s.service.tokenize(request(prompt="Which worker"), s.ask)
    assert done.source == "files"
    (prompt,) = done.prompts
    assert list(prompt.token_ids) == engine.tokenizer.encode("Which worker", special=True)
    assert len(prompt.block_hashes) == prompt.tokens // 4
    asked = len(engine.asked)
    assert await s.source(chat=True, messages=MESSAGES) == "files"
    assert await s.source(chat=True, messages=MESSAGES, tools=[TOOL]) == "files"
    assert len(engine.asked) == asked == 3, "an engine is asked once per kind of prompt, not per request"
    assert s.service.counts.tokenized == {("m", "files"): 3}
    assert s.service.counts.loads == {("m", "ok"): 1}


async def test_an_engine_with_another_template_is_asked_for_chats_only(stage: Any) -> None:
    engine = Engine(template="{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}")
    s = stage(engine)
    assert await s.source(prompt="Which") == "files"
    done = await s.service.tokenize(request(True, messages=MESSAGES, cache_salt="t"), s.ask)
    assert done.source == "engine"
    assert list(done.prompts[0].token_ids) == engine.tokenizer.encode("[user] Which worker? ", special=False)
    ids = list(done.prompts[0].token_ids)
    salted = await s.service.tokenize(request(prompt=ids, cache_salt="t"), s.ask)
    assert (salted.source, salted.prompts[0].block_hashes) == ("ids", done.prompts[0].block_hashes)


async def test_what_needs_no_waiting_is_done_at_once_and_the_rest_is_left(stage: Any) -> None:
    s = stage(Engine(template="{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"))
    text, chat = request(prompt="Which worker"), request(True, messages=MESSAGES)
    ids = s.service.at_once(request(prompt=[1, 2, 3, 4, 5]), s.ask)
    assert (ids.source, len(ids.prompts[0].block_hashes)) == ("ids", 1)
    assert s.service.at_once(text, s.ask) is None, "no tokenizer is chosen yet"
    later = await s.service.tokenize(text, s.ask)
    assert s.service.at_once(text, s.ask) == later
    assert s.service.at_once(chat, s.ask) is None, "chats are the engine's to tell"
    assert s.service.at_once(request(prompt=LONG), s.ask) is None, "a long prompt is a thread's"
    assert s.service.counts.tokenized == {("m", "ids"): 1, ("m", "files"): 2}
    with pytest.raises(PromptError):
        s.service.at_once(request(prompt="\ud800"), s.ask)
    s.time += TokenOptions().recheck + 1
    assert s.service.at_once(text, s.ask) is None, "the choice is to be made anew"
    assert await s.service.tokenize(text, s.ask) == later
    assert s.service.at_once(text, s.ask) == later, "while it is, what was chosen before holds"
    await s.settle()


async def test_files_of_another_model_are_not_believed(stage: Any, root: Path) -> None:
    families.write("mistral", root / "m")
    s = stage(Engine("llama3"))
    assert await s.source(prompt="Which") == "engine"


async def test_without_an_engine_files_are_believed_until_one_can_be_asked(stage: Any) -> None:
    engine = Engine("llama3", template="{{ messages[0].content }}")
    engine.dead = {"a", "b"}
    s = stage(engine)
    assert await s.source(chat=True, messages=MESSAGES) == "files"
    engine.dead = {"a"}
    s.time += 6
    assert await s.source(chat=True, messages=MESSAGES) == "files", "the old choice serves while a new one is made"
    await s.settle()
    assert await s.source(chat=True, messages=MESSAGES) == "engine"


async def test_what_an_engine_confirmed_outlasts_the_engine(stage: Any, tmp_path: Path) -> None:
    engine = Engine()
    s = stage(engine)
    assert await s.source(prompt="Which") == "files"
    engine.dead = {"a", "b"}
    s.time += 61
    await s.source(prompt="Which")
    await s.settle()
    assert await s.source(chat=True, messages=MESSAGES) == "files"


async def test_changed_files_are_loaded_again(stage: Any, root: Path) -> None:
    s = stage(Engine("chatml"))
    assert await s.source(prompt="Which") == "engine"
    families.write("chatml", root / "m")
    s.time += 61
    await s.source(prompt="Which")
    await s.settle()
    assert await s.source(prompt="Which") == "files"
    assert s.service.counts.loads["m", "ok"] == 2


async def test_neither_files_nor_engine_is_said_so(stage: Any, tmp_path: Path) -> None:
    engine = Engine()
    engine.dead = {"a", "b"}
    s = stage(engine, at=tmp_path / "nothing")
    with pytest.raises(TokensUnknown, match="refused"):
        await s.source(prompt="Which")
    assert s.service.counts.unknown == {("m", "NoEngine"): 1}
    assert await s.source(prompt=[1, 2, 3]) == "ids", "token ids need nobody"


async def test_broken_files_are_counted_and_left(stage: Any, root: Path) -> None:
    (root / "m" / "tokenizer.json").write_text("{}")
    s = stage(Engine())
    assert await s.source(prompt="Which") == "engine"
    assert s.service.counts.loads == {("m", "failed"): 1}


@pytest.mark.parametrize(
    "trouble",
    [
        lambda _: httpx.Response(500),
        lambda _: httpx.Response(404),
        lambda _: httpx.Response(200, content=b"no"),
        lambda _: httpx.Response(200, json={"tokens": "x"}),
        lambda _: httpx.Response(200, content=b" " * (17 << 20)),
    ],
)
async def test_an_engine_that_answers_nonsense_is_no_engine(stage: Any, tmp_path: Path, trouble: Any) -> None:
    engine = Engine()
    engine.trouble = trouble
    with pytest.raises(TokensUnknown):
        await stage(engine, at=tmp_path / "nothing").source(prompt="Which")


async def test_engines_that_cannot_tell_are_left_alone_for_a_while(stage: Any, tmp_path: Path) -> None:
    engine = Engine()
    engine.dead = {"a", "b"}
    s = stage(engine, at=tmp_path / "nothing")
    with pytest.raises(TokensUnknown):
        await s.source(prompt="Which")
    asked = len(engine.asked)
    for prompt in ("Which", LONG):
        with pytest.raises(TokensUnknown, match="a moment ago"):
            await s.source(prompt=prompt)
    assert len(engine.asked) == asked, "each request waited for engines that could not tell a moment ago"
    assert s.service.counts.unknown == {("m", "NoEngine"): 3}
    engine.dead = set()
    s.time += TokenOptions().retry + 0.1
    assert await s.source(prompt="Which") == "engine"


async def test_an_engines_refusal_is_the_clients(stage: Any, tmp_path: Path) -> None:
    engine = Engine()
    s = stage(engine, at=tmp_path / "nothing")
    assert await s.source(prompt="Which") == "engine"
    engine.trouble = lambda _: httpx.Response(400, json={"error": {"message": "too long"}})
    with pytest.raises(PromptError, match="too long"):
        await s.source(prompt="Which")


async def test_a_silent_engine_is_given_up(stage: Any, tmp_path: Path) -> None:
    engine = Engine()
    s = stage(engine, at=tmp_path / "nothing")

    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    s.service._engine = EngineTokenizer(httpx.AsyncClient(transport=httpx.MockTransport(silent)), timeout=0.05)
    with pytest.raises(TokensUnknown, match="Timeout"):
        await s.source(prompt="Which")


async def test_batches_are_asked_for_a_few_texts_only(stage: Any, tmp_path: Path) -> None:
    s = stage(Engine(), at=tmp_path / "nothing")
    assert await s.source(prompt=["a", "b"]) == "engine"
    with pytest.raises(TokensUnknown, match="more than 4"):
        await s.source(prompt=["a"] * 5)
    with pytest.raises(TokensUnknown, match="cut"):
        await s.source(prompt="a", truncate_prompt_tokens=3)


async def test_documents_reach_an_engines_template(stage: Any, tmp_path: Path) -> None:
    engine = Engine()
    s = stage(engine, at=tmp_path / "nothing")
    await s.source(chat=True, messages=MESSAGES, documents=[{"title": "t", "text": "x"}])
    assert engine.asked[-1]["chat_template_kwargs"] == {"documents": [{"title": "t", "text": "x"}]}


async def test_long_prompts_are_made_in_threads_and_the_queue_is_bounded(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = stage(Engine(), threads=1, queue=2)
    await s.source(prompt="warm")
    gate, seen = threading.Event(), set()
    encode = ModelTokenizer.encode

    def slow(self: ModelTokenizer, text: str, **others: Any) -> list[int]:
        seen.add(threading.current_thread() is threading.main_thread())
        assert gate.wait(30)
        return encode(self, text, **others)

    monkeypatch.setattr(ModelTokenizer, "encode", slow)
    under_way = [asyncio.create_task(s.source(prompt=LONG)) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(TokensUnknown, match="already"):
        await s.source(prompt=LONG)
    gate.set()
    assert await asyncio.gather(*under_way) == ["files", "files"]
    assert seen == {False}
    assert await s.source(prompt=LONG) == "files", "the queue has room again"
    assert s.service.counts.unknown == {("m", "Busy"): 1}


async def test_a_thread_that_takes_too_long_is_given_up_and_still_counted(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = stage(Engine(), threads=1, queue=1, compute_timeout=0.05)
    await s.source(prompt="warm")
    gate = threading.Event()
    monkeypatch.setattr(ModelTokenizer, "encode", lambda *_, **__: [1] if gate.wait(30) else [])
    with pytest.raises(TokensUnknown, match=r"within 0\.05 s"):
        await s.source(prompt=LONG)
    with pytest.raises(TokensUnknown, match="already"):
        await s.source(prompt=LONG)
    gate.set()
    s.service._pool.shutdown(wait=True)
    await asyncio.sleep(0.01)
    assert s.service._busy == 0
    assert s.service.counts.unknown == {("m", "TimedOut"): 1, ("m", "Busy"): 1}


async def test_nobody_waits_for_ever_for_a_tokenizer(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stage(Engine(), load_timeout=0.05)
    gate, find = threading.Event(), ModelFolders.find
    monkeypatch.setattr(ModelFolders, "find", lambda self, name: find(self, name) if gate.wait(30) else None)
    with pytest.raises(TokensUnknown, match="not loaded yet"):
        await s.source(prompt="Which")
    gate.set()
    await s.settle()
    assert await s.source(prompt="Which") == "files"


async def test_simultaneous_first_requests_load_once(stage: Any) -> None:
    s = stage(Engine())
    assert set(await asyncio.gather(*(s.source(prompt=f"p{n}") for n in range(20)))) == {"files"}
    assert s.service.counts.loads == {("m", "ok"): 1}


async def test_only_so_many_models_are_kept(stage: Any, root: Path) -> None:
    s = stage(Engine(), models=2)
    for name in ("m", "n", "o"):
        families.write("llama3", root / name)
        await s.service.tokenize(request(prompt="Which"), Ask(name, NAMING, s.ask.engines))
    assert list(s.service._models) == ["n", "o"]


async def test_a_given_up_request_does_not_end_the_loading(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = stage(Engine())
    gate, find = threading.Event(), ModelFolders.find
    monkeypatch.setattr(ModelFolders, "find", lambda self, name: find(self, name) if gate.wait(30) else None)
    first = asyncio.create_task(s.source(prompt="Which"))
    await asyncio.sleep(0.02)
    first.cancel()
    second = asyncio.create_task(s.source(prompt="Which"))
    gate.set()
    assert await second == "files"
    assert first.cancelled()


@pytest.mark.parametrize("name", ["../m", "/m", "a/../m", "..", ".", "", "m\0", "a//m", "x\\m"])
def test_a_models_name_does_not_lead_out_of_the_folder(root: Path, name: str) -> None:
    assert ModelFolders([root / "m", root]).find(name) is None


def test_both_layouts_are_found(tmp_path: Path) -> None:
    families.write("llama3", tmp_path / "one" / "meta" / "small")
    cache = tmp_path / "two" / "models--meta--cached"
    families.write("chatml", cache / "snapshots" / "abc123")
    folders = ModelFolders([tmp_path / "absent", tmp_path / "one", tmp_path / "two"])
    assert folders.find("meta/small") == tmp_path / "one" / "meta" / "small"
    assert folders.find("meta/cached") is None, "without refs/main nobody says which snapshot"
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123\n")
    assert folders.find("meta/cached") == cache / "snapshots" / "abc123"
    (cache / "refs" / "main").write_text("../../../one/meta/small")
    assert folders.find("meta/cached") is None
    assert folders.find("meta/other") is None


def test_named_templates_are_read_with_the_rest(root: Path) -> None:
    (root / "m" / "additional_chat_templates").mkdir()
    (root / "m" / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    files = ModelFolders.read(root / "m")
    assert files["additional_chat_templates/tool_use.jinja"] == b"t"
    before = ModelFolders.fingerprint(root / "m")
    (root / "m" / "additional_chat_templates" / "tool_use.jinja").write_text("tt")
    assert ModelFolders.fingerprint(root / "m") != before


@pytest.fixture
def simulated() -> Iterator[str]:
    """A real simulated engine's base URL."""
    command = [sys.executable, "-m", "penstock.workers.simulated", "--served-model-name", "m", "--port", "0"]
    command += ["--host", "127.0.0.1", "--profile", '{"prefill":[2,0.01,0],"decode":[2,0.01,0]}']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(found[1] for line in process.stderr if (found := re.search(r"on port (\d+)", line)))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


async def test_a_real_simulated_engine_gets_the_built_in_tokenizer(stage: Any, tmp_path: Path, simulated: str) -> None:
    s = stage(Engine(), at=tmp_path / "nothing")
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        s.service._engine = EngineTokenizer(client, timeout=10)
        s.ask = Ask("m", NAMING, (simulated,))
        for chat, path, body in [
            (False, "/v1/completions", {"prompt": "one two bafiro four  five"}),
            (True, "/v1/chat/completions", {"messages": MESSAGES}),
            (True, "/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL]}),
        ]:
            done = await s.service.tokenize(request(chat, **body), s.ask)
            assert done.source == "built-in"
            answer = (await client.post(simulated + path, json={"model": "m", "max_tokens": 1, **body})).json()
            assert answer["usage"]["prompt_tokens"] == done.prompts[0].tokens
    (prompt,) = done.prompts
    assert list(prompt.token_ids) == builtin.encode("<|user|> Which worker? <|end|> <|assistant|>")
