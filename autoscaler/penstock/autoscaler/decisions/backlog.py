"""What will wait for a worker that is asked for now, at the time it first serves.

A step in the load finds too few workers for as long as new ones take to start, and all that time the queue grows. A
plan for the load alone then leaves the queue where it is: whoever came during the start-up waits long after it. So the
start-up is priced in: what waits now, and what will come meanwhile beyond what the present workers serve, is planned to
be worked off; and a queue that the present workers empty sooner than anybody could start needs nobody new.
"""

import math
from collections.abc import Mapping, Sequence

from penstock.autoscaler.decisions.capacity import Throughput
from penstock.autoscaler.decisions.snapshot import Pods, PoolView, RoleLoad


def backlog(load: RoleLoad, pools: Sequence[PoolView], speeds: Mapping[str, Throughput], busy: float) -> float:
    """Requests of a role that will wait when a worker asked for now first serves.

    `pools` are the role's, `speeds` what one worker serves within the objectives, `busy` the share of its time that
    this leaves it busy: a worker with a queue is busy all the time. Workers that are starting serve for as long as they
    have been at it already: so much sooner are they ready; where nobody knows how long, they are taken to be halfway.
    Where a ready worker's speed is not known, the ready ones are taken to keep up with what comes.
    """
    startup_s = max((pool.startup_s for pool in pools), default=0.0)
    if any(pool.pods.ready and pool.name not in speeds for pool in pools):
        return load.waiting
    known = [(pool.pods, speeds[pool.name].requests_per_s / busy) for pool in pools if pool.name in speeds]
    served = math.fsum((pods.ready + pods.starting * _share(pods, startup_s)) * speed for pods, speed in known)
    return max(0.0, load.waiting + (load.level - served) * startup_s)


def _share(pods: Pods, startup_s: float) -> float:
    """Share of the time until a worker asked for now serves in which those that are starting will serve too."""
    if pods.starting_s is None or startup_s <= 0:
        return 0.5
    return min(1.0, max(0.0, pods.starting_s) / startup_s)
