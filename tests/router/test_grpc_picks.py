"""Picks over gRPC on real sockets: answers, refusals, leases, streams."""

import asyncio
import random

import grpc
import pytest
from grpc_stage import Stage, serving
from penstock.core.fleet import Role, Worker
from penstock.router.client import Retries, RouterClient, RouterError
from penstock.router.decisions import find_policy
from penstock.router.shell.models import ServedModel
from penstock.router.shell.rpc.refusals import Refused
from penstock.router.shell.tokens import TokenCollector
from penstock.router.v1 import router_pb2 as pb
from prometheus_client import CollectorRegistry, generate_latest

ONCE = Retries(attempts=1)


def asked(**fields: object) -> pb.PickRequest:
    """A pick's question that is fine unless a field says otherwise."""
    return pb.PickRequest(**({"model": "m", "prompt_tokens": 100, "max_tokens": 50} | fields))  # type: ignore[arg-type]


async def test_a_pick_reserves_what_its_release_frees() -> None:
    async with serving() as stage, RouterClient(stage.address) as client:
        pick = await client.pick(asked(request_id="r-1", tenant="t"))
        slot = stage.fleet.slot_of(pick.worker.name)
        assert slot is not None
        assert pick.request_id == "r-1"
        assert pick.worker.address == f"10.0.0.1:{stage.fleet.worker(slot).port}"
        assert (pick.worker.deployment, pick.worker.pool, pick.worker.role) == ("d", "serve", "PrefillDecode")
        assert stage.fleet.outstanding_tokens[slot] == 150
        assert pick.runner_up and pick.runner_up != pick.worker.name
        assert not pick.HasField("predicted_ttft_ms"), "what is not known is not set"
        assert await client.release(pick.lease_id, usage=pb.Usage(completion_tokens=5))
        assert not await client.release(pick.lease_id), "a lease is freed once"
        assert stage.fleet.reservations == 0
        assert stage.fleet.outstanding_tokens[slot] == 0
        assert dict(stage.counters.leases) == {("m", "Completed"): 1}


async def test_equal_requests_at_once_are_spread() -> None:
    async with serving(workers=8) as stage, RouterClient(stage.address) as client:
        picks = await asyncio.gather(*(client.pick(asked()) for _ in range(64)))
        per_worker = [sum(p.worker.name == f"ns/w{i}" for p in picks) for i in range(8)]
        assert max(per_worker) <= 2 * 64 / 8
        assert len({p.lease_id for p in picks}) == len({p.request_id for p in picks}) == 64
        assert stage.fleet.reservations == 64


@pytest.mark.parametrize(
    ("fields", "code", "reason", "word"),
    [
        ({"model": ""}, "INVALID_ARGUMENT", "InvalidRequest", "model"),
        ({"model": "other"}, "NOT_FOUND", "ModelNotFound", "served here: m"),
        ({"prompt_tokens": 0}, "INVALID_ARGUMENT", "InvalidRequest", "prompt_tokens"),
        ({"prompt_tokens": None}, "INVALID_ARGUMENT", "InvalidRequest", "prompt is not set"),
        ({"text": ""}, "INVALID_ARGUMENT", "InvalidRequest", "text"),
        ({"token_ids": pb.TokenIds()}, "INVALID_ARGUMENT", "InvalidRequest", "token_ids"),
        (
            {"block_hashes": pb.BlockHashes(hashes=[b"x" * 7], prompt_tokens=9)},
            "INVALID_ARGUMENT",
            "InvalidRequest",
            "8",
        ),
        ({"block_hashes": pb.BlockHashes(hashes=[b"x" * 32])}, "INVALID_ARGUMENT", "InvalidRequest", "prompt_tokens"),
        ({"request_id": "a b"}, "INVALID_ARGUMENT", "InvalidRequest", "request_id"),
        ({"request_id": "x" * 129}, "INVALID_ARGUMENT", "InvalidRequest", "128"),
        ({"tenant": "x" * 129}, "INVALID_ARGUMENT", "InvalidRequest", "tenant"),
        ({"max_tokens": 1 << 31}, "INVALID_ARGUMENT", "InvalidRequest", "max_tokens"),
        ({"exclude_workers": ["w"] * 65}, "INVALID_ARGUMENT", "InvalidRequest", "exclude_workers"),
        ({"exclude_workers": ["ns/w0", "ns/w1", "ns/w2"]}, "UNAVAILABLE", "NoWorkers", "m"),
    ],
)
async def test_what_cannot_be_picked_for_is_refused_by_name(
    fields: dict[str, object], code: str, reason: str, word: str
) -> None:
    """Over a call and over a stream alike; a stream lives on."""
    async with serving() as stage, RouterClient(stage.address, retries=ONCE) as client, client.session() as session:
        for ask in (client.pick, session.pick):
            with pytest.raises(RouterError) as refused:
                await ask(asked(**fields))
            assert (refused.value.code.name, refused.value.reason) == (code, reason)
            assert word in refused.value.message
            assert (refused.value.retry_after is not None) == (code == "UNAVAILABLE")
        assert (await session.pick(asked())).lease_id
        assert stage.fleet.reservations == 1


