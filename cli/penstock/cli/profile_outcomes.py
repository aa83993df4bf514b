"""A benchmark run's file, as `penstock replay --outcomes` wrote it, read for a fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock.core.models.fitting import Observed
from penstock.core.reports import Verdict


def read_outcomes(path: Path) -> Iterator[Observed]:
    """The completed requests of a file of outcomes. Raises ValueError with file, line and reason."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
                if found["verdict"] == Verdict.COMPLETED and None not in (found["ttft_s"], found["prompt_tokens"]):
                    yield _observed(found)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}: line {number} is no outcome ({type(error).__name__}: {error}); give a file that "
                    "penstock replay --outcomes wrote"
                ) from None


def _observed(found: dict[str, Any]) -> Observed:
    sent = float(found["sent_s"])
    return Observed(
        sent,
        sent + float(found["ttft_s"]),
        sent + float(found["e2e_s"]),
        int(found["prompt_tokens"]),
        int(found["output_tokens"] or 0),
        int(found["cached_tokens"] or 0),
    )
