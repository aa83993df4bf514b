"""`python -m penstock.autoscaler`: the autoscaler as a process."""

import asyncio
import os
import signal
import sys

from penstock.autoscaler.decisions.planners import UnknownPlanner
from penstock.autoscaler.shell.app import Autoscaler, run_until
from penstock.autoscaler.shell.cluster import connect
from penstock.autoscaler.shell.logs import configure
from penstock.autoscaler.shell.settings import Settings, parse_settings
from penstock.core.policy_files import PolicyFileError


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with await connect() as api:
        await run_until(loop.create_task(Autoscaler(settings, api).run()), stop)


def main() -> int:
    """Entry point; 1 where it cannot start as it was told to."""
    settings = parse_settings(sys.argv[1:], os.environ)
    configure(settings.log_level)
    try:
        asyncio.run(serve(settings))
    except (PolicyFileError, UnknownPlanner) as problem:
        print(f"penstock-autoscaler: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