async def test_every_form_of_a_prompt_is_counted() -> None:
    forms: list[tuple[dict[str, object], int]] = [
        ({"token_ids": pb.TokenIds(ids=range(33))}, 33),
        ({"block_hashes": pb.BlockHashes(hashes=[bytes(32), bytes(8)], prompt_tokens=40)}, 40),
        ({"prompt_tokens": 7}, 7),
        ({"text": "x" * 400}, 101),
    ]
    async with serving() as stage, RouterClient(stage.address) as client:
        for fields, tokens in forms:
            assert (await client.pick(asked(**fields))).prompt_tokens == tokens


async def test_full_workers_say_when_to_ask_again() -> None:
    async with serving(workers=1, max_in_flight=1) as stage, RouterClient(stage.address, retries=ONCE) as client:
        await client.pick(asked())
        with pytest.raises(RouterError) as refused:
            await client.pick(asked())
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WorkersBusy")
        assert refused.value.retry_after == 1.0
        assert stage.counters.rejected[("m", "WorkersBusy")] == 1


async def test_the_client_asks_again_until_there_is_room() -> None:
    async with serving(workers=1, max_in_flight=1) as stage, RouterClient(stage.address) as client:
        held = await client.pick(asked())
        asyncio.get_running_loop().call_later(0.2, lambda: stage.server.service.leases.withdraw(held.lease_id))
        assert (await client.pick(asked(), timeout=10)).worker.name == "ns/w0"


async def test_leases_are_bounded() -> None:
    async with serving(max_leases=2) as stage, RouterClient(stage.address, retries=ONCE) as client:
        for _ in range(2):
            await client.pick(asked())
        with pytest.raises(RouterError) as refused:
            await client.pick(asked())
        assert refused.value.reason == "TooManyLeases"
        assert refused.value.worth_repeating


async def test_a_pick_that_nobody_releases_expires() -> None:
    async with serving() as stage, RouterClient(stage.address) as client:
        short = await client.pick(asked(lease_ttl_ms=50))
        long = await client.pick(asked(lease_ttl_ms=60_000))
        async with asyncio.timeout(10):
            while stage.fleet.reservations > 1:  # noqa: ASYNC110 - the fleet has no event
                await asyncio.sleep(0.02)
        assert stage.counters.leases[("m", "Expired")] == 1
        assert not await client.release(short.lease_id)
        assert await client.release(long.lease_id)


async def test_a_lease_lasts_no_longer_than_the_router_allows() -> None:
    async with serving(lease_seconds=7.0, max_lease_seconds=9.0) as stage, RouterClient(stage.address) as client:
        assert (await client.pick(asked())).lease_ttl_ms == 7000
        assert (await client.pick(asked(lease_ttl_ms=8000))).lease_ttl_ms == 8000
        assert (await client.pick(asked(lease_ttl_ms=80_000))).lease_ttl_ms == 9000


