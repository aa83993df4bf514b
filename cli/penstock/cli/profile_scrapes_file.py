"""Scrapes in a file: one JSON object a line, `{"worker", "at", "took", "page"}`, times in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from penstock.core.models.fitting_pages import Scrape
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class SavedScrape(BaseModel):
    """One line."""

    model_config = ConfigDict(extra="forbid")

    worker: Annotated[str, Field(min_length=1)] | None = None
    """Left out it is the file's: counters of two workers in one history would only seem to restart."""
    at: Annotated[float, Field(allow_inf_nan=False)]
    took: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    page: str


def line_of(scrape: Scrape) -> str:
    """A scrape as it is saved, with the line's end."""
    fields = {"worker": scrape.worker, "at": scrape.at_s, "took": scrape.took_s, "page": scrape.page}
    return json.dumps(fields) + "\n"


def read_scrapes(path: Path) -> Iterator[Scrape]:
    """The scrapes of a file. Raises ValueError with file, line and reason; OSError for a file that cannot be read."""
    number = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                saved = SavedScrape.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ValueError(
                    f"{path}: line {number} is no scrape ({where + ': ' if where else ''}{first['msg']}); give a file "
                    "that penstock profile fit --save wrote"
                ) from None
            yield Scrape(saved.worker or str(path), saved.at, saved.took, saved.page)
    if number == 0:
        raise ValueError(f"{path}: the file is empty, nothing was scraped into it")
