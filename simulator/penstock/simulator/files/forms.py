"""A scenario file as a whole."""

from __future__ import annotations

from typing import Annotated, Literal

from penstock.core.models import (
    ModelArchitecture,
    find_accelerator,
    find_model,
    known_accelerators,
    known_models,
    suggest,
    suggest_accelerator,
)
from penstock.router.decisions.policies import DEFAULT_POLICY
from penstock.router.decisions.retries import RetryLimits
from penstock.router.decisions.split import SplitLimits
from penstock.simulator.faults import Timeouts
from penstock.simulator.files.parts import (
    AnyFault,
    EngineForm,
    NodesForm,
    ObjectivesForm,
    ParallelismForm,
    PoolForm,
    ProfileForm,
    RouterForm,
    StartUpForm,
    TopologyForm,
    TransferForm,
)
from penstock.simulator.files.scaling import AutoscalerForm, PowerForm
from penstock.simulator.files.values import Form
from penstock.simulator.files.workload import WorkloadForm
from penstock.simulator.scenario import FirstToken, NodeGroup, Scenario, parse_nodes
from pydantic import Field, field_validator

__all__ = ["ScenarioForm", "model_named"]


class ScenarioForm(Form):
    """A cluster, what it runs, how, and what is asked of it."""

    version: Literal[1] = 1
    """Of the form."""
    model: str
    """Public name or alias of a model of the catalogue."""
    nodes: Annotated[tuple[NodesForm, ...], Field(min_length=1)]
    """A list, or text such as `a100-80g=4x8,h100-80g=1x8`."""
    workload: WorkloadForm
    policy: str = DEFAULT_POLICY
    objectives: ObjectivesForm = ObjectivesForm()
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    pools: tuple[PoolForm, ...] = ()
    parallelism: ParallelismForm | None = None
    """Without pools, of every worker."""
    engine: EngineForm = EngineForm()
    profile: ProfileForm | None = None
    router: RouterForm = RouterForm()
    transfer: TransferForm = TransferForm()
    topology: TopologyForm = TopologyForm()
    first_token: FirstToken = FirstToken.DECODE
    cold: bool = False
    start_up: StartUpForm = StartUpForm()
    faults: tuple[AnyFault, ...] = ()
    autoscaler: AutoscalerForm | None = None
    """Left out: pools keep their replicas."""
    power: PowerForm = PowerForm()

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        model_named(name)
        return name

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes_from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [
            {"acceleratorClass": group.accelerator.name, "nodes": group.nodes, "accelerators": group.accelerators}
            for group in parse_nodes(value)
        ]

    @field_validator("nodes")
    @classmethod
    def _known_accelerators(cls, groups: tuple[NodesForm, ...]) -> tuple[NodesForm, ...]:
        for group in groups:
            _node_group(group)
        return groups

    def scenario(self, seed: int | None = None) -> Scenario:
        """The cluster, with another seed where one is given."""
        router, engine = self.router, self.engine
        return Scenario(
            model=model_named(self.model),
            groups=tuple(_node_group(group) for group in self.nodes),
            policy=self.policy,
            pools=tuple(pool.build() for pool in self.pools),
            parallelism=None if self.parallelism is None else self.parallelism.build(),
            max_context=engine.max_context,
            kv_capacity=engine.kv_tokens,
            block_size=engine.block_size,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            scheduler=engine.scheduler,
            max_stalls=engine.max_stalls,
            mixed_pass_factor=engine.mixed_pass_factor,
            scheduling_policy=engine.scheduling_policy,
            host=engine.host,
            prefix_caching=engine.prefix_caching,
            profile=None if self.profile is None else self.profile.build(),
            ttft_s=self.objectives.ttft,
            tpot_s=self.objectives.tpot,
            index_bytes=router.index_bytes,
            cold=self.cold,
            start_up=self.start_up.build(),
            scrape_interval_s=router.scrape_interval,
            transfer=self.transfer.build(),
            topology=self.topology.build(),
            split=router.split.make(SplitLimits),
            first_token=self.first_token,
            readiness_delay_s=router.readiness_delay,
            max_in_flight=router.max_in_flight,
            retries=router.retries.make(RetryLimits),
            faults=tuple(fault.build() for fault in self.faults),
            timeouts=router.timeouts.make(Timeouts),
            autoscaling=None if self.autoscaler is None else self.autoscaler.build(),
            power=tuple(domain.build() for domain in self.power.domains),
            power_interval_s=self.power.interval,
            seed=self.seed if seed is None else seed,
        )


def model_named(name: str) -> ModelArchitecture:
    """The catalogue's model of this name. Raises ValueError, which says what comes near or else what there is."""
    found = find_model(name)
    if found is None:
        near = suggest(name)
        there = ", ".join(known.name.rpartition("/")[2] for known in known_models())
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is {there}"
        raise ValueError(f"model {name!r} is not in the catalogue; {hint}")
    return found


def _node_group(form: NodesForm) -> NodeGroup:
    found = find_accelerator(form.accelerator_class)
    if found is None:
        near = suggest_accelerator(form.accelerator_class) or tuple(one.name for one in known_accelerators())
        raise ValueError(
            f"accelerator class {form.accelerator_class!r} is not in the catalogue; there is {', '.join(near)}"
        )
    return NodeGroup(found, form.nodes, form.accelerators)