async def test_a_failing_worker_is_kept_out_and_a_lost_caller_blames_nobody() -> None:
    async with serving(workers=2) as stage, RouterClient(stage.address) as client:
        others = asked(exclude_workers=["ns/w1"])
        for outcome in (pb.OUTCOME_CANCELLED, pb.OUTCOME_UNAVAILABLE, pb.OUTCOME_UNSPECIFIED):
            await client.release((await client.pick(others)).lease_id, outcome)
        assert stage.fleet.failures[stage.fleet.slot_of("ns/w0")] == 0
        for outcome in (pb.OUTCOME_CONNECT_REFUSED, pb.OUTCOME_RESET, pb.OUTCOME_BAD_RESPONSE):
            await client.release((await client.pick(others)).lease_id, outcome)
        picked = {(await client.pick(asked())).worker.name for _ in range(6)}
        assert picked == {"ns/w1"}


async def test_a_success_forgives() -> None:
    async with serving(workers=1) as stage, RouterClient(stage.address) as client:
        await client.release((await client.pick(asked())).lease_id, pb.OUTCOME_RESET)
        assert stage.fleet.failures[0] == 1
        await client.release((await client.pick(asked())).lease_id, pb.OUTCOME_COMPLETED)
        assert stage.fleet.failures[0] == 0


async def test_a_lease_outlives_its_worker_without_harm() -> None:
    async with serving(workers=2) as stage, RouterClient(stage.address) as client:
        pick = await client.pick(asked())
        slot = stage.fleet.slot_of(pick.worker.name)
        assert slot is not None
        stage.fleet.remove(slot)
        assert await client.release(pick.lease_id, pb.OUTCOME_RESET)
        assert (await client.pick(asked())).worker.name != pick.worker.name
        assert stage.fleet.reservations == 1


async def test_an_unknown_outcome_is_refused() -> None:
    async with serving() as stage, RouterClient(stage.address, retries=ONCE) as client:
        pick = await client.pick(asked())
        with pytest.raises(RouterError, match="outcome 77"):
            await client.release(pick.lease_id, 77)  # type: ignore[arg-type]
        with pytest.raises(RouterError, match="lease_id"):
            await client.release("")
        assert stage.fleet.reservations == 1


async def test_a_request_whose_time_is_over_is_refused() -> None:
    """The call's own deadline is the request's, where it ends first."""
    async with serving() as stage:
        for remaining, deadline_ms, refused in ((0.0, 60_000, True), (60.0, 60_000, False), (None, 0, False)):
            outcome = await answered(stage, asked(deadline_ms=deadline_ms), remaining)
            assert (outcome == "DeadlinePassed") == refused


async def answered(stage: Stage, message: pb.PickRequest, remaining: float | None) -> str:
    """The service's own answer to a call that has so many seconds left: a worker, or the reason of its refusal."""
    try:
        service = stage.server.service
        _, answer = service.decide(message, await service.describe(message, remaining))
    except Refused as refused:
        return refused.reason
    return answer.worker.name


async def test_a_block_releases_what_it_leased_however_it_ends() -> None:
    async with serving() as stage, RouterClient(stage.address) as client:
        async with client.leased(asked()) as lease:
            assert stage.fleet.reservations == 1
            lease.usage = pb.Usage(completion_tokens=1)
        with pytest.raises(ValueError, match="mine"):
            async with client.leased(asked()):
                raise ValueError("mine")
        with pytest.raises(RouterError):
            async with client.leased(asked()) as lease:
                lease.outcome = pb.OUTCOME_RESET
                raise RouterError(grpc.StatusCode.UNKNOWN, "", "x")
        assert stage.fleet.reservations == 0
        ends = {reason: n for (_, reason), n in stage.counters.leases.items()}
        assert ends == {"Completed": 1, "Cancelled": 1, "Reset": 1}


async def test_answers_on_a_stream_find_their_questions() -> None:
    async with serving(workers=4) as stage, RouterClient(stage.address) as client:
        async with client.session(max_pending=16) as session:
            picks = await asyncio.gather(*(session.pick(asked(request_id=f"r-{i}")) for i in range(200)))
            assert [p.request_id for p in picks] == [f"r-{i}" for i in range(200)]
            assert stage.fleet.reservations == 200
            assert all(await asyncio.gather(*(session.release(p.lease_id) for p in picks)))
        assert stage.fleet.reservations == 0
        assert stage.server.service.streams == 0


