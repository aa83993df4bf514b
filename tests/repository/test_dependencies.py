"""The plain install is the union of the roles, and each role's extra is enough to run that role alone."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any

import grimp
import pytest

OPTIONAL_ENGINES = {"vllm", "ray"}
ROOMS = ("core", "api", "operator", "router", "autoscaler", "workers", "simulator", "box", "cli")
IMAGE_ROLES = ("operator", "router", "autoscaler", "workers")
"""Roles that run from an image which has their extra and nothing else."""

NAMESPACES = {"google": ["protobuf"]}
"""Several distributions fill this one; whoever imports any of it needs the one that all the others need."""


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        *(f"penstock.{room}" for room in ROOMS), include_external_packages=True, exclude_type_checking_imports=True
    )


def imported_distributions(room: str) -> set[str]:
    """Distributions that a room's modules reach by any chain of imports."""
    imports = graph()
    modules = {m for m in imports.modules if m == f"penstock.{room}" or m.startswith(f"penstock.{room}.")}
    reached = set(modules)
    for module in modules:
        reached |= imports.find_upstream_modules(module)
    # What a package's __init__ imports is loaded with any module in it.
    parents = {m.rsplit(".", depth)[0] for m in reached for depth in range(1, m.count("."))}
    for parent in parents & imports.modules:
        reached |= {parent, *imports.find_upstream_modules(parent)}
    external = {m for m in reached if imports.is_module_squashed(m) and not m.startswith("penstock")}
    names = packages_distributions() | NAMESPACES
    return {names.get(m, [m])[0].lower().replace("_", "-") for m in external if m not in sys.stdlib_module_names}


def test_the_plain_install_is_the_union_of_the_roles(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    union = {needed for name, needs in extras.items() if name not in OPTIONAL_ENGINES for needed in needs}
    assert set(project["project"]["dependencies"]) == union


@pytest.mark.parametrize("role", IMAGE_ROLES)
def test_a_roles_extra_holds_everything_the_role_imports(project: dict[str, Any], role: str) -> None:
    extra = {distribution(needed) for needed in project["project"]["optional-dependencies"][role]}
    missing = imported_distributions(role) - extra - OPTIONAL_ENGINES
    assert not missing, f"penstock[{role}] lacks {sorted(missing)}, which modules of this role import"


def test_the_extras_of_box_and_cli_hold_what_the_command_imports(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    extra = {distribution(needed) for name in ("box", "cli") for needed in extras[name]}
    missing = (imported_distributions("box") | imported_distributions("cli")) - extra
    assert not missing, f"penstock[box,cli] lacks {sorted(missing)}"


def test_the_lock_pins_every_dependency_with_hashes(project: dict[str, Any], root: Any) -> None:
    lock = (root / "requirements.lock").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([A-Za-z0-9_.-]+)==", lock, flags=re.MULTILINE)}
    needed = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    assert {distribution(entry) for entry in needed} <= pinned
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry.splitlines()[0])
    assert "://" not in re.sub(r"#.*", "", lock), "the lock must not name a registry"
