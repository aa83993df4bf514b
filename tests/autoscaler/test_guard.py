"""The guard's checks one by one, each with the case it exists for."""

from __future__ import annotations

from dataclasses import replace

from autoscaler_views import KEY, load, pool, snapshot, view
from penstock.autoscaler.decisions.guard import Guarded, GuardRules, Refused, guard, remember
from penstock.autoscaler.decisions.history import History
from penstock.autoscaler.decisions.plan import PlanRules, plan
from penstock.autoscaler.decisions.report import deletion_costs, recommendation, same_news, scaled
from penstock.autoscaler.decisions.snapshot import DeploymentView, Pods

RULES = GuardRules()
OLD = History(since=0.0)
NAME = "chat-serve-h100"


def guarded(deployment: DeploymentView, history: History = OLD, now: float = 10_000.0, **limits: int) -> Guarded:
    seen = snapshot(deployment, now=now, **limits)
    (only,) = guard(plan(seen, PlanRules()), seen, history, RULES)
    return only


def said(result: Guarded) -> list[Refused]:
    return [refusal.refused for refusal in result.refusals]


def idle(replicas: int = 6, **more: object) -> DeploymentView:
    return view(pool(replicas=replicas, **more), loads={"PrefillDecode": load(0.5)})


def test_a_scale_in_goes_step_by_step() -> None:
    result = guarded(idle(9))
    assert result.moves == {NAME: 6}
    assert said(result) == [Refused.STEP_LIMITED]


def test_a_scale_out_goes_at_once_up_to_double() -> None:
    result = guarded(view(pool(replicas=10), loads={"PrefillDecode": load(500.0)}))
    assert result.moves == {NAME: 20}


def test_a_higher_wish_within_the_window_is_kept() -> None:
    history = OLD.wishing({("team", NAME): 5}, 9_800.0, RULES.window_s)
    assert guarded(idle(6), history).moves == {NAME: 5}
    assert guarded(idle(6), history, now=10_200.0).moves == {NAME: 4}


def test_nothing_goes_before_a_window_was_observed() -> None:
    result = guarded(idle(6), History(since=9_900.0))
    assert result.moves == {NAME: 6}
    assert said(result) == [Refused.STABILISING]


def test_a_pause_follows_a_scale_in() -> None:
    before = idle(6)
    seen = snapshot(before)
    planned = plan(seen, PlanRules())
    first = guard(planned, seen, OLD, RULES)
    history = remember(OLD, planned, first, seen, RULES)
    assert guarded(idle(4), history, now=10_010.0).moves == {NAME: 4}
    assert Refused.COOLING_DOWN in said(guarded(idle(4), history, now=10_010.0))


def test_silence_is_degraded_and_takes_nothing_away() -> None:
    for quiet in (load(0.0, coverage=0.5), load(0.0, age_s=200.0)):
        result = guarded(view(pool(replicas=6), loads={"PrefillDecode": quiet}))
        assert result.moves == {NAME: 6}
        assert result.degraded is not None and result.degraded.refused is Refused.SIGNALS_MISSING


def test_a_start_is_no_silence() -> None:
    result = guarded(view(pool(replicas=6), loads={}), History(since=9_990.0))
    assert (result.moves, result.degraded) == ({NAME: 6}, None)


def coming_up(decode: Pods) -> DeploymentView:
    """Prefill serves and is known; decode is not known yet."""
    both = (pool("Prefill", replicas=6), pool("Decode", replicas=6, pods=decode))
    return view(*both, loads={"Prefill": load(0.5)})


def test_a_role_that_comes_up_is_no_silence() -> None:
    """A Warning that no worker answers, on a deployment that is merely new, sends somebody looking for a fault."""
    for decode in (Pods(starting=6), Pods(ready=1, starting=5, ready_s=6.0)):
        result = guarded(coming_up(decode))
        assert set(result.moves.values()) == {6}
        assert result.degraded is None
        assert said(result)[0] is Refused.STARTING
        assert "role Decode are coming up" in result.refusals[0].message


def test_a_role_that_is_up_and_silent_is_named_alone() -> None:
    result = guarded(coming_up(Pods(ready=1, starting=5, ready_s=RULES.settle_s)))
    assert set(result.moves.values()) == {6}
    assert result.degraded is not None and result.degraded.refused is Refused.SIGNALS_MISSING
    assert "Decode" in result.degraded.message and "Prefill" not in result.degraded.message


def test_the_role_in_doubt_is_told_and_not_the_oldest_one() -> None:
    both = view(
        pool("Prefill", replicas=6),
        pool("Decode", replicas=6),
        loads={"Prefill": load(0.5, age_s=3.0), "Decode": load(0.5, coverage=0.5)},
    )
    result = guarded(both)
    assert result.degraded is not None
    assert "Decode is known from 50%" in result.degraded.message and "Prefill" not in result.degraded.message


def test_no_request_yet_is_no_silence() -> None:
    result = guarded(view(pool(replicas=6), loads={"PrefillDecode": load(0.0)}, mix=None))
    assert (result.moves, result.degraded) == ({NAME: 6}, None)
    thin = guarded(view(pool(replicas=6), loads={"PrefillDecode": load(0.0, coverage=0.5)}, mix=None))
    assert thin.degraded is not None


def test_another_writer_stops_everything() -> None:
    result = guarded(view(pool(replicas=2, other_writer="keda"), loads={"PrefillDecode": load(90.0)}))
    assert result.moves == {NAME: 2}
    assert result.degraded is not None and "keda" in result.degraded.message


