"""The public scenarios, on which everybody's policy is scored. An honest judge holds back some of their own."""

from __future__ import annotations

from pathlib import Path

from penstock.simulator.files import ScenarioForm, parse_scenario

__all__ = ["FOLDER", "public_scenarios"]

FOLDER = Path(__file__).parent / "scenarios"
_ORDER = ("tight", "loose", "over", "sessions", "bursts", "mixed", "crash", "apart", "spikes", "mooncake")


def public_scenarios() -> dict[str, ScenarioForm]:
    """By name, in the order in which they are shown."""
    files = {name: FOLDER / f"{name}.yaml" for name in _ORDER}
    return {name: parse_scenario(file.read_text(encoding="utf-8"), file.name) for name, file in files.items()}