async def test_a_broken_stream_tells_everybody_who_waits() -> None:
    async with serving() as stage, RouterClient(stage.address) as client:
        session = client.session()
        async with session:
            await session.pick(asked())
            await stage.server.stop(0)
            with pytest.raises(RouterError) as broken:
                await session.pick(asked())
            assert broken.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_streams_are_bounded_and_counted_out() -> None:
    async with serving(grpc_max_streams=1) as stage, RouterClient(stage.address) as client:
        async with client.session() as first:
            await first.pick(asked())
            with pytest.raises(RouterError, match="TooManyStreams"):
                async with client.session() as second:
                    await second.pick(asked())
        async with client.session() as third:
            assert (await third.pick(asked())).lease_id


async def test_two_thousand_picks_with_broken_ones_leave_nothing_behind() -> None:
    """One in a hundred is cancelled by its caller at some moment; the rest are released."""
    chance = random.Random(4)
    async with serving(workers=8, lease_seconds=2.0) as stage, RouterClient(stage.address) as client:
        gate = asyncio.Semaphore(64)

        async def one() -> None:
            async with gate:
                task = asyncio.ensure_future(client.pick(asked(), timeout=30))
                if chance.random() < 0.01:
                    await asyncio.sleep(chance.random() * 0.02)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    return
                await client.release((await task).lease_id, timeout=30)

        await asyncio.gather(*(one() for _ in range(2000)))
        async with asyncio.timeout(10):
            while stage.fleet.reservations:  # noqa: ASYNC110 - the fleet has no event
                await asyncio.sleep(0.02)
        assert len(stage.server.service.leases) == 0
        assert not stage.fleet.in_flight.any()
        assert not stage.fleet.outstanding_tokens.any()
        assert stage.counters.leases[("m", "Completed")] >= 1950


async def test_a_pair_is_picked_within_one_domain_and_both_hold_a_place() -> None:
    async with serving(workers=0) as stage, RouterClient(stage.address) as client:
        stage.models.replace([ServedModel("m", find_policy("LeastLoaded"), 1)])
        for name, role, domain in (
            ("p1", Role.PREFILL, "a"),
            ("d1", Role.DECODE, "a"),
            ("p2", Role.PREFILL, "b"),
            ("d2", Role.DECODE, "b"),
        ):
            stage.fleet.set_ready(stage.fleet.add(Worker(name, "10.0.0.1", 8000, "m", role=role, domain=domain)), True)
        outcomes = (pb.OUTCOME_COMPLETED, pb.OUTCOME_CANCELLED, pb.OUTCOME_RESET)
        picks = [await client.pick(asked(prompt_tokens=4096)) for _ in outcomes]
        assert {p.worker.domain for p in picks} == {"a", "b"}
        assert all(p.worker.role == "Decode" and p.prefill_worker.role == "Prefill" for p in picks)
        assert all(p.worker.domain == p.prefill_worker.domain for p in picks)
        assert stage.fleet.reservations == 2 * len(picks)
        short = await client.pick(asked(prompt_tokens=16))
        assert not short.HasField("prefill_worker"), "a short prompt stays where it is decoded"
        for pick, outcome in zip([*picks, short], [*outcomes, pb.OUTCOME_COMPLETED], strict=True):
            assert await client.release(pick.lease_id, outcome)
        assert stage.fleet.reservations == 0
        failed = stage.fleet.slot_of(picks[2].worker.name)
        assert stage.fleet.failures.sum() == stage.fleet.failures[failed] <= 1, "a prefill worker is not blamed"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prefill_workers_place_is_free_once_the_prompt_has_run(streamed: bool) -> None:
    async with serving(workers=0, policy="KVAware") as stage, RouterClient(stage.address) as client:
        stage.models.replace([ServedModel("m", find_policy("KVAware"), 1)])
        for name, role in (("p", Role.PREFILL), ("d", Role.DECODE)):
            stage.fleet.set_ready(stage.fleet.add(Worker(name, "10.0.0.1", 8000, "m", role=role)), True)
        hashes = pb.BlockHashes(hashes=[bytes([i]) * 32 for i in range(256)], prompt_tokens=4100)
        pick = await client.pick(asked(block_hashes=hashes, request_id="pair"))
        assert pick.prefill_worker.name == "p"
        prefill, decode = (stage.fleet.slot_of(name) for name in "pd")
        assert prefill is not None and decode is not None and stage.fleet.in_flight[prefill] == 1
        usage = pb.Usage(prompt_tokens=4100, cached_tokens=32)
        async with client.session() as session:
            say = session.prefilled if streamed else client.prefilled
            assert await say(pick.lease_id, usage)
            assert stage.fleet.in_flight[prefill] == 0, "nobody waits behind a prompt that has run"
            assert stage.fleet.in_flight[decode] == 1 and not stage.fleet.pending[decode].any()
            assert await say(pick.lease_id, usage), "said twice it counts once"
        assert stage.prompts.books.readings()["m"].requests == 1
        assert (await client.explain("pair")).picks[0].measured_hit_tokens == 32
        # The decode worker's own figure is about the transfer, not about anybody's cache.
        assert await client.release(pick.lease_id, usage=pb.Usage(cached_tokens=4096))
        reading = stage.prompts.books.readings()["m"]
        assert (reading.requests, reading.measured_tokens, stage.fleet.reservations) == (1, 32, 0)
        assert not await client.prefilled(pick.lease_id)


