"""Decisions that a cluster recorded, made again by the twin's brain: they must come out the same, to the byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from penstock.autoscaler.decisions import records as cycles
from penstock.core.records import RecordError, read_record, write_record
from penstock.router.decisions import records as picks

__all__ = ["Difference", "Place", "Replayed", "replay_records"]

_AGAIN = {picks.KIND: picks.again, cycles.KIND: cycles.again}
_MOST_DIFFERENCES, _MOST_PLACES = 20, 6


@dataclass(frozen=True, slots=True)
class Place:
    """One value that came out otherwise; JSON, `null` where there is none."""

    path: str
    recorded: str
    again: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that came out otherwise."""

    line: int
    """From 1."""
    kind: str
    recorded: str
    """JSON."""
    again: str
    places: tuple[Place, ...] = ()
    """Where they differ: the first of them."""


@dataclass(slots=True)
class Replayed:
    """What became of the records of one file."""

    same: Counter[str] = field(default_factory=Counter)
    """By kind."""
    different: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    """The first of them."""

    @property
    def total(self) -> int:
        """All records."""
        return self.same.total() + self.different.total()


def replay_records(lines: Iterable[bytes], name: str) -> Replayed:
    """Decide every line of the file `name` again. Raises `RecordError`, with file and line, for what is no record.

    A last line without an end is one that was being written, and is left out.
    """
    replayed = Replayed()
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue
        try:
            _replay(line, number, replayed)
        except ValueError as error:
            raise RecordError(f"{name}, line {number}: {error}") from error
    return replayed


def _replay(line: bytes, number: int, replayed: Replayed) -> None:
    record = read_record(line)
    kind = record["kind"]
    if kind not in _AGAIN:
        raise RecordError(f"kind {kind!r} is not known; known are {', '.join(sorted(_AGAIN))}")
    recorded, made = (write_record({"answer": answer}) for answer in (record.get("answer"), _AGAIN[kind](record)))
    if recorded == made:
        replayed.same[kind] += 1
        return
    replayed.different[kind] += 1
    if len(replayed.differences) < _MOST_DIFFERENCES:
        places = tuple(islice(_places(json.loads(recorded), json.loads(made), ""), _MOST_PLACES))
        replayed.differences.append(Difference(number, kind, recorded.decode().strip(), made.decode().strip(), places))


def _places(recorded: Any, made: Any, path: str) -> Iterator[Place]:
    """Every value in which two answers differ."""
    if type(recorded) is type(made) and isinstance(recorded, dict | list):
        for key in _keys(recorded, made):
            inner = f"{path}.{key}" if isinstance(recorded, dict) else f"{path}[{key}]"
            yield from _places(_value(recorded, key), _value(made, key), inner)
    elif json.dumps(recorded) != json.dumps(made):
        yield Place(path.removeprefix(".answer."), json.dumps(recorded), json.dumps(made))


def _keys(one: Any, other: Any) -> Iterable[Any]:
    return {**one, **other} if isinstance(one, dict) else range(max(len(one), len(other)))


def _value(holder: Any, key: Any) -> Any:
    return holder.get(key) if isinstance(holder, dict) else (holder[key] if key < len(holder) else None)
