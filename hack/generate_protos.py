"""Generate the Python (and its types) of every .proto file of the repository, beside the file it is made from.

Run by `make generate`; `--check` writes nothing and fails when a committed file is stale.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
# Each folder is its own import root, so that a file's messages are registered under its bare name.
FOLDERS = (Path("box/penstock/box/node/wire"),)


def generate(folder: Path, out: Path) -> list[Path]:
    """Compile the .proto files of `folder` into `out`; return what was written."""
    sources = sorted(folder.glob("*.proto"))
    names = [str(source) for source in sources]
    arguments = ["protoc", f"-I{folder}", f"--python_out={out}", f"--pyi_out={out}", *names]
    if protoc.main(arguments) != 0:
        raise SystemExit(f"protoc failed on {folder}")
    return [out / f"{source.stem}_pb2{suffix}" for source in sources for suffix in (".py", ".pyi")]


def is_stale(folder: Path) -> list[Path]:
    """The generated files of `folder` that differ from what the .proto files say now."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(folder, Path(scratch))
        pairs = [(folder / path.name, path) for path in fresh]
        return [kept for kept, new in pairs if not kept.exists() or kept.read_bytes() != new.read_bytes()]


def main(arguments: list[str] | None = None) -> int:
    """Generate, or check, all folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a generated file is stale; write nothing")
    check = parser.parse_args(arguments).check
    stale: list[Path] = []
    for folder in FOLDERS:
        if check:
            stale += is_stale(ROOT / folder)
        else:
            generate(ROOT / folder, ROOT / folder)
    for path in stale:
        print(f"stale: {path.relative_to(ROOT)} (run `make generate`)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
