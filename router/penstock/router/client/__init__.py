"""A Python client of `penstock.router.v1.Router`, for gateways and SDKs that send requests to workers themselves.

    async with RouterClient("penstock-router.penstock:9000", token="...") as client:
        async with client.leased(PickRequest(model="m", prompt_tokens=512, max_tokens=128)) as lease:
            answer = await post(lease.pick.address, headers=dict(lease.pick.headers), ...)
            lease.usage = Usage(completion_tokens=answer.tokens)

A lease is released when the block ends: completed, or cancelled when it ends by an exception, unless the block said
something more exact in `lease.outcome`.
"""

from penstock.router.client.calls import Lease, Retries, RouterClient, Tls
from penstock.router.client.errors import RouterError
from penstock.router.client.stream import PickSession

__all__ = ["Lease", "PickSession", "Retries", "RouterClient", "RouterError", "Tls"]
