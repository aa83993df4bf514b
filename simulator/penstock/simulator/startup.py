"""What passes between the wish for a worker and its first token, phase by phase."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["StartUp"]


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds of each phase, in their order. The defaults are those of a large model whose image is not on the node;
    they are assumptions, to be replaced by what a cluster measures."""

    schedule: float = 1.0
    """Until the scheduler has found a node."""
    image: float = 60.0
    """Until the image is on the node."""
    weights: float = 90.0
    """Until the weights are in the accelerators' memory."""
    engine: float = 30.0
    """Until the engine has profiled its memory and captured its graphs."""
    warm_up: float = 5.0
    """Until the first readiness probe passes."""

    def __post_init__(self) -> None:
        for name, seconds in asdict(self).items():
            if not seconds >= 0:
                raise ValueError(f"start-up phase {name} takes {seconds} s; give 0 or more")

    @property
    def seconds(self) -> float:
        """All phases together."""
        return self.schedule + self.image + self.weights + self.engine + self.warm_up

    @property
    def restart_seconds(self) -> float:
        """What a container that crashed on a node that has the image goes through again."""
        return self.weights + self.engine + self.warm_up
