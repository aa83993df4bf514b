"""The replay sends what the trace says when it says it, and gives each kind of bad answer its name."""

from __future__ import annotations

import asyncio

import pytest
from penstock.cli.replay_client import Target, Timeouts, normal_base
from penstock.cli.replay_run import Plan, Progress, PromptForm, replay
from penstock.core.reports import Outcome, Verdict
from penstock.core.traces import Trace, TraceRequest

MODEL = "test-model"


def trace_of(count: int, gap_s: float = 0.0, output: int = 8) -> Trace:
    return Trace(tuple(TraceRequest(i * gap_s, 20 + i, output, (0,)) for i in range(count)), block_tokens=16)


def play(server: object, trace: Trace, **options: object) -> list[Outcome]:
    plan = Plan(trace, MODEL, seed=1, **options)  # type: ignore[arg-type]
    progress = Progress(len(trace.requests))

    async def go() -> None:
        await replay(plan, Target.of(server.url, "key"), asyncio.Event(), progress)  # type: ignore[attr-defined]

    asyncio.run(go())
    return sorted(progress.outcomes, key=lambda outcome: outcome.index)


def test_a_good_answer_is_measured(server) -> None:
    (outcome,) = play(server, trace_of(1))
    assert outcome.verdict is Verdict.COMPLETED, outcome
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (20, 8, 5)
    assert outcome.ttft_s is not None and outcome.e2e_s is not None
    assert 0 < outcome.ttft_s <= outcome.e2e_s


def test_the_request_has_exact_lengths_and_shared_beginnings(server) -> None:
    play(server, trace_of(2))
    first, second = sorted(server.received, key=lambda body: len(body["prompt"]))
    assert (len(first["prompt"]), len(second["prompt"])) == (20, 21)
    assert first["prompt"][:16] == second["prompt"][:16]
    assert first["prompt"][16:] != second["prompt"][16:20]
    assert (first["model"], first["max_tokens"], first["ignore_eos"], first["stream"]) == (MODEL, 8, True, True)
    assert first["stream_options"] == {"include_usage": True}
    assert server.headers[0]["authorization"] == "Bearer key"


def test_words_have_the_same_lengths(server) -> None:
    play(server, trace_of(1), prompt_form=PromptForm.WORDS)
    assert len(server.received[0]["prompt"].split()) == 20


@pytest.mark.parametrize(
    ("manner", "verdict", "error"),
    [
        ("429", Verdict.REJECTED, "Http429"),
        ("503", Verdict.REJECTED, "Http503"),
        ("500", Verdict.FAILED, "Http500"),
        ("404", Verdict.FAILED, "Http404"),
        ("json", Verdict.FAILED, "NotAStream"),
        ("garbage", Verdict.FAILED, "BadResponse"),
        ("bad-event", Verdict.FAILED, "BadResponse"),
        ("error-event", Verdict.FAILED, "ErrorEvent"),
        ("cut", Verdict.FAILED, "StreamCut"),
        ("no-done", Verdict.FAILED, "StreamCut"),
        ("abort", Verdict.FAILED, "Aborted"),
        ("hang", Verdict.FAILED, "TimedOut"),
        ("until-close", Verdict.COMPLETED, None),
        ("short", Verdict.COMPLETED, None),
    ],
)
def test_each_kind_of_answer_gets_its_name_and_is_never_retried(
    server, manner: str, verdict: Verdict, error: str | None
) -> None:
    server.manner[1] = manner
    outcomes = play(server, trace_of(3), timeouts=Timeouts(request_s=0.5))
    assert (outcomes[1].verdict, outcomes[1].error) == (verdict, error), outcomes[1]
    assert [outcomes[i].verdict for i in (0, 2)] == [Verdict.COMPLETED] * 2
    assert len(server.received) == 3
    if manner.isdigit():
        assert outcomes[1].detail == f"said {manner}"


def test_nobody_listening_is_a_refused_connection(server, unused_tcp_port: int) -> None:
    server.port = unused_tcp_port
    (outcome,) = play(server, trace_of(1))
    assert (outcome.verdict, outcome.error) == (Verdict.FAILED, "ConnectRefused")


def test_arrivals_are_kept_when_the_server_hangs(server) -> None:
    server.default_manner = "hang"
    outcomes = play(server, trace_of(5, gap_s=0.05), timeouts=Timeouts(request_s=1.0))
    # A closed loop would have sent the second request only after the first one's second.
    assert outcomes[4].sent_s < 1.0
    assert len(server.received) == 5


def test_a_full_client_holds_back_and_says_so(server) -> None:
    server.delay_s = 0.1
    plan = Plan(trace_of(3), MODEL, seed=1, max_in_flight=1)
    progress = Progress(3)
    asyncio.run(replay(plan, Target.of(server.url, None), asyncio.Event(), progress))
    assert progress.held_back == 2
    last = max(progress.outcomes, key=lambda outcome: outcome.index)
    assert last.lag_s > 0.1


def test_a_stop_ends_the_run_and_keeps_what_was_measured(server) -> None:
    server.manner[1] = "hang"
    plan, progress = Plan(trace_of(3, gap_s=0.2), MODEL, seed=1), Progress(3)

    async def go() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, stop.set)
        await replay(plan, Target.of(server.url, None), stop, progress)

    asyncio.run(go())
    verdicts = {outcome.index: (outcome.verdict, outcome.error) for outcome in progress.outcomes}
    assert verdicts == {0: (Verdict.COMPLETED, None), 1: (Verdict.FAILED, "Interrupted")}
    assert progress.interrupted


@pytest.mark.parametrize("url", ["http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1"])
def test_a_base_url_may_carry_v1(url: str) -> None:
    assert normal_base(url) == "http://h:1"


@pytest.mark.parametrize(
    "url", ["h:1", "ftp://h", "http://", "http://h:x", "http://a@h", "http://h?q", "", "http://h:99999"]
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        normal_base(url)


async def test_a_name_is_looked_up_once_and_its_working_address_kept(server) -> None:
    located = await Target.of(f"http://localhost:{server.port}", None).located(5.0)
    assert located.address == "127.0.0.1"
