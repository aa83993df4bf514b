"""Write the CustomResourceDefinitions from the models of `penstock.api` (part of `make generate`).

The files go to `crds/` (to read) and to `charts/penstock/crds/` (Helm installs those before anything else).
With `--check` nothing is written; stale files are named and the exit status is 1.
"""

import sys
from pathlib import Path

from generated import ROOT, run, to_yaml
from penstock.api import KINDS
from penstock.api.crd import custom_resource_definition

FOLDERS = (ROOT / "crds", ROOT / "charts" / "penstock" / "crds")
HEADER = "# Generated from crds/penstock/api by `make generate`; do not edit.\n"


def render() -> dict[Path, str]:
    """Path and content of every generated file."""
    texts = {f"{kind.CRD.crd_name}.yaml": to_yaml(custom_resource_definition(kind), HEADER) for kind in KINDS}
    return {folder / name: text for folder in FOLDERS for name, text in texts.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    owned = [path for folder in FOLDERS for path in folder.glob("*.yaml")]
    return run("Write the CustomResourceDefinitions.", render(), owned, arguments)


if __name__ == "__main__":
    sys.exit(main())
