"""How one worker spreads one copy of a model over accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Parallelism"]


@dataclass(frozen=True, slots=True, order=True)
class Parallelism:
    """Degrees of parallelism of one worker, as vLLM counts them.

    `expert` is 1 (experts are cut by `tensor` like every other weight) or `tensor * data` (whole experts are
    spread over the accelerators of a pipeline stage); it adds no accelerators of its own.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data", "expert"):
            degree = getattr(self, name)
            if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
                raise ValueError(f"parallelism {name}: {degree!r} must be a whole number of at least 1")
        if self.expert not in (1, self.tensor * self.data):
            raise ValueError(
                f"parallelism expert: {self.expert} must be 1 or tensor x data = {self.tensor * self.data}; "
                "experts are spread over all accelerators of a pipeline stage or over none"
            )

    @property
    def accelerators(self) -> int:
        """Accelerators one worker holds."""
        return self.tensor * self.pipeline * self.data

    @property
    def expert_shards(self) -> int:
        """In how many parts the routed experts' weights are cut, pipeline stages apart."""
        return max(self.tensor, self.expert)

    def to_dict(self) -> dict[str, int]:
        """The degrees above 1, `{"tensor": 4}`; `{"tensor": 1}` when there are none."""
        degrees = {name: getattr(self, name) for name in ("tensor", "pipeline", "data", "expert")}
        return {name: degree for name, degree in degrees.items() if degree > 1} or {"tensor": 1}

    @classmethod
    def from_dict(cls, degrees: Mapping[str, int]) -> Parallelism:
        """The reverse of `to_dict`; raises ValueError for a degree that is unknown or below 1."""
        unknown = sorted(set(degrees) - {"tensor", "pipeline", "data", "expert"})
        if unknown:
            raise ValueError(f"unknown parallelism {', '.join(unknown)}; use tensor, pipeline, data, expert")
        return cls(**degrees)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {degree}" for name, degree in self.to_dict().items())
