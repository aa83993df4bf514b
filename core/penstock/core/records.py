"""Records of decisions: one JSON line each, with what went in and what came out, in files that never outgrow a bound.

What is written can be decided again by the same functions, anywhere, and must come out the same to the byte. JSON as
Python writes it: floats come back as they were, and infinities and NaN have their names.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

__all__ = ["RING_BYTES", "RecordError", "Ring", "read_record", "rebuild", "to_plain", "write_record"]

log = logging.getLogger("penstock.records")

RING_BYTES = 32 << 20
"""What a ring's two files hold together, if nobody says otherwise."""
Made = TypeVar("Made")


class RecordError(ValueError):
    """A line is no record, or not of a kind that is known here."""


def to_plain(value: object) -> Any:
    """Dataclasses, structs, enums, arrays and what they hold as what JSON has."""
    return msgspec.to_builtins(value, enc_hook=_array, str_keys=True)


def rebuild(plain: object, kind: type[Made]) -> Made:
    """What `to_plain` was given. Raises `RecordError` where it cannot have been one."""
    try:
        return msgspec.convert(plain, kind)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise RecordError(f"the record holds no {kind.__name__}: {error}") from None


def write_record(plain: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"


def read_record(line: bytes) -> dict[str, Any]:
    """What stands in a line. Raises `RecordError`."""
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise RecordError(f"the line is not JSON: {error}") from None
    if not isinstance(plain, dict) or "kind" not in plain:
        raise RecordError("the line is no record: a mapping with a `kind` is expected")
    return plain


def _array(value: Any) -> Any:
    """Arrays and their scalars as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot stand in a record")


class Ring:
    """Appends lines to `FOLDER/NAME.jsonl`; when that is half the bound, it becomes `NAME.before.jsonl`.

    A disk that is full or gone ends the recording with a word in the log, never what is recorded.
    """

    def __init__(self, folder: str, name: str, most_bytes: int = RING_BYTES) -> None:
        """Begin a new file; what an earlier process wrote becomes the one before. Raises OSError, with what to do."""
        self._path, self._before = Path(folder, f"{name}.jsonl"), Path(folder, f"{name}.before.jsonl")
        self._half, self._size = most_bytes // 2, 0
        self._file: IO[bytes] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._turn()
        except OSError as error:
            raise OSError(
                f"nothing can be recorded in {folder!r} ({error.strerror}): name a folder that can be written, or "
                "record nothing"
            ) from None

    def append(self, line: bytes) -> None:
        """Write one line; one that is larger than half the bound is left out."""
        if self._file is None or len(line) > self._half:
            return
        try:
            if self._size + len(line) > self._half:
                self._turn()
            self._file.write(line)
            self._file.flush()
            self._size += len(line)
        except OSError as error:
            log.warning("recording ends: the record cannot be written", extra={"error": repr(error)})
            self._file = None

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _turn(self) -> None:
        self.close()
        if self._path.exists():
            self._path.replace(self._before)
        self._file, self._size = self._path.open("wb"), 0
