"""What is fixed about a worker for as long as it lives."""

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What a worker does for a request; the API writes the same words in CamelCase."""

    PREFILL_DECODE = 0
    PREFILL = 1
    DECODE = 2

    @property
    def api_name(self) -> str:
        """The word of the Kubernetes API: `PrefillDecode`, `Prefill`, `Decode`."""
        return _API_NAMES[self]

    @classmethod
    def from_api(cls, name: str) -> "Role":
        """Role of an API word; `ValueError` names the known ones."""
        for role, known in _API_NAMES.items():
            if known == name:
                return role
        raise ValueError(f"unknown role {name!r}; known roles are {', '.join(_API_NAMES.values())}")


_API_NAMES = {Role.PREFILL_DECODE: "PrefillDecode", Role.PREFILL: "Prefill", Role.DECODE: "Decode"}


@dataclass(frozen=True, slots=True)
class Worker:
    """One engine replica.

    `name` is unique in the fleet (`namespace/pod`). `domain` is the transfer domain: prefill and decode are
    paired only inside one, so it holds whatever must be equal for KV to move (the KV-compatibility hash, and
    the link that carries it).

    What is known of its speed, `None` while it is not: `prefill_ms` and `decode_ms` are the profile's (a, b, c) in
    milliseconds, `experts_ms` its (e, f) (see `core.models.latency`), `transfer_ms` the milliseconds a token's KV
    takes to come from a prefill worker. `price_per_hour` is the whole worker's, in USD.

    `sidecar_port` is where a decode worker's P/D sidecar takes requests whose legs it is to run, `None` without one.
    """

    name: str
    host: str
    port: int
    model: str
    role: Role = Role.PREFILL_DECODE
    accelerator: str = ""
    domain: str = ""
    namespace: str = ""
    deployment: str = ""
    pool: str = ""
    prefill_ms: tuple[float, float, float] | None = None
    kv_capacity_tokens: int | None = None
    decode_ms: tuple[float, float, float] | None = None
    experts_ms: tuple[float, float] = (0.0, 0.0)
    transfer_ms: float | None = None
    price_per_hour: float | None = None
    sidecar_port: int | None = None

    @property
    def address(self) -> str:
        """Host and port of its engine as URLs and Host headers have them: an IPv6 address stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
