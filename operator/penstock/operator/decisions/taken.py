"""WorkerPool names that two would have: dashes join deployment, pool and class, and may stand inside each of them.

Pool `b-c` of deployment `a` and pool `c` of deployment `a-b` are both `a-b-c-...`. Whoever comes second is refused:
applied by force, one deployment would take the other's workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.api import Reason
from penstock.operator.decisions.observed import Observed
from penstock.operator.decisions.plan import PoolPlan
from penstock.operator.decisions.refusal import Refusal


def check_names(seen: Observed, pools: Sequence[PoolPlan]) -> None:
    """Raises `Refusal` where a planned WorkerPool's name is another's, in this deployment or beside it."""
    first: dict[str, PoolPlan] = {}
    for pool in pools:
        other = first.setdefault(pool.name, pool)
        if other is not pool:
            raise _taken(pool, f"would also be the name of pool {other.pool} on {other.accelerator}")
        if pool.name in seen.taken:
            raise _taken(pool, f"belongs to ModelDeployment {seen.taken[pool.name]}")


def _taken(pool: PoolPlan, why: str) -> Refusal:
    return Refusal(
        Reason.POOL_NAME_TAKEN,
        f"pool {pool.pool} on {pool.accelerator} is WorkerPool {pool.name}, which {why}; give the pool another name",
    )
