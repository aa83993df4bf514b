"""What is told about a pick, for how long, and where."""

import httpx
from fake_worker import FakeWorker
from msgspec.structs import replace
from penstock.core.fleet import Fleet, Pick, Request, Role, Worker
from penstock.router.decisions import find_policy
from penstock.router.decisions.explain import ExplainLog
from test_process import process

REQUEST = Request("r", "m", 1000, 10, ttft_ms=500.0)


def fleet_of(count: int, *roles: Role) -> Fleet:
    fleet = Fleet()
    for i in range(count):
        role = roles[i] if roles else Role.PREFILL_DECODE
        known = Worker(f"w{i}", "h", i, "m", role, prefill_ms=(1.0, 0.1, 0.0), decode_ms=(5.0, 0.0, 0.0))
        fleet.set_ready(fleet.add(known), True)
    return fleet


def pick(fleet: Fleet, policy: str = "KVAware") -> Pick:
    answer = find_policy(policy).pick(REQUEST, fleet.view(), 0.0, 0)
    assert isinstance(answer, Pick)
    return answer


def test_every_candidate_comes_with_its_terms_the_picked_one_first() -> None:
    fleet = fleet_of(3)
    fleet.reserve(0, 100, 0)
    fleet.reserve(2, 5000, 0)
    log = ExplainLog(fleet)
    log.remember(REQUEST, pick(fleet), 1, 7.0)
    (told,) = [each.as_dict() for each in log.find("r")]
    assert told["worker"] == "w1" and told["runnerUp"] == "w0" and told["reason"] == "LeastCost"
    assert told["prefillWorker"] is None and told["expectedHitTokens"] is None
    assert told["objectives"] == {"ttftMs": 500.0, "tpotMs": None}
    rows = told["candidates"]
    assert [(row["worker"], row["picked"]) for row in rows] == [("w1", True), ("w0", False), ("w2", False)]
    assert rows[1]["terms"]["queue_ms"] == 1.0 + 0.1 * 100 and rows[0]["terms"]["queue_ms"] == 0.0
    assert rows[0]["terms"]["hit_tokens"] is None, "not known is not zero"
    assert rows[2]["score"] is None and rows[2]["terms"]["ttft_ms"] == 602.0, "beyond the objective: no score"


def test_both_halves_of_a_pair_are_told() -> None:
    fleet = fleet_of(3, Role.PREFILL, Role.PREFILL, Role.DECODE)
    fleet.reserve(0, 100, 0)
    log = ExplainLog(fleet)
    log.remember(REQUEST, pick(fleet), 1, 0.0)
    told = log.find("r")[0].as_dict()
    assert (told["worker"], told["prefillWorker"], told["runnerUp"]) == ("w2", "w1", None)
    assert [row["worker"] for row in told["prefillCandidates"]] == ["w1", "w0"]
    assert told["prefillCandidates"][1]["terms"]["queue_ms"] > 0


def test_names_are_those_of_the_time() -> None:
    fleet = fleet_of(2)
    log = ExplainLog(fleet)
    log.remember(REQUEST, pick(fleet, "RoundRobin"), 1, 0.0)
    before = log.find("r")[0].as_dict()["worker"]
    for slot in (0, 1):
        fleet.remove(slot)
    fleet.add(Worker("new", "h", 1, "m"))
    assert log.find("r")[0].as_dict()["worker"] == before


def test_memory_is_bounded_in_picks_and_in_bytes() -> None:
    fleet = fleet_of(50)
    few, small, none = ExplainLog(fleet, 5), ExplainLog(fleet, 10_000, budget=40_000), ExplainLog(fleet, 0)
    for number in range(300):
        for log in (few, small, none):
            log.remember(replace(REQUEST, id=str(number // 2)), pick(fleet), number % 2 + 1, 0.0)
    assert len(few) == 5 and len(none) == 0 and none.bytes == 0
    assert 1 < len(small) < 20 and small.bytes <= 40_000
    assert small.bytes == sum(each.size for n in range(150) for each in small.find(str(n)))
    assert [each.attempt for each in few.find("149")] == [1, 2]
    assert [each.attempt for each in few.find("147")] == [2], "the oldest pick goes, the request's next one stays"
    assert few.find("0") == []


async def test_explanations_are_on_the_metrics_port_and_not_on_the_public_one() -> None:
    async with (
        FakeWorker() as w,
        process(f"--workers=m=http://127.0.0.1:{w.port}", "--policy=KVAware") as p,
        httpx.AsyncClient() as client,
    ):
        body = b'{"model":"m","prompt":"x","stream":true}'
        answer = await client.post(f"{p.base}/v1/completions", content=body, headers={"x-request-id": "a/b"})
        assert answer.status_code == 200
        told = (await client.get(f"{p.metrics}/penstock/v1/explain/a/b")).json()
        assert [one["policy"] for one in told["picks"]] == ["KVAware"]
        assert told["picks"][0]["candidates"][0]["worker"] == f"127.0.0.1:{w.port}"
        unknown = await client.get(f"{p.metrics}/penstock/v1/explain/never")
        assert unknown.status_code == 404 and "'never' is not among the last 1 picks" in unknown.text
        assert (await client.get(f"{p.base}/penstock/v1/explain/a/b")).status_code == 404
