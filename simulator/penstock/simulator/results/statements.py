"""What is said of each result besides its figures: who published what, what differs here, and how to read it."""

from __future__ import annotations

from enum import StrEnum
from importlib import resources
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Identity", "Kind", "Statement", "Statements", "Unmodelled", "read_statements"]

Sentence = Annotated[str, Field(min_length=1)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kind(StrEnum):
    """What a run of a published result can be."""

    GATE = "Gate"
    REPORT = "Report"


class Statement(_Form):
    """One result."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9-]*$")]
    title: Sentence
    kind: Kind
    source: Sentence
    asks: Sentence
    scenario: Sentence
    """Path of the set-up file from the root of the repository."""
    command: Sentence
    differs: tuple[Sentence, ...]
    reading: tuple[Sentence, ...] = ()


class Identity(_Form):
    """What follows from the inputs alone, and the test that holds it."""

    says: Sentence
    test: Sentence


class Unmodelled(_Form):
    """A published result that the twin cannot run honestly."""

    title: Sentence
    source: Sentence
    because: Sentence


class Statements(_Form):
    """The page's words."""

    results: tuple[Statement, ...]
    identities: tuple[Identity, ...]
    unmodelled: tuple[Unmodelled, ...]

    def find(self, name: str) -> Statement:
        """The statement of a result. Raises ValueError saying which there are."""
        for one in self.results:
            if one.name == name:
                return one
        raise ValueError(f"no result is called {name!r}; there are {', '.join(one.name for one in self.results)}")


def read_statements() -> Statements:
    """All of them, in the page's order."""
    text = (resources.files(__package__) / "statements.yaml").read_text(encoding="utf-8")
    return Statements.model_validate(yaml.safe_load(text))
