"""What the sidecar decides, without a socket: who may be asked, what passes, in which order legs go."""

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.fleet import Failure
from penstock.router.decisions.steps import (
    Action,
    Answered,
    Attempt,
    Cut,
    Ended,
    Event,
    Failed,
    PassOn,
    Pause,
    Prefill,
    Prefilled,
    Refuse,
    Resumed,
)
from penstock.workers.decisions.sidecar.door import refused, without_transfer_params
from penstock.workers.decisions.sidecar.life import engine_worker, fleet_of, given_life, prefill_workers
from penstock.workers.decisions.sidecar.prefillers import BadHeader, parse_address, read_header, tell_apart
from penstock.workers.shell.sidecar import peers
from penstock.workers.shell.sidecar.options import parse_options
from penstock.workers.shell.sidecar.peers import Peers

ENGINE = engine_worker("127.0.0.1", 8000)
A, B, C = ("10.0.0.1", 8000), ("10.0.0.2", 8000), ("10.0.0.3", 8000)
BLOCKS = b'{"do_remote_prefill":true}'


# ---- the header ----------------------------------------------------------------------------------


def test_a_header_names_addresses_in_order() -> None:
    assert read_header(b"10.0.0.1:8000") == (A,)
    assert read_header(b" 10.0.0.2:8000 , 10.0.0.1:8000,10.0.0.2:8000,") == (B, A)
    assert read_header(b"[FD00:0::1]:8000") == (("fd00::1", 8000),)
    assert read_header(b"") == ()


