"""`python -m penstock.box.node --spec FILE`: one node of the box, until it is ended.

To be started as root of the box's namespaces, with the bridge, the API server and the binaries in place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from penstock.box.node import enter


def main() -> int:
    """Parse the command line and run the node."""
    parser = argparse.ArgumentParser(prog="penstock.box.node", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="the node's spec file (JSON)")
    return enter.run(parser.parse_args().spec)


if __name__ == "__main__":
    raise SystemExit(main())
