"""Who cannot be heard: what a worker says while the router is cut off from it arrives when it can be heard again."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Reach"]

Saying = Callable[[float], None]
"""Something a worker has to say, to be called with the time at which it is heard."""


class Reach:
    """Which workers the router is cut off from, by number, and what each of them has said since."""

    __slots__ = ("_said", "lost")

    def __init__(self) -> None:
        self.lost: dict[int, int] = {}
        """Who is cut off, by how many spells: they may overlap, and the last one to end counts."""
        self._said: dict[int, list[Saying]] = {}

    def cut(self, number: int) -> None:
        """The router loses a worker."""
        self.lost[number] = self.lost.get(number, 0) + 1
        self._said.setdefault(number, [])

    def say(self, number: int, what: Saying) -> None:
        """Keep what a worker says that is cut off."""
        self._said[number].append(what)

    def heal(self, number: int) -> list[Saying]:
        """One spell is over: what was said, in its order, if nothing else keeps the worker apart."""
        self.lost[number] -= 1
        if self.lost[number]:
            return []
        del self.lost[number]
        return self._said.pop(number)