@pytest.mark.parametrize(
    "text", ["", "x", ":1", "h:", "h:0", "h:65536", "h:-1", "h:1e3", "h:\u0661", "h: 1", "http://h"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadHeader, match="host:port"):
        parse_address(text)


@given(st.binary(max_size=600))
def test_any_header_is_read_or_refused(value: bytes) -> None:
    try:
        found = read_header(value)
    except BadHeader as bad:
        assert str(bad)
    else:
        assert len(found) <= 8 and all(host and 0 < port < 65536 for host, port in found)


@given(st.lists(st.sampled_from([A, B, C]), max_size=6, unique=True), st.sets(st.sampled_from([A, B, C])))
def test_nobody_but_the_known_is_let_through(named: list[tuple[str, int]], known: set[tuple[str, int]]) -> None:
    parted = tell_apart(tuple(named), known)
    assert set(parted.known) <= known and not set(parted.unknown) & known
    assert sorted(parted.known + parted.unknown) == sorted(named)
    assert [a for a in named if a in known] == list(parted.known)


def test_an_address_of_a_known_host_on_another_port_is_unknown() -> None:
    """Every pod has ports that were not meant for prompts."""
    assert tell_apart((("10.0.0.1", 22),), {A}).known == ()


# ---- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/completions", None),
        ("POST", "/v1/responses", None),
        ("GET", "/v1/models", None),
        ("GET", "/health", None),
        ("POST", "/tokenize", None),
        ("POST", "/sleep", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/v1/unload_lora_adapter", 404),
        ("POST", "/v1//load_lora_adapter", 400),
        ("POST", "/v1/../sleep", 400),
        ("POST", "/v1/%6coad_lora_adapter", 400),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_requests_pass_and_orders_do_not(method: str, path: str, status: int | None) -> None:
    answer = refused(method, path)
    assert (answer and answer[0]) == status


def test_transfer_parameters_are_taken_out() -> None:
    assert without_transfer_params(b'{"model":"m","kv_transfer_params":{"do_remote_prefill":true}}') == b'{"model":"m"}'
    assert without_transfer_params(b"") == b""
    assert without_transfer_params(b'{"kv_transfer_params"') is None
    assert without_transfer_params('{"kv_transfer_params":{"do_remote_prefill":true}}'.encode("utf-16")) is None


# ---- the life -------------------------------------------------------------------------------------


def drive(*events: Event, prefills: tuple[tuple[str, int], ...] = (A,), lease: float = 30.0) -> list[Action]:
    """The actions a life asks for when it is told these events; it may not go on for longer than they do."""
    fleet = fleet_of(ENGINE, prefill_workers(prefills))
    life = given_life("r", fleet, now=0.0, until=100.0, lease=lease, seed=1)
    actions = [next(life)]
    for event in events:
        try:
            actions.append(life.send(event))
        except StopIteration:
            break
    life.close()
    assert fleet.reservations == 0
    return actions


def names(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_both_legs_in_their_order() -> None:
    actions = drive(Prefilled(1, 200, BLOCKS), Answered(2, 200), Ended(3))
    assert names(actions) == ["Prefill", "Attempt", "PassOn"]
    assert isinstance(actions[0], Prefill) and actions[0].worker.host == "10.0.0.1"
    assert isinstance(actions[1], Attempt) and actions[1].worker == ENGINE
    assert actions[1].transfer is not None and actions[1].transfer.params == BLOCKS


def test_named_workers_are_asked_in_their_order_and_two_at_most() -> None:
    actions = drive(Failed(1, Failure.RESET), Failed(2, Failure.CONNECT_REFUSED), prefills=(B, A, C))
    assert names(actions) == ["Prefill", "Prefill", "Attempt"]
    assert [a.worker.host for a in actions if isinstance(a, Prefill)] == ["10.0.0.2", "10.0.0.1"]
    last = actions[2]
    assert isinstance(last, Attempt) and last.transfer is None


def test_without_prefill_workers_there_is_one_leg() -> None:
    actions = drive(Answered(1, 200), Ended(2), prefills=())
    assert names(actions) == ["Attempt", "PassOn"]


def test_blocks_older_than_half_their_lease_are_not_pulled() -> None:
    """The engine is not reached at once; when it is asked again, a pull could give somebody else's blocks."""
    refused_then = (Prefilled(1, 200, BLOCKS), Failed(2, Failure.CONNECT_REFUSED))
    for resumed, good in ((10.0, True), (16.5, False)):
        actions = drive(*refused_then, Resumed(resumed), lease=30.0)
        assert names(actions) == ["Prefill", "Attempt", "Pause", "Attempt"]
        last = actions[-1]
        assert isinstance(last, Attempt) and (last.transfer is not None) is good


def test_blocks_that_may_be_claimed_are_not_offered_twice() -> None:
    actions = drive(Prefilled(1, 200, BLOCKS), Failed(2, Failure.RESET), Resumed(3), Prefilled(4, 200, BLOCKS))
    assert names(actions)[-2:] == ["Prefill", "Attempt"]


def test_what_the_engine_chokes_on_is_asked_again_without_blocks() -> None:
    actions = drive(Prefilled(1, 200, BLOCKS), Answered(2, 500), Answered(3, 500), Ended(4))
    assert names(actions) == ["Prefill", "Attempt", "Attempt", "PassOn"]
    again = actions[2]
    assert isinstance(again, Attempt) and again.transfer is None


def test_an_engine_that_is_gone_is_said_after_one_more_try() -> None:
    actions = drive(Failed(1, Failure.CONNECT_REFUSED), Resumed(2), Failed(3, Failure.CONNECT_REFUSED), prefills=())
    assert names(actions) == ["Attempt", "Pause", "Attempt", "Refuse"]


def test_a_broken_answer_is_cut_and_not_continued() -> None:
    assert names(drive(Answered(1, 200), Failed(2, Failure.RESET), prefills=())) == ["Attempt", "PassOn", "Cut"]


events = st.one_of(
    st.sampled_from([200, 400, 500, 503]).map(lambda s: ("status", s)),
    st.sampled_from(list(Failure)).map(lambda f: ("f", f)),
)


@given(st.lists(events, min_size=12, max_size=12), st.integers(0, 3))
def test_whatever_happens_it_ends_and_contacts_only_whom_it_was_given(
    outcomes: list[tuple[str, object]], count: int
) -> None:
    given_workers = prefill_workers((A, B, C)[:count])
    fleet = fleet_of(ENGINE, given_workers)
    life = given_life("r", fleet, now=0.0, until=100.0, lease=30.0, seed=3)
    action, ended, now, answers = next(life), False, 0.0, 0
    for kind, value in outcomes:
        now += 1.0
        event: Event
        if isinstance(action, Prefill | Attempt):
            assert action.worker == ENGINE or action.worker in given_workers
            assert isinstance(action, Attempt) == (action.worker == ENGINE)
        if isinstance(action, Attempt) and action.transfer is not None:
            assert now < action.transfer.usable_until + 1.0
        if isinstance(action, Pause):
            event = Resumed(now)
        elif kind == "f":
            event = Failed(now, value)  # type: ignore[arg-type]
        elif isinstance(action, Prefill):
            event = Prefilled(now, value, BLOCKS if value == 200 else None)  # type: ignore[arg-type]
        elif isinstance(action, PassOn):
            event = Ended(now)
        else:
            event = Answered(now, value)  # type: ignore[arg-type]
        answers += isinstance(action, PassOn | Refuse)
        try:
            action = life.send(event)
        except StopIteration:
            ended = True
            break
    assert ended and fleet.reservations == 0
    assert answers == 1 or isinstance(action, Cut)


# ---- who the prefill workers are ---------------------------------------------------------------------


class Names:
    """A name service whose answers are set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: list[str] | Exception = []
        self.asked = 0
        self.now = 1000.0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", self._look_up)
        monkeypatch.setattr(loop, "time", lambda: self.now)
        # Waiting needs a clock that runs; the answers here come at once.
        monkeypatch.setattr(peers.asyncio, "timeout", lambda _: _NoTimeout())

    async def _look_up(self, host: str, port: int, *, type: int) -> list[tuple[object, ...]]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in self.answer]


class _NoTimeout:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def test_a_new_worker_is_found_when_it_is_first_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names_, them = Names(monkeypatch), Peers(("prefill", 8000))
    names_.answer = ["10.0.0.1"]
    assert await them.known([A]) == {A}
    names_.answer = ["10.0.0.1", "10.0.0.2"]
    assert await them.known([A]) == {A} and names_.asked == 1
    names_.now += 1.5
    assert await them.known([B]) == {A, B} and names_.asked == 2


async def test_forged_addresses_cannot_make_it_ask_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    names_, them = Names(monkeypatch), Peers(("prefill", 8000))
    for _ in range(50):
        assert await them.known([C]) == frozenset()
    assert names_.asked == 1


async def test_a_worker_that_left_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    names_, them = Names(monkeypatch), Peers(("prefill", 8000))
    names_.answer = ["10.0.0.1"]
    await them.known([A])
    names_.answer = socket.gaierror(socket.EAI_NONAME, "no such name")
    names_.now += 6
    await them.known([A])  # asks beside; the answer counts from the next look on
    await asyncio.sleep(0)
    assert await them.known([A]) == frozenset()


async def test_a_silent_name_service_is_no_news_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    names_, them = Names(monkeypatch), Peers(("prefill", 8000), fixed=[C])
    names_.answer = ["10.0.0.1"]
    await them.known([A])
    names_.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    for seconds, known in ((30, {A, C}), (29, {A, C}), (10, {C})):
        names_.now += seconds
        await them.known([A])
        await asyncio.sleep(0)
        assert await them.known([A]) == known


# ---- flags ------------------------------------------------------------------------------------------


def test_flags_and_environment() -> None:
    options = parse_options(["--prefill-service", "prefill-ab:8000"], {"PENSTOCK_PREFILL_WORKERS": "h:1,[fd00::1]:2"})
    assert options.prefill_service == ("prefill-ab", 8000)
    assert options.prefill_workers == (("h", 1), ("fd00::1", 2))
    assert parse_options([], {}).prefill_service is None


@pytest.mark.parametrize(
    "flags", [["--prefill-service", "x"], ["--kv-lease", "0"], ["--max-requests", "0"], ["--log-level", "loud"]]
)
def test_flags_that_make_no_sense_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(flags, {})
    assert flags[0] in capsys.readouterr().err
