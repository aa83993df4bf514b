"""Scaling cycles on record: what a cycle knew and by which rules, in; plan and guarded moves, out. And the same again.

What was really done of a cycle, and what is remembered of it, stand in the record too: the next cycle rests on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.autoscaler.decisions.cycle import CycleRules, Looked, Outcome, conclude, decide
from penstock.autoscaler.decisions.guard import Guarded
from penstock.autoscaler.decisions.history import History, Wish
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, Key
from penstock.core.records import rebuild, to_plain

__all__ = ["KIND", "again", "cycle_record"]

KIND = "Cycle"


@dataclass(frozen=True, slots=True)
class _HistoryForm:
    """A history without pairs for keys, which JSON does not have."""

    since: float
    wishes: tuple[tuple[Key, tuple[Wish, ...]], ...]
    scaled_in: tuple[tuple[Key, float], ...]
    given_up: tuple[tuple[Key, float], ...]


def cycle_record(
    looked: Looked, rules: CycleRules, outcome: Outcome, done: Sequence[Guarded], after: History
) -> dict[str, Any]:
    """The record of one cycle."""
    given = {"seen": looked.seen, "fresh": looked.fresh, "history": _form(looked.history), "rules": rules}
    return {"kind": KIND, **to_plain(given), "done": to_plain(tuple(done)), "answer": _answer(outcome, after)}


def again(record: Mapping[str, Any]) -> Any:
    """What comes out of the same cycle now, in the form of the record's `answer`. Raises `RecordError`."""
    history = _history(rebuild(record.get("history"), _HistoryForm))
    seen, fresh = (rebuild(record.get(name), ClusterSnapshot) for name in ("seen", "fresh"))
    looked, rules = Looked(seen, fresh, history), rebuild(record.get("rules"), CycleRules)
    done = rebuild(record.get("done"), tuple[Guarded, ...])
    outcome = decide(looked, rules)
    return _answer(outcome, conclude(looked, outcome, done, rules))


def _answer(outcome: Outcome, after: History) -> Any:
    return to_plain({"plan": outcome.plan, "guarded": outcome.guarded, "history": _form(after)})


def _form(history: History) -> _HistoryForm:
    return _HistoryForm(
        history.since,
        tuple(history.wishes.items()),
        tuple(history.scaled_in.items()),
        tuple(history.given_up.items()),
    )


def _history(form: _HistoryForm) -> History:
    return History(form.since, dict(form.wishes), dict(form.scaled_in), dict(form.given_up))
