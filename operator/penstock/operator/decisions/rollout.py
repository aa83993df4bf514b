"""How many pods each revision of a pool may ask for: the arithmetic of a roll, and nothing else.

Two promises hold while the wanted number stays put. *Never too many*: pods that exist or are asked for, those on their
way out included, never exceed replicas + surge by our asking; with no surge a successor is asked for only when the old
pod object is gone, because a terminating worker still holds its accelerators. *Never too few*: we never take away a
ready worker so that fewer than replicas - unavailable stay ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RevisionState:
    """One ReplicaSet as last seen. Counts of pods."""

    revision: str
    wanted: int
    """`spec.replicas`."""
    ready: int
    """Ready pods that are not on their way out."""
    live: int
    """Pods that are not on their way out."""
    terminating: int
    """Pod objects on their way out; they hold accelerators until they are gone."""
    order: str = ""
    """Creation time; older revisions shrink first."""

    @property
    def held(self) -> int:
        """Pods that hold accelerators now or soon without another word from us."""
        return max(self.wanted, self.live) + self.terminating

    @property
    def sure(self) -> int:
        """Ready workers that stay when the ReplicaSet has carried out what it was last told; it drops unready first."""
        return min(self.ready, self.wanted)


def roll(
    replicas: int, current: RevisionState, old: Sequence[RevisionState], surge: int, unavailable: int, keep: int = 0
) -> dict[str, int]:
    """Replicas of every revision for the next step: revision to count, the current one included.

    `replicas` is the pool's wanted number; `surge` and `unavailable` are counts, not both 0. `keep` old workers stay
    even where the two promises would let them go; it must leave room for one new worker, or the roll stands still.
    """
    least = max(0, replicas - unavailable)
    olds = sorted(old, key=lambda state: (state.order, state.revision))
    shrunk = _shrink(olds, _old_total(olds, current, least, keep))
    return {current.revision: _grow(replicas, current, olds, shrunk, surge), **shrunk}


def _old_total(olds: Sequence[RevisionState], current: RevisionState, least: int, keep: int) -> int:
    """How many old workers must stay: enough for the least together with the new ready ones."""
    # Ready or not: an old worker that is not ready serves nobody, but may come back sooner than a new one comes up.
    return min(sum(state.wanted for state in olds), max(keep, least - current.sure))


def _shrink(olds: Sequence[RevisionState], total: int) -> dict[str, int]:
    """Take workers off old revisions until `total` are left: unready ones first, then the oldest revision's."""
    result = {state.revision: state.wanted for state in olds}
    excess = sum(result.values()) - total
    for unready_only in (True, False):
        for state in olds:
            most = max(0, state.wanted - state.ready) if unready_only else result[state.revision]
            taken = min(most, result[state.revision], max(0, excess))
            result[state.revision] -= taken
            excess -= taken
    return result


def _grow(
    replicas: int, current: RevisionState, olds: Sequence[RevisionState], shrunk: dict[str, int], surge: int
) -> int:
    """Replicas of the current revision: as many as fit beside everything that still holds accelerators."""
    if current.wanted > replicas:
        return replicas
    if not any(state.held for state in olds):
        return replicas
    held_by_old = sum(state.held for state in olds)
    room = replicas + surge - held_by_old - current.held
    if room >= 0:
        return min(replicas, current.wanted + room)
    # The wanted number fell during the roll: give back workers of the new revision that serve nobody yet.
    asked = sum(shrunk.values()) + current.wanted
    excess = max(0, asked - (replicas + surge))
    return current.wanted - min(excess, max(0, current.wanted - current.ready))


def finished(current: RevisionState, old: Sequence[RevisionState]) -> bool:
    """Whether nothing of an older revision is left, pods on their way out apart."""
    return not any(state.wanted or state.live for state in old)
