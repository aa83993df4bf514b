"""Write the CustomResourceDefinitions from the models of `penstock.api` (part of `make generate`).

The files go to `crds/` (to read) and to `charts/penstock/crds/` (Helm installs those before anything else).
With `--check` nothing is written; stale files are named and the exit status is 1.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from penstock.api import KINDS
from penstock.api.crd import custom_resource_definition

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (ROOT / "crds", ROOT / "charts" / "penstock" / "crds")
HEADER = "# Generated from crds/penstock/api by `make generate`; do not edit.\n"


def to_yaml(document: Any) -> str:
    """YAML in the order given, long lines folded, no anchors."""
    return HEADER + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=116, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Safe dumper without anchors: Kubernetes tools read them, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render() -> dict[Path, str]:
    """Path and content of every generated file."""
    texts = {f"{kind.CRD.crd_name}.yaml": to_yaml(custom_resource_definition(kind)) for kind in KINDS}
    return {folder / name: text for folder in FOLDERS for name, text in texts.items()}


def stale(rendered: dict[Path, str]) -> list[Path]:
    """Files whose content differs, that are missing, or that nothing generates any more."""
    wrong = [path for path, text in rendered.items() if not path.exists() or path.read_text() != text]
    left = [path for folder in FOLDERS for path in folder.glob("*.yaml") if path not in rendered]
    return wrong + left


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a file is stale")
    options = parser.parse_args(arguments)
    rendered = render()
    out_of_date = stale(rendered)
    if options.check:
        for path in out_of_date:
            print(f"{path.relative_to(ROOT)} is stale; run `make generate`", file=sys.stderr)
        return 1 if out_of_date else 0
    for path in out_of_date:
        if path not in rendered:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