@pytest.mark.parametrize("form", ["hashes", "ids"])
async def test_a_prompt_goes_where_it_was_sent_before(form: str) -> None:
    """Whichever way its blocks are told; what the caller says of the engine's own count reaches the hit ledger."""
    ids = list(range(70))
    named = {
        "hashes": {"block_hashes": pb.BlockHashes(hashes=[bytes([i]) * 32 for i in range(4)], prompt_tokens=70)},
        "ids": {"token_ids": pb.TokenIds(ids=ids)},
    }[form]
    async with serving(workers=4, policy="KVAware") as stage, RouterClient(stage.address) as client:
        first = await client.pick(asked(**named))
        await client.release(first.lease_id)
        again = await client.pick(asked(**named, request_id="again"))
        assert again.worker.name == first.worker.name
        assert again.expected_hit_tokens == 64
        assert (await client.explain("again")).picks[0].expected_hit_tokens == 64
        await client.release(again.lease_id, usage=pb.Usage(prompt_tokens=70, cached_tokens=48))
        other = await client.pick(asked(prompt_tokens=70))
        assert not other.expected_hit_tokens
        seen = [line for line in hit_lines(stage) if not line.endswith(" 0.0")]
        assert any("48.0" in line for line in seen), seen
        assert any("64.0" in line for line in seen), seen


def hit_lines(stage: Stage) -> list[str]:
    """What the metrics say of predicted and measured hits."""
    registry = CollectorRegistry()
    registry.register(TokenCollector(stage.prompts.tokens.counts, stage.prompts.books))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("host", "sidecar", "address", "headers"),
    [
        ("10.0.0.2", 8001, "10.0.0.2:8001", {"x-prefiller-host-port": "10.0.0.1:8000"}),
        ("fd00::2", 8001, "[fd00::2]:8001", {"x-prefiller-host-port": "10.0.0.1:8000"}),
        ("10.0.0.2", None, "10.0.0.2:8000", {}),
    ],
)
async def test_a_pick_says_where_to_send_the_request_and_with_which_header(
    host: str, sidecar: int | None, address: str, headers: dict[str, str]
) -> None:
    """A pair goes to the sidecar, if the decode worker has one; everything else to the worker itself."""
    async with serving(workers=0) as stage, RouterClient(stage.address) as client:
        stage.models.replace([ServedModel("m", find_policy("LeastLoaded"), 1)])
        for worker in (
            Worker("p", "10.0.0.1", 8000, "m", role=Role.PREFILL),
            Worker("d", host, 8000, "m", role=Role.DECODE, sidecar_port=sidecar),
        ):
            stage.fleet.set_ready(stage.fleet.add(worker), True)
        pair = await client.pick(asked(prompt_tokens=4096))
        assert pair.prefill_worker.name == "p" and pair.worker.name == "d"
        assert (pair.address, dict(pair.headers)) == (address, headers)
        alone = await client.pick(asked(prompt_tokens=16))
        assert (alone.address, dict(alone.headers)) == (alone.worker.address, {})
