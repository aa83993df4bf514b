"""The mutation harness: its changes are changes, each alone, and a test that would notice does."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = """
'''Words.'''
from x import y
LEAST: int = 3

def pick(values, at=None):
    \"\"\"Words.\"\"\"
    total = 0
    for value in values:
        if value < LEAST and not (at is None):
            total += value * 2
        values.sort()
    return max(total, -1) if total else True
"""


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    """The harness as a module."""
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "hack/mutate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


def test_each_change_is_another_one_and_is_taken_back(mutate: ModuleType) -> None:
    tree = ast.parse(SOURCE)
    before = ast.unparse(tree)
    found = [(what, ast.unparse(ast.fix_missing_locations(tree))) for _, what in mutate.changes(tree)]
    texts = [text for _, text in found]
    assert before not in texts and len(set(texts)) == len(texts)
    assert ast.unparse(tree) == before
    for part in (
        "value <= LEAST",
        "is not None",
        "or not",
        "total -= ",
        "value / 2",
        "value * 3",
        "min(total",
        "LEAST: int = 4",
    ):
        assert any(part in text for text in texts), part
    assert any("values.sort()" not in text for text in texts)
    assert all("Words." in text and "from x import y" in text for text in texts)


def test_a_change_is_compiled_in_the_place_of_its_module(mutate: ModuleType) -> None:
    name = "penstock.router.decisions.split"
    mutant = next(m for m in mutate.mutants_of(name) if "tokens < limits.min_tokens" in m.what)
    before, after = mutate.compiled(mutate.Mutant(name, -1, 0, "")), mutate.compiled(mutant)
    assert before.co_filename == after.co_filename and before.co_code == after.co_code
    assert before != after


def test_every_target_names_modules_and_tests_that_are_there(mutate: ModuleType) -> None:
    for target in mutate.TARGETS.values():
        assert all(mutate.source_of(module).is_file() for module in target.modules)
        assert all((ROOT / test).is_file() for test in target.tests)
