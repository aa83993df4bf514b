"""Write every generated file of the repository, or with `--check` fail when one is stale: `make generate`."""

import sys

import generate_chart
import generate_crds
import generate_dashboard
import generate_protos
import generate_reference

GENERATORS = (
    generate_crds.main,
    generate_chart.main,
    generate_dashboard.main,
    generate_reference.main,
    generate_protos.main,
)


def main(arguments: list[str] | None = None) -> int:
    """Run all, even when one finds something stale; the worst exit status."""
    return max([generator(arguments) for generator in GENERATORS])


if __name__ == "__main__":
    sys.exit(main())
