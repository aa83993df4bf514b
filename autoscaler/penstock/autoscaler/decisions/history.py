"""What the guard must remember between cycles, and where it comes from after a restart.

Wishes of the last minutes make scale-in patient; times of the last scale-in make it slow; classes that gave no capacity
are left alone for a while. Nothing of it is needed to be safe: an empty history means that nothing is taken away until
a whole window was observed again, and that a class without capacity is tried once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from penstock.autoscaler.decisions.snapshot import Key

Wish = tuple[float, int]
"""Time and replicas."""
PoolName = tuple[str, str]
"""Namespace and name of a WorkerPool."""


@dataclass(frozen=True, slots=True)
class History:
    """The guard's memory. Times in epoch seconds."""

    since: float
    """When observation began."""
    wishes: Mapping[PoolName, tuple[Wish, ...]] = field(default_factory=dict)
    scaled_in: Mapping[Key, float] = field(default_factory=dict)
    given_up: Mapping[PoolName, float] = field(default_factory=dict)
    """Until when no more is asked of the class."""

    def most_wished(self, pool: PoolName, after: float) -> int | None:
        """The largest wish since `after`; None where there was none."""
        return max((count for at, count in self.wishes.get(pool, ()) if at >= after), default=None)

    def last_wished(self, pool: PoolName) -> int | None:
        """The last wish; None where there was none lately."""
        wishes = self.wishes.get(pool)
        return wishes[-1][1] if wishes else None

    def wishing(self, wished: Mapping[PoolName, int], now: float, window_s: float) -> "History":
        """With these wishes remembered, and those older than the window forgotten."""
        wishes = {
            pool: kept
            for pool, past in self.wishes.items()
            if (kept := tuple(wish for wish in past if wish[0] >= now - window_s))
        }
        for pool, count in wished.items():
            wishes[pool] = (*wishes.get(pool, ()), (now, count))
        return replace(self, wishes=wishes)

    def after_scale_in(self, deployment: Key, now: float) -> "History":
        """With a scale-in remembered."""
        return replace(self, scaled_in={**self.scaled_in, deployment: now})

    def giving_up(self, pool: PoolName, until: float) -> "History":
        """With a class left alone until then."""
        return replace(self, given_up={**self.given_up, pool: until})

    def exhausted(self, pool: PoolName, now: float) -> bool:
        """Whether the class is left alone now."""
        return self.given_up.get(pool, 0.0) > now

    def forgetting(self, pools: set[PoolName], deployments: set[Key], now: float) -> "History":
        """Without what is gone or over, so that it does not grow with the past."""
        return replace(
            self,
            wishes={pool: wishes for pool, wishes in self.wishes.items() if pool in pools},
            scaled_in={key: at for key, at in self.scaled_in.items() if key in deployments},
            given_up={pool: until for pool, until in self.given_up.items() if pool in pools and until > now},
        )
