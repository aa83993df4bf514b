"""Would the tests notice? Changes one thing at a time in a decision, and counts how many changes the tests catch.

    python hack/mutate.py picks [--sample 200] [--seed 1] [--timeout 60] [--jobs 1] [--json FILE]

A *mutant* is a module with one change (`<` for `<=`, `+` for `-`, a number one higher, a statement gone). It is
compiled in memory and imported in place of the module in a process of its own, which runs the tests of that room:
nothing on disk changes, and several people can do this in one tree. A mutant is *killed* when a test fails or the
time-out strikes (a loop that no longer ends), and *survives* when all pass. The score is killed / tried. Which mutants
are tried is drawn by the seed, evenly over all there are, so that two runs with one seed ask the same.

Some mutants change nothing that can be seen (`>=` for `>` where both sides give one answer): 100 % is not to be had,
and each survivor is printed to be looked at. Tests run on fixed Hypothesis examples: none is killed by luck.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Target:
    """Modules to change, and the tests that ought to notice (paths below the root; fastest to fail first)."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


_PICKS = "penstock.router.decisions."
TARGETS = {
    "picks": Target(
        tuple(
            _PICKS + name
            for name in (
                "kv_aware", "kv_memory", "loads", "policies", "policies_common", "policies_hash", "policies_plain",
                "predict", "prefix_affinity", "split", "stalls",
            )
        ),
        (
            "tests/router/test_pick_terms.py",
            "tests/router/test_pick_stalls.py",
            "tests/router/test_picks.py",
            "tests/router/test_picks_plain.py",
            "tests/router/test_decisions.py",
            "tests/router/test_legs.py",
        ),
    ),
    "guard": Target(
        tuple("penstock.autoscaler.decisions." + name for name in ("guard", "budgets", "history")),
        (
            "tests/autoscaler/test_guard_edges.py",
            "tests/autoscaler/test_guard.py",
            "tests/autoscaler/test_guard_memory.py",
            "tests/autoscaler/test_budgets.py",
            "tests/autoscaler/test_guard_class_machine.py",
            "tests/autoscaler/test_guard_machine.py",
        ),
    ),
}  # fmt: skip

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
_OTHER_NAME = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any",
    "argmin": "argmax", "argmax": "argmin",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the `number`-th that `changes` finds in a module."""

    module: str
    number: int
    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: `killed`, `timed out` (killed, too) or `survived`."""

    mutant: Mutant
    outcome: str
    seconds: float


# ---- changes --------------------------------------------------------------------------------------


def changes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every change that can be made to a module: `(line, what)`. While one is yielded, `tree` has it."""
    for node in _nodes(tree):
        yield from _of_statements(node)
        if isinstance(node, ast.Compare):
            yield from _of_comparison(node)
        elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _ARITHMETIC:
            yield from _swapped(node, "op", _ARITHMETIC[type(node.op)](), node.lineno)
        elif isinstance(node, ast.BoolOp):
            yield from _swapped(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.lineno)
        elif isinstance(node, ast.Constant):
            yield from _of_constant(node)
        elif isinstance(node, ast.Attribute) and node.attr in _OTHER_NAME:
            yield from _swapped(node, "attr", _OTHER_NAME[node.attr], node.lineno)
        elif isinstance(node, ast.Name) and node.id in _OTHER_NAME:
            yield from _swapped(node, "id", _OTHER_NAME[node.id], node.lineno)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield from _swapped(node, "test", ast.UnaryOp(ast.Not(), node.test), node.lineno)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes whose change can matter: no imports, annotations, decorators, docstrings, words for people."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else (value,):
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.AnnAssign):
                if child.value is not None:
                    yield from _nodes(child.value)
                continue
            if isinstance(child, ast.Assign) and isinstance(node, ast.Module) and _is_declaration(child):
                continue
            yield from _nodes(child)


def _is_declaration(statement: ast.Assign) -> bool:
    """Whether a module's assignment only names a type or what it exports."""
    target = statement.targets[0]
    if not isinstance(target, ast.Name):
        return False
    return target.id == "__all__" or isinstance(statement.value, ast.Subscript)


def _swapped(node: ast.AST, field: str, other: object, line: int) -> Iterator[tuple[int, str]]:
    before = getattr(node, field)
    was = _shown(node)
    setattr(node, field, other)
    yield line, f"{was}  ->  {_shown(node)}"
    setattr(node, field, before)


def _of_comparison(node: ast.Compare) -> Iterator[tuple[int, str]]:
    for place, operator in enumerate(node.ops):
        was = _shown(node)
        node.ops[place] = _COMPARE[type(operator)]()
        yield node.lineno, f"{was}  ->  {_shown(node)}"
        node.ops[place] = operator


def _of_constant(node: ast.Constant) -> Iterator[tuple[int, str]]:
    if isinstance(node.value, bool):
        yield from _swapped(node, "value", not node.value, node.lineno)
    elif isinstance(node.value, int | float):
        yield from _swapped(node, "value", node.value + 1, node.lineno)


def _of_statements(node: ast.AST) -> Iterator[tuple[int, str]]:
    """A call or an in-place sum that is left out."""
    if isinstance(node, ast.ClassDef | ast.Module):
        return
    for field in ("body", "orelse", "finalbody"):
        body = getattr(node, field, None)
        if not isinstance(body, list):
            continue
        for place, statement in enumerate(body):
            if isinstance(statement, ast.AugAssign) or (
                isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            ):
                body[place] = ast.copy_location(ast.Pass(), statement)
                yield statement.lineno, f"{_shown(statement)}  ->  pass"
                body[place] = statement


