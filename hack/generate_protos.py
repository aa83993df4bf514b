"""Generate the Python (and its types, and gRPC stubs where there are services) of the repository's .proto files.

Run by `make generate`; `--check` writes nothing and fails when a committed file is stale.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Tree:
    """.proto files below one import root. Their names below it are how they are registered, and where their
    Python lies below `python`."""

    protos: Path
    python: Path
    services: bool = False


TREES = (
    # A root of its own, so that the messages are registered under their file's bare name.
    Tree(Path("box/penstock/box/node/wire"), Path("box/penstock/box/node/wire")),
    Tree(Path("router/proto"), Path("router"), services=True),
)


def generate(tree: Tree, out: Path) -> list[Path]:
    """Compile the .proto files of `tree` into `out`; return what was written, relative to it."""
    protos = ROOT / tree.protos
    sources = sorted(protos.rglob("*.proto"))
    arguments = ["protoc", f"-I{protos}", f"--python_out={out}", f"--pyi_out={out}"]
    if tree.services:
        arguments.append(f"--grpc_python_out={out}")
    if protoc.main([*arguments, *map(str, sources)]) != 0:
        raise SystemExit(f"protoc failed on {tree.protos}")
    suffixes = ["_pb2.py", "_pb2.pyi"] + (["_pb2_grpc.py"] if tree.services else [])
    names = [source.relative_to(protos) for source in sources]
    return [name.with_name(name.stem + suffix) for name in names for suffix in suffixes]


def find_stale(tree: Tree) -> list[Path]:
    """The generated files of `tree` that differ from what the .proto files say now."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(tree, Path(scratch))
        pairs = [(ROOT / tree.python / name, Path(scratch) / name) for name in fresh]
        return [kept for kept, new in pairs if not kept.exists() or kept.read_bytes() != new.read_bytes()]


def main(arguments: list[str] | None = None) -> int:
    """Generate, or check, all trees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a generated file is stale; write nothing")
    check = parser.parse_args(arguments).check
    stale: list[Path] = []
    for tree in TREES:
        if check:
            stale += find_stale(tree)
        else:
            generate(tree, ROOT / tree.python)
    for path in stale:
        print(f"stale: {path.relative_to(ROOT)} (run `make generate`)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
