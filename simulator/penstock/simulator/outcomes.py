"""The outcomes of a run as columns: some fifty bytes a request, so that a million of them fit in any memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from penstock.core.reports import Outcome, Verdict

__all__ = ["Outcomes"]

_VERDICTS = (None, Verdict.COMPLETED, Verdict.REJECTED, Verdict.FAILED)
_CODES = {verdict: code for code, verdict in enumerate(_VERDICTS)}
_TIMES = ("sent_s", "lag_s", "ttft_s", "e2e_s")
_COUNTS = ("prompt_tokens", "cached_tokens", "output_tokens", "asked_tokens")
_MOST_DETAILS = 10_000  # An error's own words are kept for so many requests; its kind for all.

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


class Outcomes:
    """Outcomes by number of request; `put` once for each. Iterating gives those that were put, in order of numbers."""

    __slots__ = ("_codes", "_count", "_counts", "_details", "_names", "_times", "_verdicts")

    def __init__(self, total: int) -> None:
        """Room for the numbers 0 to `total` - 1."""
        self._verdicts = array("b", bytes(total))
        self._times = [array("d", bytes(8 * total)) for _ in _TIMES]
        self._counts = [array("i", bytes(4 * total)) for _ in _COUNTS]
        # Few different words for many requests: errors, tenants, models.
        self._codes = {kind: array("i", bytes(4 * total)) for kind in ("error", "tenant", "model")}
        self._names: dict[str, dict[str, int]] = {kind: {"": 0} for kind in self._codes}
        self._details: dict[int, str] = {}
        self._count = 0

    def put(self, outcome: Outcome, tenant: str = "", model: str = "") -> None:
        """Keep an outcome. Raises RuntimeError for a request that has one."""
        at = outcome.index
        if self._verdicts[at]:
            raise RuntimeError(f"request {at} ended twice")
        self._verdicts[at] = _CODES[outcome.verdict]
        sent, lag, ttft, e2e = self._times
        sent[at], lag[at] = outcome.sent_s, outcome.lag_s
        ttft[at] = math.nan if outcome.ttft_s is None else outcome.ttft_s
        e2e[at] = math.nan if outcome.e2e_s is None else outcome.e2e_s
        prompt, cached, output, asked = self._counts
        prompt[at] = -1 if outcome.prompt_tokens is None else outcome.prompt_tokens
        cached[at] = -1 if outcome.cached_tokens is None else outcome.cached_tokens
        output[at] = -1 if outcome.output_tokens is None else outcome.output_tokens
        asked[at] = outcome.asked_tokens
        self._count += 1
        if outcome.error or tenant or model:
            self._name("error", at, outcome.error or "")
            self._name("tenant", at, tenant)
            self._name("model", at, model)
            if outcome.detail is not None and len(self._details) < _MOST_DETAILS:
                self._details[at] = outcome.detail

    def __len__(self) -> int:
        """How many were put."""
        return self._count

    def __iter__(self) -> Iterator[Outcome]:
        """Those that were put."""
        return (outcome for at in range(len(self._verdicts)) if (outcome := self[at]) is not None)

    def __eq__(self, other: object) -> bool:
        """Whether every outcome is the same to the last bit."""
        return isinstance(other, Outcomes) and self._all() == other._all()

    __hash__ = None  # type: ignore[assignment]  # It changes.

    def __getitem__(self, number: int) -> Outcome | None:
        """The outcome of this request; None while it has none."""
        verdict = _VERDICTS[self._verdicts[number]]
        if verdict is None:
            return None
        ttft, e2e = self._times[2][number], self._times[3][number]
        prompt, cached, output, asked = (column[number] for column in self._counts)
        return Outcome(
            number if number >= 0 else number + len(self._verdicts),
            verdict,
            self._times[0][number],
            self._times[1][number],
            None if math.isnan(ttft) else ttft,
            None if math.isnan(e2e) else e2e,
            None if prompt < 0 else prompt,
            None if cached < 0 else cached,
            None if output < 0 else output,
            asked,
            (self._codes["error"][number] and self.label("error", number)) or None,
            self._details.get(number),
        )

    def label(self, kind: str, number: int) -> str:
        """The `error`, `tenant` or `model` of a request, empty where it has none."""
        return list(self._names[kind])[self._codes[kind][number]]

    def labels(self, kind: str) -> dict[str, npt.NDArray[np.bool_]]:
        """For each `error`, `tenant` or `model` that occurs, which of the outcomes (as in `times`) are of it."""
        codes = np.frombuffer(self._codes[kind], dtype=np.int32)[self._put]
        present = set(np.unique(codes).tolist())
        return {name: codes == code for name, code in self._names[kind].items() if code in present}

    def times(self, name: str) -> Floats:
        """`sent_s`, `lag_s`, `ttft_s` or `e2e_s` of those that were put, in seconds; NaN where not known."""
        return np.frombuffer(self._times[_TIMES.index(name)], dtype=np.float64)[self._put]

    def counts(self, name: str) -> Ints:
        """`prompt_tokens`, `cached_tokens`, `output_tokens` or `asked_tokens`; -1 where not known."""
        return np.frombuffer(self._counts[_COUNTS.index(name)], dtype=np.int32)[self._put]

    def ended(self, verdict: Verdict) -> npt.NDArray[np.bool_]:
        """Which of those that were put ended so."""
        codes = np.frombuffer(self._verdicts, dtype=np.int8)[self._put]
        return np.asarray(codes == _CODES[verdict])

    @property
    def _put(self) -> npt.NDArray[np.bool_] | slice:
        if self._count == len(self._verdicts):
            return slice(None)  # A view, and no copy.
        return np.asarray(np.frombuffer(self._verdicts, dtype=np.int8) != 0)

    def _name(self, kind: str, at: int, word: str) -> None:
        names = self._names[kind]
        self._codes[kind][at] = names.setdefault(word, len(names))

    def _all(self) -> tuple[object, ...]:
        times, counts = b"".join(self._times), b"".join(self._counts)
        return self._verdicts.tobytes(), times, counts, b"".join(self._codes.values()), self._names, self._details
