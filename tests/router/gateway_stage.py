"""A gateway on a real socket over scripted workers."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from fake_worker import FakeWorker, Script, plain
from penstock.core.fleet import Fleet, Role, Worker
from penstock.router.decisions import find_policy
from penstock.router.shell.discovery.static import install
from penstock.router.shell.gateway import Gateway
from penstock.router.shell.models import ModelTable
from penstock.router.shell.settings import Settings


@dataclasses.dataclass
class Stage:
    """A gateway, its workers and its port."""

    gateway: Gateway
    workers: list[FakeWorker]
    port: int

    async def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Send bytes, read until the gateway closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if half_close:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    async def post(
        self, body: bytes, path: bytes = b"/v1/completions", fields: bytes = b"", version: bytes = b"1.1"
    ) -> bytes:
        """POST a body on a connection of its own and read the whole answer."""
        return await self.raw(request(body, path, fields + b"connection: close\r\n", version))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true; fail when it never does."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the gateway has no event for every state a test looks at
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Wait until no request is under way and nothing is held for one."""
        gateway = self.gateway
        await self.until(
            lambda: not gateway.exchanges and not gateway.fleet.reservations and not gateway.buffered_bytes
        )


def request(body: bytes, path: bytes = b"/v1/completions", fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A POST with a length."""
    head = b"POST %b HTTP/%b\r\nHost: g\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path, version, len(body), fields) + body


@asynccontextmanager
async def running(
    *scripts: Script, policy: str = "RoundRobin", roles: Sequence[Role] = (), **changes: object
) -> AsyncIterator[Stage]:
    """A gateway over one worker for each script, of these roles; `changes` are settings."""
    settings = dataclasses.replace(Settings(host="127.0.0.1", port=0, policy=policy), **changes)  # type: ignore[arg-type]
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(FakeWorker(script, f"w{i}")) for i, script in enumerate(scripts or (plain,))
        ]
        fleet, models = Fleet(max_in_flight=settings.max_in_flight), ModelTable()
        does = [*roles, *[Role.PREFILL_DECODE] * (len(workers) - len(roles))]
        known = [
            Worker(w.name, "127.0.0.1", w.port, "m", role, domain="kv") for w, role in zip(workers, does, strict=True)
        ]
        install(known, fleet, models, find_policy(policy), 1)
        gateway = Gateway(settings, fleet, models)
        port = await gateway.start()
        try:
            yield Stage(gateway, workers, port)
        finally:
            await gateway.close()
