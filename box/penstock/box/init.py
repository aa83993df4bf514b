"""The first process of a process namespace: runs one command, buries orphans, passes signals on.

When it ends the kernel ends every process of the namespace, so its life is the life of everything in it. It is run as
a file, without `site` and without any import of ours, because one of it stands in memory for each node.
"""

from __future__ import annotations

import os
import signal
import sys


def run(command: list[str]) -> int:
    """Run `command` to its end while reaping every orphan; returns its exit status, 128 + N for signal N."""
    child = os.spawnvp(os.P_NOWAIT, command[0], command)  # noqa: S606 - no shell is meant
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
