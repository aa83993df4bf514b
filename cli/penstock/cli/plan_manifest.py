"""A plan as a ModelDeployment: what `kubectl apply` takes, checked by the same models as the API's."""

from __future__ import annotations

from typing import Any

import yaml
from penstock.api import ModelDeployment
from penstock.api.quantities import format_duration
from penstock.core.fleet import Role
from penstock.simulator.planning import Plan, PlanPool, Space

__all__ = ["deployment", "manifest"]

_NAMES = {Role.PREFILL_DECODE: "serve", Role.PREFILL: "prefill", Role.DECODE: "decode"}


def deployment(space: Space, plan: Plan, name: str) -> ModelDeployment:
    """The object. Raises pydantic's ValidationError, a ValueError, where the API takes no such name or objective."""
    goal = space.objectives
    return ModelDeployment.model_validate(
        {
            "metadata": {"name": name},
            "spec": {
                "model": {"name": space.model.name, "maxContextTokens": max(space.context, 16)},
                "engine": {
                    "args": [f"--max-num-batched-tokens={budget(plan)}", f"--max-num-seqs={space.max_num_seqs}"]
                },
                "objectives": {
                    "ttft": format_duration(goal.ttft_s),
                    "tpot": format_duration(goal.tpot_s),
                    "attainment": f"{goal.attainment * 100:g}%",
                },
                "disaggregation": "Always" if plan.apart else "Never",
                "pools": [_pool(plan, pool) for pool in plan.pools],
                "routing": {"policy": space.policy},
            },
        }
    )


def manifest(space: Space, plan: Plan, name: str) -> str:
    """The object as YAML, with what cannot be said in it as comments."""
    made = deployment(space, plan, name)
    fields = made.to_dict()
    kept: dict[str, Any] = {key: fields[key] for key in ("apiVersion", "kind")}
    kept["metadata"] = {"name": name}
    set_here = made.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    kept["spec"] = set_here
    return "\n".join([*_notes(plan), yaml.safe_dump(kept, sort_keys=False).rstrip()]) + "\n"


def budget(plan: Plan) -> int:
    """The token budget of the deployment's engines: that of the workers that compute prompts, the smallest of them."""
    return min(pool.cell.budget for pool in plan.pools if pool.cell.role is not Role.DECODE)


def _notes(plan: Plan) -> list[str]:
    budgets = {pool.cell.budget for pool in plan.pools if pool.cell.role is not Role.DECODE}
    notes = [f"# {plan}"]
    if len(budgets) > 1:
        notes.append("# The plan has another token budget for each class; a deployment has one, the smallest is taken.")
        notes.append("# Variants of its EngineClass can have arguments by accelerator.")
    return notes


def _pool(plan: Plan, pool: PlanPool) -> dict[str, Any]:
    degrees = pool.cell.parallelism
    alike = [other for other in plan.pools if other.cell.role is pool.cell.role]
    name = _NAMES[pool.cell.role]
    return {
        "name": name if len(alike) == 1 else f"{name}-{pool.cell.accelerator}",
        "role": pool.cell.role.api_name,
        "acceleratorClasses": [pool.cell.accelerator],
        "parallelism": degrees.to_dict(),
        "replicas": {"min": pool.replicas, "max": pool.replicas},
    }
