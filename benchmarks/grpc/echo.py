"""The baseline: gRPC's own asyncio server, answering the same messages with a constant. Prints its port."""

from collections.abc import AsyncIterator

import grpc
import uvloop
from penstock.router.v1 import router_pb2, router_pb2_grpc

PICK = router_pb2.PickResponse(
    request_id="0123456789ab-1",
    lease_id="0123456789abcdefghijkl",
    lease_ttl_ms=300_000,
    worker=router_pb2.Worker(name="127.0.0.1:9001", address="127.0.0.1:9001", role="PrefillDecode"),
    policy="LeastLoaded",
    reason="LeastRecentlyPicked",
    runner_up="127.0.0.1:9002",
    prompt_tokens=2048,
)


class Echo(router_pb2_grpc.RouterServicer):
    """Answers, and decides nothing."""

    async def Pick(  # noqa: N802
        self, message: router_pb2.PickRequest, context: grpc.aio.ServicerContext
    ) -> router_pb2.PickResponse:
        """A constant."""
        return PICK

    async def Release(  # noqa: N802
        self, message: router_pb2.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> router_pb2.ReleaseResponse:
        """A constant."""
        return router_pb2.ReleaseResponse(released=True)

    async def PickStream(  # noqa: N802
        self, messages: AsyncIterator[router_pb2.PickStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[router_pb2.PickStreamResponse]:
        """Constants, one for each question."""
        async for message in messages:
            answer = router_pb2.PickStreamResponse(correlation_id=message.correlation_id)
            if message.WhichOneof("question") == "pick":
                answer.pick.CopyFrom(PICK)
            else:
                answer.release.released = True
            yield answer


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    router_pb2_grpc.add_RouterServicer_to_server(Echo(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
