"""Policy files in the router: refused with file and line, checked at every pick, never the end of a request."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_worker import FakeWorker
from penstock.core.fleet import Fleet, Pick, Rejection, Request, Role, Worker
from penstock.core.policy_files import PolicyFileError
from penstock.router.decisions import POLICIES, find_policy, reads_prompts
from penstock.router.decisions.policies import BUILT_IN, NameTaken
from penstock.router.shell.policy_files import LOG_SECONDS, WrittenPolicies
from test_process import BODY, process

REQUEST = Request("r", "m", 100, 10)
EXAMPLES = [
    file
    for file in sorted((Path(__file__).parents[2] / "examples" / "policies").glob("*.py"))
    if "def pick(" in file.read_text()
]
WHOLE = """
from penstock.router.decisions.policies_plain import LeastLoaded
class Mine:
    name = "Mine"
    def pick(self, request, view, now, seed):
        return LeastLoaded().pick(request, view, now, seed)
"""
BY_HAND = """
import numpy as np
from penstock.core.fleet import Pick, PickReason
class Mine:
    name = "Mine"
    def pick(self, request, view, now, seed):
        slots = view.with_room(request.model)
        return {answer}
"""
LIKE = "Pick({}, PickReason.DRAWN, 'anything', {}, {}, 'x'{})"


def fleet_of(*roles: Role) -> Fleet:
    fleet = Fleet(max(1, len(roles)))
    for number, role in enumerate(roles):
        worker = Worker(f"team/w{number}", "10.0.0.1", 8000 + number, "m", role=role, domain=f"rack{number % 2}")
        fleet.set_ready(fleet.add(worker), True)
    return fleet


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def errors() -> dict[str, int]:
    return {}


@pytest.fixture
def written(errors: dict[str, int], now: list[float]) -> Iterator[WrittenPolicies]:
    made = WrittenPolicies(errors, lambda: now[0])
    yield made
    made.withdraw()
    assert tuple(POLICIES) == BUILT_IN


@pytest.fixture
def load(written: WrittenPolicies, tmp_path: Path) -> Callable[[str], None]:
    def loading(source: str, name: str = "") -> None:
        file = tmp_path / "policy.py"
        file.write_text(source)
        written.load(f"{name}={file}" if name else str(file))

    return loading


def answer_of(fleet: Fleet, request: Request = REQUEST) -> Pick | Rejection:
    return find_policy("Mine").pick(request, fleet.view(), 0.0, 0)


def test_a_file_brings_a_policy_that_is_found_by_name(load: Callable[..., None]) -> None:
    load(WHOLE, "Mine")
    answer = answer_of(fleet_of(*[Role.PREFILL_DECODE] * 3))
    assert isinstance(answer, Pick)
    assert answer.policy == "Mine"
    assert reads_prompts(find_policy("Mine"))


def test_a_policy_may_do_without_prompts(load: Callable[..., None]) -> None:
    load(WHOLE.replace('name = "Mine"', 'name = "Mine"; reads_prompts = False'))
    assert not reads_prompts(find_policy("Mine"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_pick_without_a_mistake(file: Path, written: WrittenPolicies, errors: dict[str, int]) -> None:
    written.load(str(file))
    (name,) = errors
    for roles in (
        [Role.PREFILL_DECODE] * 3,
        [Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE],
        [Role.PREFILL],
        [],
    ):
        answer = find_policy(name).pick(REQUEST, fleet_of(*roles).view(), 0.0, 0)
        assert isinstance(answer, Pick if len(roles) > 1 else Rejection)
    assert errors == {name: 0}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def broken(:\n  pass", r"policy\.py, line 1: invalid syntax"),
        ("x = 1\n\nimport nowhere_to_be_found", r"policy\.py, line 3: ModuleNotFoundError: No module named"),
        ("raise SystemExit('no')", r"policy\.py, line 1: SystemExit: no"),
        ("x = 1", r"policy\.py: brings no policy; give it a class with a name and a method pick"),
        ("def pick(request, view, now, seed): ...", r"policy\.py: pick stands alone; put it into a class"),
        ("POLICIES = 3", r"policy\.py: POLICIES is int; make it a tuple"),
        ("POLICIES = (3,)", r"policy\.py: 3 in POLICIES has no name or no pick"),
        (WHOLE.replace('"Mine"', '"my policy"'), r"policy\.py: 'my policy' is no policy name; use at most 63 letters"),
        (WHOLE + "    def __init__(self, x): ...", r"policy\.py: Mine cannot be made without arguments: TypeError"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(source: str, sentence: str, load: Callable[..., None]) -> None:
    with pytest.raises(PolicyFileError, match=sentence):
        load(source)
    assert tuple(POLICIES) == BUILT_IN


def test_names_must_agree_and_be_free(load: Callable[..., None], written: WrittenPolicies, tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="was to bring the policy 'Other', and brings Mine; make names agree"):
        load(WHOLE, "Other")
    with pytest.raises(NameTaken, match="there is a policy 'KVAware' already"):
        load(WHOLE.replace('"Mine"', '"KVAware"'))
    with pytest.raises(PolicyFileError, match=r"nowhere\.py: cannot be read: No such file"):
        written.load(str(tmp_path / "nowhere.py"))
    (tmp_path / "odd.py").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(PolicyFileError, match="is not text"):
        written.load(str(tmp_path / "odd.py"))


@pytest.mark.parametrize(
    "answer",
    [
        "None",
        "1 / 0",
        LIKE.format(7, "slots", "[0., 0., 0., 0.]", ""),
        LIKE.format("'w1'", "slots", "[0., 0., 0., 0.]", ""),
        LIKE.format("0", "slots", "[0., 0., 0., 0.]", ""),
        LIKE.format("2", "slots", "[0., 0., 0.]", ""),
        LIKE.format("2", "slots[:1]", "[0.]", ""),
        LIKE.format("2", "slots", "[0., 0., 0., 0.]", ", prefill=1"),
        LIKE.format("2", "slots", "[0., 0., 0., 0.]", ", prefill=9"),
    ],
    ids=["none", "raises", "no such slot", "no slot", "only prefills", "a score lacks", "not among", "far", "no mate"],
)
def test_what_cannot_be_used_is_counted_and_replaced(
    answer: str, load: Callable[..., None], errors: dict[str, int]
) -> None:
    load(BY_HAND.format(answer=answer))
    picked = answer_of(fleet_of(Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE))
    assert isinstance(picked, Pick)
    assert picked.policy == "LeastLoaded"
    assert errors == {"Mine": 1}


def test_answers_of_numpy_and_lists_are_made_plain(load: Callable[..., None], errors: dict[str, int]) -> None:
    load(BY_HAND.format(answer=LIKE.format("slots[2]", "list(slots)", "[0, 1, 2, 3]", ", prefill=slots[0]")))
    picked = answer_of(fleet_of(Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE))
    assert isinstance(picked, Pick)
    assert (type(picked.decode), type(picked.prefill), picked.policy) == (int, int, "Mine")
    assert isinstance(picked.scores, np.ndarray)
    assert errors == {"Mine": 0}


def test_the_log_is_told_at_most_every_ten_seconds(
    load: Callable[..., None], now: list[float], errors: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    load(BY_HAND.format(answer="1 / 0"))
    fleet = fleet_of(Role.PREFILL_DECODE)
    with caplog.at_level(logging.WARNING):
        for at in (0.0, 1.0, 2.0, LOG_SECONDS, LOG_SECONDS + 1):
            now[0] = at
            answer_of(fleet)
    assert errors == {"Mine": 5}
    assert [record.times for record in caplog.records] == [1, 3]  # type: ignore[attr-defined]
    assert "ZeroDivisionError: division by zero (" in caplog.records[0].problem  # type: ignore[attr-defined]
    assert "policy.py, line 8)" in caplog.records[0].problem  # type: ignore[attr-defined]


async def test_a_router_serves_with_a_policy_that_fails_and_counts_it(tmp_path: Path) -> None:
    import httpx

    file = tmp_path / "policy.py"
    file.write_text(BY_HAND.format(answer="1 / 0"))
    async with (
        FakeWorker() as worker,
        process(f"--workers=m=http://127.0.0.1:{worker.port}", f"--policy-file={file}", "--policy=Mine") as router,
        httpx.AsyncClient() as client,
    ):
        answer = await client.post(f"{router.base}/v1/completions", content=BODY)
        page = (await client.get(f"{router.metrics}/metrics")).text
    assert answer.status_code == 200
    assert 'penstock_router_policy_errors_total{policy="Mine"} 1.0' in page
    assert 'penstock_router_picks_total{policy="LeastLoaded"' in page


@pytest.mark.parametrize(
    ("source", "policy", "sentence"),
    [
        ("\n\n1 / 0\n", "Mine", "policy.py, line 3: ZeroDivisionError: division by zero"),
        (WHOLE, "Yours", "unknown routing policy 'Yours'; known policies are RoundRobin, LeastLoaded,"),
    ],
)
async def test_a_router_that_cannot_have_its_policy_does_not_start(
    source: str, policy: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "policy.py"
    file.write_text(source)
    flags = [f"--policy-file={file}", f"--policy={policy}", "--workers=m=http://127.0.0.1:9", "--port=0"]
    command = [sys.executable, "-m", "penstock.router", "--health-port=0", "--metrics-port=0", *flags]
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await started.communicate()
    assert started.returncode == 1
    assert sentence in said.decode()