def test_ready_workers_stay_until_others_carry_the_load() -> None:
    """The cheaper class is planned for, and not there yet."""
    dear = pool(accelerator="h100", cost_per_hour=9.0, replicas=4, least=0)
    cheap = pool(accelerator="a100", cost_per_hour=1.0, replicas=4, least=0, pods=Pods(starting=4))
    moving = view(dear, cheap, loads={"PrefillDecode": load(39.0)}, ranges={"serve": (1, 12)})
    result = guarded(moving)
    assert result.moves["chat-serve-h100"] == 4
    assert Refused.SERVING in said(result)
    there = replace(moving, pools=(dear, replace(cheap, pods=Pods(ready=4))))
    assert guarded(there).moves["chat-serve-h100"] < 4


def test_prefill_and_decode_wait_for_each_other() -> None:
    """Decode may not shrink (its wish was high lately), so prefill does not either."""
    both = view(pool("Prefill", replicas=6), pool("Decode", replicas=6))
    history = OLD.wishing({("team", "chat-decode-h100"): 6}, 9_900.0, RULES.window_s)
    result = guarded(both, history)
    assert result.moves == {"chat-prefill-h100": 6, "chat-decode-h100": 6}
    assert Refused.TOGETHER in said(result)


def test_pending_pods_are_given_up_and_the_class_left_alone() -> None:
    waiting = pool(replicas=8, pods=Pods(ready=3, pending=5, pending_s=400.0))
    deployment = view(waiting, loads={"PrefillDecode": load(60.0)})
    result = guarded(deployment)
    assert (result.moves, result.gave_up) == ({NAME: 3}, (NAME,))
    seen = snapshot(deployment)
    history = remember(OLD, plan(seen, PlanRules()), (result,), seen, RULES)
    assert history.exhausted(("team", NAME), 10_100.0)
    assert not history.exhausted(("team", NAME), 10_000.0 + RULES.retry_s + 1)


def test_pods_on_their_way_out_count_against_the_budget() -> None:
    full = pool(replicas=3, pods=Pods(ready=3, terminating=2))
    busy = view(full, loads={"PrefillDecode": load(60.0)}, max_accelerators=6)
    assert guarded(busy).moves == {NAME: 4}
    assert guarded(replace(busy, max_accelerators=5)).moves == {NAME: 3}


def test_money_is_a_budget_too() -> None:
    busy = view(pool(replicas=2), loads={"PrefillDecode": load(60.0)}, max_cost=9.0)
    result = guarded(busy)
    assert result.moves == {NAME: 4}
    assert "9 money per hour" in result.refusals[-1].message


def test_a_budget_that_was_lowered_takes_workers_away() -> None:
    assert guarded(view(pool(replicas=8), loads={"PrefillDecode": load(60.0)}, max_accelerators=5)).moves == {NAME: 5}


def test_a_short_budget_keeps_the_ratio() -> None:
    both = view(
        pool("Prefill", replicas=2, startup_s=0.0),
        pool("Decode", replicas=2, startup_s=0.0),
        loads={"Prefill": load(120.0), "Decode": load(120.0)},
        max_accelerators=8,
    )
    # Of the way to 6 and 3 both go a part; decode's only worker more is the last that would be cut.
    assert guarded(both).moves == {"chat-prefill-h100": 5, "chat-decode-h100": 3}
    assert guarded(replace(both, max_accelerators=6)).moves == {"chat-prefill-h100": 4, "chat-decode-h100": 2}


def test_a_class_is_shared_by_deployments() -> None:
    one = view(pool(replicas=2), loads={"PrefillDecode": load(60.0)})
    other = replace(one, key=("team", "code"))
    seen = snapshot(one, other, h100=7)
    both = guard(plan(seen, PlanRules()), seen, OLD, RULES)
    assert sum(each.moves[NAME] for each in both) == 7
    assert any(Refused.CLASS_EXHAUSTED in said(each) for each in both)


def test_what_is_gone_is_left_out() -> None:
    seen = snapshot(view())
    assert guard(plan(seen, PlanRules()), snapshot(), OLD, RULES) == ()
    history = OLD.wishing({("team", NAME): 5}, 9_990.0, 300.0)
    assert remember(history, plan(seen, PlanRules()), (), snapshot(), RULES).wishes == {}


def test_status_tells_plan_guard_and_money() -> None:
    deployment = idle(9)
    seen = snapshot(deployment)
    planned = plan(seen, PlanRules())
    (result,) = guard(planned, seen, OLD, RULES)
    told = recommendation(deployment, planned.deployments[0], result)
    assert told["pools"] == [{"workerPool": NAME, "replicas": 1, "allowed": 6}]
    assert (told["heldBy"], told["degraded"], told["costPerHour"]) == ("StepLimited", "", "2.00")
    assert same_news(told, {**told, "reason": "other"})
    assert not same_news(told, {**told, "degraded": "GaveUp"})
    sentence = scaled(deployment.pools[0], 6, planned.deployments[0], result)
    assert sentence.startswith(f"scaled {NAME} from 9 to 6 (of 1 planned: StepLimited): PrefillDecode: 0.5 requests/s")


def test_the_emptiest_worker_goes_first() -> None:
    costs = deletion_costs({"busy": 12.0, "idle": 0.0, "silent": 1e12})
    assert costs["idle"] < costs["busy"] < costs["silent"] < 2**31


def test_scaled_windows() -> None:
    short = RULES.scaled(0.1)
    assert (short.window_s, short.pause_s, short.out_least) == (30.0, 6.0, RULES.out_least)
    assert KEY == ("team", "chat")
