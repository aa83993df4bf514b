"""`python -m penstock.router`: run the router."""

import asyncio
import sys
from contextlib import suppress

import uvloop
from penstock.router.shell.app import serve
from penstock.router.shell.logs import configure
from penstock.router.shell.settings import parse_settings


def main() -> int:
    """Run until told to stop; the exit code is 0 after a drain, 1 when it could not start."""
    settings = parse_settings(sys.argv[1:])
    configure(settings.log_level)
    with suppress(asyncio.CancelledError):
        try:
            uvloop.run(serve(settings))
        except (OSError, ValueError) as problem:
            print(f"penstock-router: {problem}", file=sys.stderr)  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
