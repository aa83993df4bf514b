"""The P/D sidecar's command."""

import sys

from penstock.workers.shell.sidecar.main import main

if __name__ == "__main__":
    sys.exit(main())
