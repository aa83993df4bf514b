"""The forms of a scenario file that say how it is scaled and what it may draw."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from penstock.autoscaler.decisions.cycle import CycleTimes
from penstock.simulator.files.values import Form, Seconds
from penstock.simulator.scaling_rules import Autoscaling, Bounds, Drain, PowerDomain, Provisioning
from pydantic import Field, field_validator, model_validator

__all__ = ["AutoscalerForm", "PowerForm"]

Count = Annotated[int, Field(ge=0, le=1_000_000)]
_TIMES = CycleTimes()


class BoundsForm(Form):
    """Fewest and most workers of a pool."""

    pool: str
    min: Count = 1
    max: Count

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.build()
        return self

    def build(self) -> Bounds:
        """The bounds."""
        return Bounds(self.pool, self.min, self.max)


class ProvisioningForm(Form):
    """Nodes that are added while workers wait."""

    accelerator_class: str
    accelerators: Annotated[int, Field(ge=1, le=10_000)]
    nodes: Count
    provision_time: Seconds = 120.0
    lost: tuple[Count, ...] = ()
    give_up: Seconds = 900.0

    def build(self) -> Provisioning:
        """The rule."""
        return Provisioning(
            self.accelerator_class, self.accelerators, self.nodes, self.provision_time, self.lost, self.give_up
        )


class DrainForm(Form):
    """How a worker that is being deleted ends."""

    idle: Seconds = Drain().idle_s
    grace: Seconds = Drain().grace_s
    stop: Seconds = Drain().stop_s
    poll: Seconds = Drain().poll_s

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.make(Drain)
        return self


class BudgetForm(Form):
    """What all pools may hold together."""

    max_accelerators: Count | None = None
    cost_per_hour: Annotated[float, Field(gt=0)] | None = None


class AutoscalerForm(Form):
    """The autoscaler in the loop; names are those of the API and of its flags."""

    mode: Literal["Off", "Advise", "Auto"] = "Auto"
    pools: Annotated[tuple[BoundsForm, ...], Field(min_length=1)]
    attainment: Annotated[float, Field(gt=0, lt=1)] = 0.95
    cycle_interval: Annotated[Seconds, Field(gt=0)] = 5.0
    scrape_interval: Annotated[Seconds, Field(gt=0)] = _TIMES.scrape_interval_s
    signal_window: Annotated[Seconds, Field(gt=0)] = _TIMES.signal_window_s
    scale_in_window: Seconds = _TIMES.scale_in_window_s
    time_scale: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    planner: str = _TIMES.planner
    budget: BudgetForm = BudgetForm()
    provisioning: tuple[ProvisioningForm, ...] = ()
    drain: DrainForm = DrainForm()
    until: Seconds = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.build()
        return self

    def build(self) -> Autoscaling:
        """The rules."""
        times = CycleTimes(
            self.scrape_interval, self.signal_window, self.scale_in_window, self.time_scale, self.planner
        )
        return Autoscaling(
            bounds=tuple(pool.build() for pool in self.pools),
            mode=self.mode,
            attainment=self.attainment,
            cycle_interval_s=self.cycle_interval,
            times=times,
            max_accelerators=self.budget.max_accelerators,
            max_cost=self.budget.cost_per_hour,
            provisioning=tuple(one.build() for one in self.provisioning),
            drain=self.drain.make(Drain),
            until_s=self.until,
        )


class DomainForm(Form):
    """Nodes that share a watt budget."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    nodes: tuple[Count, ...] = ()
    """Their numbers; or text such as `0-3,6`."""
    watts: Annotated[float, Field(gt=0)] | None = None
    parent: str = ""

    @field_validator("nodes", mode="before")
    @classmethod
    def _ranges(cls, value: object) -> object:
        return _numbers(value) if isinstance(value, str) else value

    def build(self) -> PowerDomain:
        """The domain."""
        return PowerDomain(self.name, self.nodes, self.watts, self.parent)


class PowerForm(Form):
    """A tree of power domains, and how it is metered."""

    domains: tuple[DomainForm, ...] = ()
    interval: Annotated[Seconds, Field(gt=0)] = 1.0


def _numbers(text: str) -> list[Any]:
    """The numbers in `0-3,6`."""
    found: list[Any] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is no list of node numbers; write it as 0-3,6")
        found += range(int(first), int(last or first) + 1)
    return found
