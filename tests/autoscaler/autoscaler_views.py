"""Deployments to plan for, made from a few words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penstock.autoscaler.decisions.capacity import Objectives, WorkerModel
from penstock.autoscaler.decisions.demand import TokenMix
from penstock.autoscaler.decisions.snapshot import ClusterSnapshot, DeploymentView, Pods, PoolView, RoleLoad
from penstock.core.models import LatencyProfile, ProfileSource

KEY = ("team", "chat")
MIX = TokenMix(prompt=1000, computed=800, output=200)
OBJECTIVES = Objectives(ttft_s=1.0, tpot_s=0.05)
PROFILE = LatencyProfile((5.0, 0.08, 0.0), (8.0, 0.05, 0.00001), ProfileSource.BENCHMARK, "made up")


def pool(role: str = "PrefillDecode", replicas: int = 2, accelerator: str = "h100", **more: Any) -> PoolView:
    name = {"PrefillDecode": "serve"}.get(role, role.lower())
    base = PoolView(
        name=f"chat-{name}-{accelerator}",
        pool=name,
        role=role,
        accelerator=accelerator,
        accelerators=1,
        cost_per_hour=2.0,
        worker=WorkerModel(PROFILE, 400_000),
        replicas=replicas,
        least=1,
        most=64,
        pods=Pods(ready=replicas),
    )
    return replace(base, **more)


def load(rate: float, **more: Any) -> RoleLoad:
    base = RoleLoad(rate=rate, level=rate, waiting=0.0, age_s=1.0, coverage=1.0)
    return replace(base, **more)


def view(*pools: PoolView, loads: Mapping[str, RoleLoad] | None = None, **more: Any) -> DeploymentView:
    chosen = pools or (pool(),)
    loads = {p.role: load(1.0) for p in chosen} if loads is None else loads
    return replace(DeploymentView(KEY, "Auto", OBJECTIVES, tuple(chosen), loads=loads, mix=MIX), **more)


def snapshot(*views: DeploymentView, now: float = 10_000.0, **limits: int) -> ClusterSnapshot:
    return ClusterSnapshot(now, views, limits)
