"""What a reconcile wants done: an ordered list of writes, Events, and when to look again.

A reconcile accumulates, then writes once: the pure side returns these values, the shell carries them out in order
and stops at the first that fails. Any prefix of the list leaves a state from which the next reconcile continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MANAGER = "penstock-operator"
"""Field manager of everything the operator declares."""
INITIAL_MANAGER = "penstock-initial"
"""Field manager that sets a WorkerPool's replicas once, at its creation."""


@dataclass(frozen=True, slots=True)
class Ref:
    """One object by its address in the API."""

    api_version: str
    kind: str
    namespace: str | None
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of one object or of one of its subresources.

    `force` takes fields over from other managers; without it a field someone else set is a conflict.

    `dry_run` asks the API server to check the object and store nothing: how a user's podTemplate is validated.
    """

    body: Mapping[str, Any]
    manager: str = MANAGER
    subresource: str | None = None
    dry_run: bool = False
    force: bool = True
    probe: str = ""
    """For a dry run: the key (a revision) under which a refusal is remembered in `Observed.refusals`."""

    @property
    def ref(self) -> Ref:
        """The object written."""
        return ref_of(self.body)


@dataclass(frozen=True, slots=True)
class Scale:
    """Write of `spec.replicas` through the scale subresource."""

    ref: Ref
    replicas: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly the object with this uid; its dependants go with it in the background."""

    ref: Ref
    uid: str


Write = Apply | Scale | Delete


@dataclass(frozen=True, slots=True)
class Event:
    """One line for `kubectl describe`; equal events are posted once per `dedupe` window."""

    regarding: Ref
    uid: str
    type: str
    """`Normal` or `Warning`."""
    reason: str
    action: str
    message: str

    @property
    def dedupe(self) -> tuple[str, str, str]:
        """Key under which repetitions count as the same event."""
        return (self.uid, self.reason, self.message)


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything one reconcile wants."""

    writes: tuple[Write, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds after which time alone may change the answer; None: only a change of an object can."""


def ref_of(body: Mapping[str, Any]) -> Ref:
    """The address of an object given as plain JSON."""
    metadata = body["metadata"]
    return Ref(body["apiVersion"], body["kind"], metadata.get("namespace"), metadata["name"])
