"""Writing generated files, or checking that they are fresh: what every generator in this folder shares."""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


class _Dumper(yaml.SafeDumper):
    """Safe dumper without anchors: Kubernetes tools read them, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: Any, header: str = "") -> str:
    """YAML in the order given, long lines folded, no anchors."""
    return header + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=116, allow_unicode=True)


def stale(rendered: Mapping[Path, str], owned: Iterable[Path] = ()) -> list[Path]:
    """Files whose content differs, that are missing, or (of those `owned`) that nothing generates any more."""
    wrong = [path for path, text in rendered.items() if not path.exists() or path.read_text() != text]
    return wrong + [path for path in owned if path not in rendered]


def run(description: str, rendered: Mapping[Path, str], owned: Iterable[Path] = (), arguments: Any = None) -> int:
    """Write what is stale, or with `--check` name it and change nothing; the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a file is stale")
    options = parser.parse_args(arguments)
    out_of_date = stale(rendered, owned)
    for path in out_of_date:
        if options.check:
            print(f"{path.relative_to(ROOT)} is stale; run `make generate`", file=sys.stderr)
        else:
            _write(path, rendered.get(path))
    return 1 if options.check and out_of_date else 0


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path.relative_to(ROOT)}")
