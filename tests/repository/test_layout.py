"""The house is built as the contributing page says: rooms, contracts, one namespace, true links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOMS = {
    "core": "core",
    "crds": "api",
    "operator": "operator",
    "router": "router",
    "autoscaler": "autoscaler",
    "workers": "workers",
    "simulator": "simulator",
    "box": "box",
    "cli": "cli",
}
"""Folder of each room and its name in the namespace."""

RULES = ("core knows nobody", "decisions are pure", "shells are strangers", "the twin takes brains only")
RULES += ("optional engines stay optional",)

MAX_LINES = 600
"""A hard stop; the aim is 400."""
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:work|root)/(?!\.\.\.)[\w.]")


@pytest.mark.parametrize(("folder", "name"), ROOMS.items())
def test_a_room_has_its_portion_and_a_readme(root: Path, folder: str, name: str) -> None:
    assert (root / folder / "penstock" / name / "__init__.py").is_file()
    assert len((root / folder / "README.md").read_text().splitlines()) >= 5
    assert not (root / folder / "__init__.py").exists()


def test_the_namespace_has_no_init(files: list[Path]) -> None:
    assert not [path for path in files if path.parts[-2:] == ("penstock", "__init__.py")]


def test_the_wheel_and_the_editable_install_know_every_room(project: dict[str, Any]) -> None:
    build = project["tool"]["hatch"]["build"]
    assert set(build["dev-mode-dirs"]) == set(ROOMS)
    assert set(build["targets"]["wheel"]["packages"]) == {f"{folder}/penstock" for folder in ROOMS}
    assert set(project["tool"]["mypy"]["mypy_path"]) == set(ROOMS)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_the_house_is_a_contract(project: dict[str, Any], rule: str) -> None:
    contracts = [c["name"] for c in project["tool"]["importlinter"]["contracts"]]
    assert any(name == rule or name.startswith(f"{rule}:") for name in contracts)


def test_every_decisions_floor_is_under_the_contract(project: dict[str, Any], root: Path) -> None:
    (pure,) = (c for c in project["tool"]["importlinter"]["contracts"] if c["name"] == "decisions are pure")
    floors = {
        f"penstock.{name}.decisions"
        for folder, name in ROOMS.items()
        if (root / folder / "penstock" / name / "decisions").is_dir()
    }
    assert floors == set(pure["source_modules"])


def test_links_between_pages_resolve(files: list[Path], root: Path) -> None:
    broken = []
    for page in (path for path in files if path.suffix == ".md"):
        for target in (first or second for first, second in LINK.findall(page.read_text())):
            if re.match(r"[a-z]+:|#", target):
                continue
            if not (page.parent / target.partition("#")[0]).exists():
                broken.append(f"{page.relative_to(root)} -> {target}")
    assert not broken


def test_every_page_under_docs_can_be_reached_from_the_index(files: list[Path], root: Path) -> None:
    docs = root / "docs"
    seen, todo = set(), [docs / "index.md"]
    while todo:
        page = todo.pop().resolve()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        links = (first or second for first, second in LINK.findall(page.read_text()))
        todo += [page.parent / link.partition("#")[0] for link in links if not link.startswith("#")]
    pages = {path for path in files if path.suffix == ".md" and docs in path.parents}
    assert not {str(path.relative_to(root)) for path in pages - seen}


def test_no_file_names_a_path_of_the_machine_it_was_written_on(files: list[Path], root: Path) -> None:
    named = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__) and MACHINE_PATH.search(text):
            named.append(str(path.relative_to(root)))
    assert not named


def test_no_module_is_an_attic(files: list[Path], root: Path) -> None:
    """A module of more lines holds a second idea: split it."""
    long = {
        str(path.relative_to(root)): lines
        for path in files
        if path.suffix == ".py"
        and "_pb2" not in path.name
        and (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long
