"""Who cannot be heard: what a worker says while the router is cut off from it arrives when it can be heard again."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Reach"]

Saying = Callable[[float], None]
"""Something a worker has to say, to be called with the time at which it is heard."""


class Reach:
    """Which workers the router is cut off from, by number, and what each of them has said since."""

    __slots__ = ("_said", "_spells")

    def __init__(self) -> None:
        self._spells: dict[int, int] = {}  # Spells may overlap; the last one to end counts.
        self._said: dict[int, list[Saying]] = {}

    def __bool__(self) -> bool:
        """Whether anybody is cut off: asked at every token that matters, so it must be cheap."""
        return bool(self._spells)

    def __contains__(self, number: int) -> bool:
        return number in self._spells

    def cut(self, number: int) -> None:
        """The router loses a worker."""
        self._spells[number] = self._spells.get(number, 0) + 1
        self._said.setdefault(number, [])

    def say(self, number: int, what: Saying) -> None:
        """Keep what a worker says that is cut off."""
        self._said[number].append(what)

    def heal(self, number: int) -> list[Saying]:
        """One spell is over: what was said, in its order, if nothing else keeps the worker apart."""
        self._spells[number] -= 1
        if self._spells[number]:
            return []
        del self._spells[number]
        return self._said.pop(number)
