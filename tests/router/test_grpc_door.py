"""Who may come in by the gRPC port, and what it says of itself: TLS, tokens, health, reflection, Watch, Explain."""

import asyncio
import datetime
import ipaddress
import os
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_stage import serving
from penstock.core.fleet import Worker
from penstock.router.client import Retries, RouterClient, RouterError, Tls
from penstock.router.shell.rpc.auth import Tokens
from penstock.router.shell.settings import parse_settings
from penstock.router.v1 import router_pb2 as pb
from test_process import free_port, process

ONCE = Retries(attempts=1)
PICK = pb.PickRequest(model="m", prompt_tokens=10, max_tokens=10)


class Authority:
    """A certificate authority, and the files it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._certificate = self._sign(name, self._key, name, ca=True)
        self.roots = self._certificate.public_bytes(serialization.Encoding.PEM)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.roots)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, *, ca: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate and its key, replaced in one step as a mounted Secret is."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._sign(subject, key, self._certificate.subject)
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, content in zip(paths, (made.public_bytes(serialization.Encoding.PEM), pem), strict=True):
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)
        return paths


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def refused(client: RouterClient) -> RouterError:
    """The error of a pick that must not succeed."""
    with pytest.raises(RouterError) as error:
        await client.pick(PICK, timeout=5)
    return error.value


async def test_tls_wants_a_caller_that_trusts_it(authority: Authority) -> None:
    certificate, key = authority.issue("router")
    async with serving(grpc_tls_cert=str(certificate), grpc_tls_key=str(key)) as stage:
        async with RouterClient(stage.address, tls=Tls(roots=authority.roots)) as client:
            assert (await client.pick(PICK)).lease_id
        async with RouterClient(stage.address, retries=ONCE) as plain:
            assert (await refused(plain)).code is grpc.StatusCode.UNAVAILABLE
        stranger = Authority(authority.folder / ".." / authority.folder.name)
        async with RouterClient(stage.address, tls=Tls(roots=stranger.roots), retries=ONCE) as client:
            assert (await refused(client)).code is grpc.StatusCode.UNAVAILABLE
        assert stage.fleet.reservations == 1


async def test_a_client_authority_wants_a_certificate_of_its_own(authority: Authority) -> None:
    certificate, key = authority.issue("router")
    mine, my_key = (path.read_bytes() for path in authority.issue("caller"))
    flags = {"grpc_tls_cert": str(certificate), "grpc_tls_key": str(key), "grpc_client_ca": str(authority.path)}
    async with serving(**flags) as stage:
        known = Tls(roots=authority.roots, certificate=mine, key=my_key)
        async with RouterClient(stage.address, tls=known) as client:
            assert (await client.pick(PICK)).lease_id
        async with RouterClient(stage.address, tls=Tls(roots=authority.roots), retries=ONCE) as client:
            assert (await refused(client)).code is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    certificate, key = old.issue("router")
    async with serving(grpc_tls_cert=str(certificate), grpc_tls_key=str(key)) as stage:
        async with RouterClient(stage.address, tls=Tls(roots=old.roots)) as client:
            assert (await client.pick(PICK)).lease_id
        for renewed, path in zip(new.issue("router"), (certificate, key), strict=True):
            renewed.replace(path)
        async with RouterClient(stage.address, tls=Tls(roots=new.roots)) as client:
            assert (await client.pick(PICK)).lease_id


async def test_a_token_opens_every_call_and_nothing_else_does(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# callers\nfirst-secret\n\nsecond-secret\n")
    async with serving(grpc_token_file=str(tokens)) as stage:
        for good in ("first-secret", "second-secret"):
            async with RouterClient(stage.address, token=good) as client, client.session() as session:
                pick = await session.pick(PICK)
                assert await client.release(pick.lease_id)
        for bad in (None, "", "wrong", "# callers", "first-secret second-secret"):
            async with RouterClient(stage.address, token=bad, retries=ONCE) as client:
                assert (await refused(client)).reason == "Unauthenticated"
                with pytest.raises(RouterError, match="Unauthenticated"):
                    await client.release("x")
                with pytest.raises(RouterError, match="Unauthenticated"):
                    await anext(client.watch())
                async with client.session() as session:
                    with pytest.raises(RouterError, match="Unauthenticated"):
                        await session.pick(PICK)
        assert stage.fleet.reservations == 0
        async with grpc.aio.insecure_channel(stage.address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, "a kubelet's probe has no token"


def test_tokens_follow_their_file_and_survive_its_loss(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("old\n")
    tokens = Tokens(path)
    assert tokens.knows(b"old")
    path.write_text("renewed\n")
    os.utime(path, ns=(1, 1))
    assert tokens.knows(b"renewed")
    assert not tokens.knows(b"old")
    path.write_text("# nobody\n")
    assert tokens.knows(b"renewed"), "an empty file locks nobody out"
    path.unlink()
    assert tokens.knows(b"renewed")
    path.write_text("")
    with pytest.raises(ValueError, match="holds no token"):
        Tokens(path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--grpc-tls-cert=x"], "--grpc-tls-key"),
        (["--grpc-client-ca=x"], "--grpc-tls-cert"),
        (["--max-leases=0"], "--max-leases"),
        (["--lease-seconds=-1"], "--lease-seconds"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(flags, {})
    assert said in capsys.readouterr().err


async def test_a_broken_certificate_is_an_error_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    path.write_text("no certificate")
    with pytest.raises(ValueError, match="PEM"):
        async with serving(grpc_tls_cert=str(path), grpc_tls_key=str(path)):
            pass


async def test_reflection_lists_the_service() -> None:
    async with serving() as stage, grpc.aio.insecure_channel(stage.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()
        names = {service.name for service in answer.list_services_response.service}
        assert {"penstock.router.v1.Router", "grpc.health.v1.Health"} <= names


async def test_a_message_larger_than_allowed_is_refused() -> None:
    async with serving(grpc_max_message_bytes=4096) as stage, RouterClient(stage.address, retries=ONCE) as client:
        big = pb.PickRequest(model="m", text="x" * 5000)
        with pytest.raises(RouterError) as error:
            await client.pick(big)
        assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await client.pick(PICK)).lease_id


async def test_a_port_in_use_is_said_at_once() -> None:
    async with serving() as stage:
        port = int(stage.address.rpartition(":")[2])
        with pytest.raises(OSError, match="cannot be had"):
            async with serving(grpc_port=port):
                pass


async def test_a_draining_router_takes_releases_and_no_picks() -> None:
    async with serving() as stage, RouterClient(stage.address, retries=ONCE) as client:
        held = await client.pick(PICK)
        await stage.server.drain()
        error = await refused(client)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "Draining")
        assert await client.release(held.lease_id)
        async with grpc.aio.insecure_channel(stage.address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="penstock.router.v1.Router")
            )
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_the_end_gives_every_lease_back() -> None:
    async with serving() as stage, RouterClient(stage.address) as client:
        await asyncio.gather(*(client.pick(PICK) for _ in range(10)))
    assert stage.fleet.reservations == 0


async def test_watch_shows_the_fleet_as_it_changes() -> None:
    async with serving(workers=2) as stage, RouterClient(stage.address) as client:
        states = client.watch("m", interval_ms=100)
        first = await anext(states)
        (model,) = first.models
        assert [w.worker.name for w in model.workers] == ["ns/w0", "ns/w1"]
        assert all(w.in_rotation and w.ready and not w.withdrawn for w in model.workers)
        assert not model.workers[0].HasField("kv_usage"), "never sampled is not zero"
        pick = await client.pick(PICK)
        loaded = {w.worker.name: w.in_flight for w in (await anext(states)).models[0].workers}
        assert loaded[pick.worker.name] == 1
        assert sum(loaded.values()) == 1
        stage.fleet.withdraw(0)
        stage.fleet.sample(1, 3.0, 0.5, asyncio.get_running_loop().time())
        after = await anext(states)
        w0, w1 = after.models[0].workers
        assert after.epoch > first.epoch
        assert (w0.withdrawn, w0.in_rotation) == (True, False)
        assert (w1.foreign_requests, w1.kv_usage) == (3.0, 0.5)
        await states.aclose()
        empty = client.watch("other")
        assert not (await anext(empty)).models
        await empty.aclose()
        with pytest.raises(RouterError, match="interval_ms"):
            await anext(client.watch(interval_ms=5))
        async with asyncio.timeout(10):
            while stage.server.service.streams:  # noqa: ASYNC110 - the service has no event
                await asyncio.sleep(0.02)


async def test_explain_names_every_candidate_best_first() -> None:
    async with serving(workers=3) as stage, RouterClient(stage.address, retries=ONCE) as client:
        pick = await client.pick(pb.PickRequest(model="m", prompt_tokens=10, request_id="why", tenant="t"))
        told = await client.explain("why")
        (why,) = told.picks
        assert (told.request_id, told.model) == ("why", "m")
        assert (why.policy, why.reason, why.runner_up) == (pick.policy, pick.reason, pick.runner_up)
        assert why.candidate_count == len(why.candidates) == 3
        assert [c.worker for c in why.candidates if c.picked] == [pick.worker.name] == [why.candidates[0].worker]
        assert (why.prompt_tokens, why.attempt) == (10, 1)
        assert not why.HasField("objective_ttft_ms")
        stage.fleet.remove(stage.fleet.slot_of(pick.worker.name) or 0)
        stage.fleet.add(Worker("ns/newcomer", "10.0.0.9", 1, "m"))
        (again,) = (await client.explain("why")).picks
        assert [c.worker for c in again.candidates] == [c.worker for c in why.candidates], "names as they were then"
        with pytest.raises(RouterError, match="RequestNotFound"):
            await client.explain("nobody")
        with pytest.raises(RouterError, match="request_id"):
            await client.explain("")


async def test_the_process_serves_picks_counts_leases_and_drains() -> None:
    port = free_port()
    async with (
        process("--workers=m=http://127.0.0.1:9", f"--grpc-port={port}", "--drain-lag=2") as running,
        RouterClient(f"127.0.0.1:{port}", retries=ONCE) as client,
        httpx.AsyncClient() as http,
    ):
        held = await client.pick(PICK, timeout=10)
        assert held.worker.address == "127.0.0.1:9"
        page = (await http.get(f"{running.metrics}/metrics")).text
        assert "penstock_router_leases 1.0" in page
        running.process.terminate()
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.pick(PICK)
                except RouterError as error:
                    assert error.reason == "Draining"
                    break
        assert await client.release(held.lease_id), "what runs may still end"
        assert await asyncio.wait_for(running.process.wait(), 20) == 0
