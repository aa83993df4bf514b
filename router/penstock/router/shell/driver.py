"""Drives the life of one request: hands its actions to whoever can do them, and tells it what came of them."""

import asyncio
from collections.abc import Callable, Coroutine

from penstock.router.decisions import Action, Event, Life, Pause, Resumed


class Driver:
    """A life, from before it begins until it is over or ended."""

    __slots__ = ("_act", "_life", "_loop", "_preparing", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, act: Callable[[Action], None]) -> None:
        """`act` gets every action; it hands pauses back to `pause`."""
        self._loop = loop
        self._act = act
        self._life: Life | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._preparing: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the life has begun and is not over."""
        return self._life is not None

    @property
    def pending(self) -> bool:
        """Whether what must be known before the life can begin is still being found out."""
        return self._preparing is not None

    def prepare(self, work: Coroutine[None, None, None]) -> None:
        """Do this first; it begins the life at its end."""
        self._preparing = self._loop.create_task(work)

    def begin(self, life: Life) -> None:
        """Do what the life wants first."""
        self._preparing = None
        self._life = life
        self._act(next(life))

    def tell(self, event: Event) -> None:
        """Report what happened and do what is asked next; nothing when the life is over."""
        if self._life is None:
            return
        try:
            action = self._life.send(event)
        except StopIteration:
            self._over()
            return
        self._act(action)

    def pause(self, action: Pause) -> None:
        """Tell the life when its pause is over."""
        self._timer = self._loop.call_later(action.seconds, self._resume)

    def _resume(self) -> None:
        self.tell(Resumed(self._loop.time()))

    def end(self) -> None:
        """Close the life (giving its reservation back) and everything that could still tell it something."""
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        if self._life is not None:
            self._life.close()
        self._over()
        if self._timer is not None:
            self._timer.cancel()

    def _over(self) -> None:
        """Let go of whoever acted, so that no circle of references keeps a request that is over."""
        self._life = None
        self._act = _nothing


def _nothing(_: Action) -> None:
    """What a life that is over asks for."""
