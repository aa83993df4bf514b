"""Legs of prefill/decode pairs: never after the lease, never with other blocks, and never a place left behind."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from penstock.core.fleet import Failure, Fleet, Rejection, Request, Role, Worker
from penstock.router.decisions import (
    Answered,
    Attempt,
    Cut,
    Ended,
    Failed,
    PassOn,
    Pause,
    Prefill,
    Prefilled,
    Refuse,
    Resumed,
    RetryLimits,
    SplitLimits,
    SplitReason,
    find_policy,
    live,
)
from penstock.router.decisions.leg_forms import can_split, first_leg, held_params, second_leg
from penstock.router.decisions.split import pick_pair, split_or_not, why_split

REQUEST = Request(id="r", model="m", prompt_tokens=1000, max_tokens=100)
LIMITS, SPLIT = RetryLimits(), SplitLimits()
POLICY = find_policy("LeastLoaded")
PARAMS = b'{"do_remote_prefill":true,"remote_block_ids":[[1,2]]}'


def fleet_of(*workers: tuple[Role, str]) -> Fleet:
    fleet = Fleet()
    for number, (role, domain) in enumerate(workers):
        slot = fleet.add(Worker(f"{role.api_name}-{number}", "127.0.0.1", 1000 + number, "m", role, domain=domain))
        fleet.set_ready(slot, True)
    return fleet


def pair(prefills: int = 1, decodes: int = 1) -> Fleet:
    return fleet_of(*[(Role.PREFILL, "kv")] * prefills, *[(Role.DECODE, "kv")] * decodes)


def started(fleet: Fleet, request: Request = REQUEST, split: SplitLimits | None = SPLIT):  # type: ignore[no-untyped-def]
    return live(request, fleet, POLICY, LIMITS, 0.0, 1, split)


def test_both_legs_in_order_and_everything_given_back() -> None:
    fleet = pair()
    life = started(fleet)
    leg = next(life)
    assert isinstance(leg, Prefill) and leg.worker.role is Role.PREFILL
    assert fleet.reservations == 2, "the place at the decode worker is held during the first leg"
    attempt = life.send(Prefilled(1.0, 200, PARAMS))
    assert isinstance(attempt, Attempt) and attempt.worker.role is Role.DECODE and attempt.split is SplitReason.SPLIT
    assert attempt.transfer is not None and attempt.transfer.params == PARAMS
    assert fleet.reservations == 1
    assert isinstance(life.send(Answered(1.1, 200)), PassOn)
    with pytest.raises(StopIteration):
        life.send(Ended(2.0))
    assert fleet.reservations == 0


def test_a_short_prompt_stays_where_it_is_decoded() -> None:
    attempt = next(started(pair(), Request(id="r", model="m", prompt_tokens=50, max_tokens=10)))
    assert isinstance(attempt, Attempt) and attempt.transfer is None and attempt.split is SplitReason.SHORT_PROMPT


def test_a_front_door_without_legs_goes_to_decode_workers_only() -> None:
    attempt = next(started(pair(), split=None))
    assert isinstance(attempt, Attempt) and attempt.worker.role is Role.DECODE and attempt.transfer is None


def test_a_failed_prefill_leg_goes_to_another_prefill_worker_then_to_the_decode_worker() -> None:
    fleet = pair(prefills=3)
    life = started(fleet)
    first = next(life)
    second = life.send(Failed(0.1, Failure.RESET))
    assert isinstance(first, Prefill) and isinstance(second, Prefill) and first.worker != second.worker
    attempt = life.send(Failed(0.2, Failure.CONNECT_REFUSED))
    assert isinstance(attempt, Attempt) and attempt.transfer is None


def test_a_prefill_that_holds_nothing_is_done_again_where_it_is_decoded() -> None:
    life = started(pair())
    next(life)
    attempt = life.send(Prefilled(0.1, 200, None))
    assert isinstance(attempt, Attempt) and attempt.transfer is None


@pytest.mark.parametrize(
    ("failure", "kept"), [(Failure.CONNECT_REFUSED, True), (Failure.CONNECT_TIMEOUT, True), (Failure.RESET, False)]
)
def test_blocks_go_to_another_decode_worker_only_while_nobody_can_have_claimed_them(
    failure: Failure, kept: bool
) -> None:
    life = started(pair(decodes=2))
    next(life)
    first = life.send(Prefilled(0.1, 200, PARAMS))
    after = life.send(Failed(0.2, failure))
    assert isinstance(first, Attempt)
    if kept:
        assert isinstance(after, Attempt) and after.transfer is not None and after.worker != first.worker
    else:
        assert isinstance(after, Prefill), "the prompt is prefilled anew"


def test_no_second_leg_after_the_lease() -> None:
    life = started(pair(decodes=2))
    next(life)
    first = life.send(Prefilled(0.0, 200, PARAMS))
    assert isinstance(first, Attempt) and first.transfer is not None
    late = life.send(Failed(SPLIT.usable_lease, Failure.CONNECT_TIMEOUT))
    assert isinstance(late, Prefill) or (isinstance(late, Attempt) and late.transfer is None)


def test_a_stale_connection_found_out_after_the_lease_takes_no_blocks_along() -> None:
    life = started(pair())
    next(life)
    life.send(Prefilled(0.0, 200, PARAMS))
    again = life.send(Failed(SPLIT.usable_lease, Failure.STALE_CONNECTION))
    assert isinstance(again, Attempt) and again.fresh and again.transfer is None


def test_an_engine_error_in_a_second_leg_is_asked_again_without_one() -> None:
    life = started(pair())
    next(life)
    life.send(Prefilled(0.1, 200, PARAMS))
    again = life.send(Answered(0.2, 500))
    assert isinstance(again, Attempt) and again.transfer is None
    assert isinstance(life.send(Answered(0.3, 500)), PassOn), "its own error is the client's to see"


def test_a_decode_worker_that_went_away_during_the_first_leg_is_not_used() -> None:
    fleet = pair(decodes=2)
    life = started(fleet)
    leg = next(life)
    assert isinstance(leg, Prefill)
    fleet.remove(leg.pick.decode)
    attempt = life.send(Prefilled(0.1, 200, PARAMS))
    assert isinstance(attempt, Attempt) and attempt.transfer is not None and attempt.worker.role is Role.DECODE


def test_pairs_never_cross_domains() -> None:
    fleet = fleet_of((Role.PREFILL, "old"), (Role.DECODE, "new"), (Role.DECODE, "old"), (Role.PREFILL, "gone"))
    for _ in range(20):
        pick = pick_pair(REQUEST, fleet.view(), 0.0)
        assert not isinstance(pick, Rejection) and pick.prefill is not None
        assert fleet.domain[pick.prefill] == fleet.domain[pick.decode]
        fleet.reserve(pick.decode, 1000, 100)


def test_a_prefix_cached_at_the_prefill_worker_is_no_reason_to_stay_with_the_decode_worker() -> None:
    view = pair().view()
    pick = replace(pick_pair(REQUEST, view, 0.0), expected_hit_tokens=REQUEST.prompt_tokens)  # type: ignore[type-var]
    assert why_split(REQUEST, view, pick, 0.0, SPLIT) is SplitReason.SPLIT
    alone = replace(pick, prefill=None)
    assert why_split(REQUEST, view, alone, 0.0, SPLIT) is SplitReason.LOCAL_CHEAPER


def test_a_busy_prefill_worker_is_left_alone() -> None:
    assert split_or_not(1000, SPLIT.busy_tokens + 1, 0, SPLIT) is SplitReason.PREFILL_BUSY
    assert split_or_not(1000, SPLIT.busy_tokens, 0, SPLIT) is SplitReason.SPLIT
    assert split_or_not(255, 0, 0, SPLIT) is SplitReason.SHORT_PROMPT


def test_a_break_in_the_answer_is_continued_elsewhere_and_only_so_often() -> None:
    fleet = pair(decodes=3)
    life = started(fleet)
    next(life)
    life.send(Prefilled(0.0, 200, PARAMS))
    action = life.send(Answered(0.1, 200))
    for _ in range(LIMITS.continuations):
        before = fleet.reservations
        action = life.send(Failed(1.0, Failure.RESET, resumable=True))
        assert isinstance(action, Attempt) and action.resumes and action.transfer is None
        assert fleet.reservations == before
        action = life.send(Answered(1.1, 200))
        assert isinstance(action, PassOn)
    assert isinstance(life.send(Failed(2.0, Failure.RESET, resumable=True)), Cut)


def test_a_continuation_nobody_takes_is_a_cut_not_a_refusal() -> None:
    life = started(pair())
    next(life)
    life.send(Prefilled(0.0, 200, PARAMS))
    life.send(Answered(0.1, 200))
    action = life.send(Failed(1.0, Failure.RESET, resumable=True))
    for _ in range(40):
        if isinstance(action, Cut):
            break
        assert not isinstance(action, Refuse | PassOn)
        action = life.send(Resumed(1.0) if isinstance(action, Pause) else Failed(1.0, Failure.CONNECT_REFUSED))
    assert isinstance(action, Cut) and action.failure is Failure.RESET


OUTCOMES = ["held", "nothing", "busy", "bad", "reset", "refused", "stale", "ok", "break", "resume", "gone", "leave"]


@given(
    st.lists(st.sampled_from(OUTCOMES), max_size=40),
    st.integers(1, 3),
    st.integers(1, 3),
    st.floats(0.0, 40.0),
)
def test_in_every_order_a_life_ends_gives_back_and_breaks_no_rule(
    script: list[str], prefills: int, decodes: int, step: float
) -> None:
    fleet = pair(prefills, decodes)
    life = started(fleet)
    now, held_at, claimed, given = 0.0, 0.0, True, False
    outcomes = iter([*script, *["ok"] * 60])
    action = next(life)
    try:
        for outcome in outcomes:
            now += step
            if isinstance(action, Refuse | Cut):
                assert given == isinstance(action, Cut)
                break
            if isinstance(action, Pause):
                action = life.send(Resumed(now))
                continue
            if isinstance(action, Prefill):
                assert action.worker.role is Role.PREFILL and not given
                if outcome == "held":
                    held_at, claimed = now, False
                    event: object = Prefilled(now, 200, PARAMS)
                elif outcome in ("reset", "refused", "stale"):
                    event = Failed(now, FAILURES[outcome])
                else:
                    event = Prefilled(now, 503 if outcome == "busy" else 400 if outcome == "bad" else 200, None)
            elif isinstance(action, Attempt):
                assert action.worker.role is Role.DECODE
                if action.transfer is not None:
                    assert not claimed and now - step < held_at + SPLIT.lease and not action.resumes
                if outcome in ("reset", "refused", "stale"):
                    claimed = claimed or outcome == "reset"
                    event = Failed(now, FAILURES[outcome])
                else:
                    claimed = claimed or outcome != "busy"  # a 503 took nothing
                    event = Answered(now, 503 if outcome == "busy" else 500 if outcome == "bad" else 200)
            else:
                given = True
                if outcome in ("break", "resume", "reset"):
                    event = Failed(now, Failure.RESET, resumable=outcome == "resume")
                else:
                    event = Ended(now)
            if outcome == "leave":
                life.close()
                break
            if outcome == "gone" and isinstance(action, Attempt | Prefill):
                fleet.remove(action.reservation.slot)
                event = Failed(now, Failure.WORKER_GONE)
            action = life.send(event)  # type: ignore[arg-type]
        else:
            pytest.fail("a life that never ends")
    except StopIteration:
        pass
    finally:
        life.close()
    assert fleet.reservations == 0


FAILURES = {"reset": Failure.RESET, "refused": Failure.CONNECT_REFUSED, "stale": Failure.STALE_CONNECTION}


def test_leg_bodies_differ_from_the_clients_in_the_legs_fields_only() -> None:
    body = b'{"model":"m", "prompt":"caf\\u00e9 \\ud83d\\ude00", "n":1,"stream":true,"stream_options":{}}'
    one, two = json.loads(first_leg(body)), json.loads(second_leg(body, PARAMS))
    assert one["max_tokens"] == 1 and one["stream"] is False and "stream_options" not in one
    assert one["kv_transfer_params"]["do_remote_decode"] is True
    assert b'"caf\\u00e9 \\ud83d\\ude00"' in first_leg(body) and b'"caf\\u00e9 \\ud83d\\ude00"' in second_leg(
        body, PARAMS
    )
    assert two == json.loads(body) | {"kv_transfer_params": json.loads(PARAMS)}
    assert PARAMS in second_leg(body, PARAMS)


@pytest.mark.parametrize(
    ("fields", "split"),
    [
        ({"prompt": "a b"}, True),
        ({"prompt": [1, 2]}, True),
        ({"messages": [{"role": "user", "content": "x"}]}, True),
        ({"prompt": ["a b"]}, False),
        ({"prompt": [[1, 2]]}, False),
        ({"prompt": []}, False),
        ({"prompt": "a", "n": 2}, False),
        ({"prompt": "a", "best_of": 2}, False),
        ({"prompt": "a", "echo": True}, False),
        ({"prompt": "a", "prompt_logprobs": 0}, False),
        ({"prompt": {"odd": 1}}, False),
        ({}, False),
    ],
)
def test_which_requests_have_legs(fields: dict[str, object], split: bool) -> None:
    assert can_split(json.dumps({"model": "m"} | fields).encode()) is split


def test_what_can_be_split_can_be_written_anew() -> None:
    assert not can_split(b'{"prompt":"lone \\ud83d","max_tokens":9}')
    assert not can_split(b'{"prompt":"x","other":"lone \\ud83d"}')


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        (b'{"kv_transfer_params":%b,"id":"x"}' % PARAMS, PARAMS),
        (b'{"kv_transfer_params":null}', None),
        (b'{"kv_transfer_params":{"do_remote_prefill":false}}', None),
        (b'{"kv_transfer_params":[1]}', None),
        (b'{"id":"x"}', None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_what_a_first_answer_holds(answer: bytes, held: bytes | None) -> None:
    assert held_params(answer) == held
