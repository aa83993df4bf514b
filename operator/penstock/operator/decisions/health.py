"""How a pool's workers are, in numbers and names: what conditions and messages are made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penstock.operator.decisions.observed import Node, Pod
from penstock.operator.decisions.times import rfc3339
from penstock.operator.decisions.workers import WorkerState

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ErrInvalidImageName"}
)
CRASH_REASONS = frozenset(
    {"CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
)


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """One WorkerPool's workers as last seen. Trouble is given as sentences about single pods, worst first."""

    name: str
    pool: str
    accelerator: str
    wanted: int
    least: int
    """Fewest workers the pool's range allows."""
    unavailable: int
    """Workers that may be missing, by the roll-out policy."""
    live: int
    ready: int
    updated: int
    terminating: int
    rolling: bool
    unscheduled: int
    """Live workers that no node has taken yet."""
    placement: tuple[tuple[str, int], ...] = ()
    """Node and number of live workers on it."""
    no_room: str = ""
    """The scheduler's sentence about the first worker it found no node for."""
    refused: str = ""
    """Why the cluster makes no pods: a quota or an admission rule."""
    image: tuple[str, ...] = ()
    crashing: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()
    overdue: tuple[str, ...] = ()
    """Pods on their way out beyond their grace: their node does not answer."""
    next_deadline: float | None = None
    """Epoch seconds at which a pod on its way out becomes overdue."""

    @property
    def missing(self) -> int:
        """Workers wanted that are not ready."""
        return max(0, self.wanted - self.ready)


def health_of(state: WorkerState, least: int, nodes: Iterable[Node], now: float) -> PoolHealth:
    """The health of a WorkerPool's workers. `now` in epoch seconds."""
    target, live = state.target, [pod for pod in state.pods if pod.live]
    states = (state.current, *state.old)
    down = {node.name for node in nodes if not node.ready}
    deadlines = [pod.gone_by for pod in state.pods if pod.gone_by is not None and not pod.finished]
    return PoolHealth(
        name=state.pool.meta.name,
        pool=state.pool.pool_name,
        accelerator=state.pool.accelerator,
        wanted=target.replicas,
        least=least,
        unavailable=target.rollout.unavailable(target.replicas),
        live=len(live),
        ready=sum(s.ready for s in states),
        updated=state.current.live,
        terminating=sum(s.terminating for s in states),
        rolling=state.rolling,
        unscheduled=sum(not pod.scheduled for pod in live),
        placement=_placement(live),
        no_room=next((pod.unschedulable for pod in live if pod.unschedulable), ""),
        refused=next((r.failure for r in state.replica_sets if r.failure and r.replicas), ""),
        image=tuple(_say(pod) for pod in live if pod.waiting in IMAGE_REASONS),
        crashing=tuple(_say(pod) for pod in live if pod.waiting in CRASH_REASONS),
        unready=tuple(_unready(pod, down) for pod in live if _is_unready(pod, down)),
        overdue=tuple(_overdue(pod) for pod in state.pods if _is_overdue(pod, now)),
        next_deadline=min((t for t in deadlines if t > now), default=None),
    )


def _placement(live: Sequence[Pod]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for pod in live:
        if pod.node:
            counts[pod.node] = counts.get(pod.node, 0) + 1
    return tuple(sorted(counts.items()))


def _say(pod: Pod) -> str:
    again = f" after {pod.restarts} restarts" if pod.restarts else ""
    return f"worker {pod.meta.name}: {pod.waiting}{again}" + (f" ({pod.detail})" if pod.detail else "")


def _is_unready(pod: Pod, down: set[str]) -> bool:
    return not pod.ready and pod.waiting not in CRASH_REASONS and (pod.served_before or pod.node in down)


def _unready(pod: Pod, down: set[str]) -> str:
    why = f"its node {pod.node} is not ready" if pod.node in down else "its readiness probe fails"
    return f"worker {pod.meta.name} is not ready: {why}"


def _is_overdue(pod: Pod, now: float) -> bool:
    return pod.gone_by is not None and not pod.finished and pod.gone_by <= now


def _overdue(pod: Pod) -> str:
    # The time, not the age: a sentence that grows older by itself would be written for ever.
    return (
        f"worker {pod.meta.name} should have ended by {rfc3339(pod.gone_by or 0.0)} and still holds its accelerators "
        f"on node {pod.node or 'unknown'}"
    )
