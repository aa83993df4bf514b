"""AcceleratorClass: one kind of accelerator, how pods reach it, and what it can do and costs."""

from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from penstock.api.base import (
    ApiModel,
    ApiObject,
    Column,
    Duration,
    KindInfo,
    Labels,
    PositiveDecimal,
    Quantity,
    Rule,
    rules,
    short_name_rule,
)
from penstock.api.quantities import parse_decimal, parse_duration, parse_quantity
from pydantic import ConfigDict, Field, StringConstraints

ResourceName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317
    ),
]


class Flops(ApiModel):
    """Peak dense arithmetic, in operations per second, for example `989T`."""

    bf16: Quantity | None = None
    """Dense bfloat16."""
    fp8: Quantity | None = None
    """Dense 8-bit floating point; left out where the hardware has none."""


class Link(ApiModel):
    """What joins the accelerators of one node."""

    kind: Literal["NVLink", "InfinityFabric", "PCIe", "UPI"]
    """Kind of link."""
    bandwidth: Quantity
    """Bytes per second in one direction, for example `450G`."""


class Power(ApiModel):
    """Electric power of one accelerator, in watts."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("self.idle < self.max", "power.idle must be below power.max; both are watts of one accelerator"),
        )
    )

    idle: Annotated[int, Field(ge=0, le=100_000)]
    """Watts without work."""
    max: Annotated[int, Field(ge=1, le=100_000)]
    """Watts at the default power limit."""


class Capacity(ApiModel):
    """Where more of this class comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.source != 'NodeAutoscaler' || has(self.provisionTime)",
                "capacity.source NodeAutoscaler needs capacity.provisionTime: how long a new node takes, after which"
                " pending capacity is given up",
            ),
            Rule(
                "self.source != 'Nodes' || !has(self.provisionTime)",
                "capacity.provisionTime goes with source NodeAutoscaler or Kueue; nodes that exist take no time, so"
                " remove it",
            ),
        )
    )

    source: Literal["Nodes", "NodeAutoscaler", "Kueue"] = "Nodes"
    """`Nodes`: what is there. `NodeAutoscaler`: nodes are made on demand. `Kueue`: a queue admits them."""
    max: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Most accelerators of this class; left out: what the nodes have."""
    provision_time: Duration | None = None
    """How long new capacity takes to come."""


class AcceleratorClassSpec(ApiModel):
    """How to find it and what it can do."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.type != 'GPU' || has(self.resourceName) != has(self.deviceClassName)",
                "an AcceleratorClass of type GPU needs exactly one of resourceName (for example nvidia.com/gpu) and"
                " deviceClassName (dynamic resource allocation)",
            ),
            Rule(
                "self.type != 'CPU' || !(has(self.resourceName) || has(self.deviceClassName))",
                "an AcceleratorClass of type CPU takes no device; remove resourceName and deviceClassName",
            ),
            Rule(
                "!has(self.flops) || has(self.flops.bf16)",
                "flops needs bf16: every estimate starts from it; add flops.bf16, or remove flops",
            ),
        )
    )

    type: Literal["GPU", "CPU"] = "GPU"
    """`GPU`: pods ask for a device. `CPU`: the engine runs on the node's cores and asks for none."""
    description: Annotated[str, StringConstraints(max_length=1024)] = ""
    """What it is, and where its figures come from."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that have it; left out: any node that has the device."""
    resource_name: ResourceName | None = None
    """Extended resource of its device plugin, for example `nvidia.com/gpu`."""
    device_class_name: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    """DeviceClass of dynamic resource allocation."""
    memory: Quantity
    """Memory of one accelerator in bytes, for example `80Gi`."""
    memory_bandwidth: Quantity
    """Bytes per second, for example `3350G`."""
    flops: Flops | None = None
    """Peak dense arithmetic; left out: no roofline can be computed and a profile is needed."""
    link: Link | None = None
    """What joins the accelerators of one node; left out: no parallelism over several."""
    power: Power | None = None
    """Electric power of one accelerator."""
    price_per_hour: PositiveDecimal | None = None
    """Money per accelerator and hour; left out: costs are not shown."""
    capacity: Capacity = Field(default_factory=Capacity)
    """Where more of this class comes from."""

    @property
    def memory_bytes(self) -> int:
        """Memory of one accelerator in bytes."""
        return round(parse_quantity(self.memory))

    @property
    def memory_bandwidth_bytes(self) -> float:
        """Bytes per second."""
        return parse_quantity(self.memory_bandwidth)

    @property
    def price(self) -> Decimal | None:
        """Money per accelerator and hour."""
        return None if self.price_per_hour is None else parse_decimal(self.price_per_hour)

    @property
    def provision_seconds(self) -> float:
        """How long new capacity takes to come; 0 where it is there."""
        return 0.0 if self.capacity.provision_time is None else parse_duration(self.capacity.provision_time)


class AcceleratorClass(ApiObject):
    """One kind of accelerator: how to find it, what it can do, what it costs and where more comes from."""

    CRD: ClassVar[KindInfo] = KindInfo(
        plural="acceleratorclasses",
        singular="acceleratorclass",
        short_names=("accel",),
        namespaced=False,
        columns=(
            Column("Memory", ".spec.memory"),
            Column("Bandwidth", ".spec.memoryBandwidth", description="Bytes per second"),
            Column("Resource", ".spec.resourceName", description="Extended resource"),
            Column("Price/h", ".spec.pricePerHour", description="Money per accelerator and hour"),
            Column("Capacity", ".spec.capacity.source", description="Where more comes from"),
            Column("Age", ".metadata.creationTimestamp", type="date"),
            Column("Description", ".spec.description", priority=1),
        ),
        name_rules=(short_name_rule("AcceleratorClass"),),
    )

    kind: Literal["AcceleratorClass"] = "AcceleratorClass"
    spec: AcceleratorClassSpec
    """How to find it and what it can do."""