def _shown(node: ast.AST) -> str:
    try:
        text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    except (AttributeError, ValueError, TypeError):
        return type(node).__name__
    return " ".join(text.split())[:90]


def source_of(module: str) -> Path:
    """Where a module lies, found without importing it."""
    room, *rest = module.split(".")[1:]
    return ROOT.joinpath(room, "penstock", room, *rest).with_suffix(".py")


def mutants_of(module: str) -> list[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source_of(module).read_text())
    return [Mutant(module, number, line, what) for number, (line, what) in enumerate(changes(tree))]


def compiled(mutant: Mutant) -> CodeType:
    """A module's code with the mutant's change; as it is where the number is below 0."""
    path = source_of(mutant.module)
    tree = ast.parse(path.read_text())
    if mutant.number < 0:
        return compile(tree, str(path), "exec")
    for number, _ in enumerate(changes(tree)):
        if number == mutant.number:
            return compile(ast.fix_missing_locations(tree), str(path), "exec")
    raise ValueError(f"{mutant.module} has no change number {mutant.number}")


# ---- trying them ----------------------------------------------------------------------------------


class _Loader(importlib.abc.Loader):
    def __init__(self, code: CodeType) -> None:
        self._code = code

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    """Gives the changed module in place of the one on disk."""

    def __init__(self, name: str, code: CodeType) -> None:
        self._name, self._code = name, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The changed module's spec; nothing for any other."""
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, _Loader(self._code), origin=str(source_of(fullname)))


class _Settings:
    """A pytest plugin: after the tests' own settings are read, before a test is."""

    def pytest_sessionstart(self) -> None:
        """That a test fails is all that is asked, so nothing is shrunk; fixed examples, so that none dies by luck."""
        from hypothesis import Phase, settings

        known = settings.get_profile("usual")
        fixed = settings(known, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
        settings.register_profile("mutation", fixed)
        settings.load_profile("mutation")


def run_tests(tests: Sequence[str]) -> int:
    """Run these tests here, up to the first failure; pytest's exit status."""
    import pytest

    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[_Settings()]))


def _in_child(mutants: Sequence[Mutant], tests: Sequence[str]) -> int:
    """The child's part: install the changes, run the tests, tell by the exit status."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for mutant in mutants:
        sys.meta_path.insert(0, _Finder(mutant.module, compiled(mutant)))
    return run_tests(tests)


def tried(mutants: Sequence[Mutant], tests: Sequence[str], timeout: float) -> Verdict:
    """Run the tests with these changes (the verdict names the first) in a child process, bounded in time."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = _in_child(mutants, tests)
        finally:
            os._exit(status)
    outcome = _outcome(child, began + timeout)
    return Verdict(mutants[0], outcome, round(time.monotonic() - began, 2))


def _outcome(child: int, until: float) -> str:
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def chosen(target: Target, sample: int, seed: int) -> tuple[list[Mutant], int]:
    """The mutants to try, in the order of the code, and how many there are."""
    every = [mutant for module in target.modules for mutant in mutants_of(module)]
    if sample and sample < len(every):
        picked = set(random.Random(seed).sample(range(len(every)), sample))
        return [mutant for place, mutant in enumerate(every) if place in picked], len(every)
    return every, len(every)


def report(verdicts: Sequence[Verdict]) -> float:
    """Print the score of each module; returns the whole score, 0 to 1."""
    totals, killed = Counter[str](), Counter[str]()
    for verdict in verdicts:
        totals[verdict.mutant.module] += 1
        killed[verdict.mutant.module] += verdict.outcome != "survived"
    for module, total in totals.items():
        print(f"{killed[module]:>5} of {total:>4}  {killed[module] / total:6.1%}  {module}")
    score = killed.total() / max(1, totals.total())
    print(f"{killed.total():>5} of {totals.total():>4}  {score:6.1%}  all")
    return score


def main() -> int:
    """Try and tell; exit status 1 below `--least`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--sample", type=int, default=200, help="mutants to try; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for the tests of one mutant")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at once")
    parser.add_argument("--least", type=float, default=0.8, help="score below which this fails")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.chdir(ROOT)
    target = TARGETS[given.target]
    tests = [path for path in target.tests if Path(path).exists()]
    _import_what_tests_need()
    # The very road that mutants go, without a change: who fails here would count as killed for nothing.
    unchanged = tried([Mutant(name, -1, 0, "unchanged") for name in target.modules], tests, 10 * given.timeout)
    if unchanged.outcome != "survived":
        print(f"the tests do not pass on the code as it is ({unchanged.outcome}); run: pytest {' '.join(tests)}")
        return 2
    mutants, there_are = chosen(target, given.sample, given.seed)
    print(f"{len(mutants)} of {there_are} mutants; the tests take {unchanged.seconds:.1f} s", flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        verdicts = []
        for verdict in pool.map(lambda mutant: tried([mutant], tests, given.timeout), mutants):
            verdicts.append(verdict)
            if verdict.outcome == "survived":
                where = f"{verdict.mutant.module}:{verdict.mutant.line}"
                print(f"{len(verdicts):>5}  survived  {where}  {verdict.mutant.what}", flush=True)
    score = report(verdicts)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    return int(score < given.least)


def _import_what_tests_need() -> None:
    """Import what every child needs, once; nothing of ours, which a mutant may be part of."""
    import hypothesis.strategies
    import msgspec
    import numpy
    import pytest
    import pytest_asyncio
    import uvloop

    del hypothesis, msgspec, numpy, pytest, pytest_asyncio, uvloop


if __name__ == "__main__":
    sys.exit(main())
