"""The one error of this room that a user sees: a sentence that says what happened and what to do."""

from __future__ import annotations


class BoxError(Exception):
    """Something the user can understand and mend; shown without a traceback, ends the command with exit code 1."""
