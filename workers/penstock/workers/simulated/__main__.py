"""The simulated engine's command."""

import sys

from penstock.workers.shell.simulated.main import main

if __name__ == "__main__":
    sys.exit(main())
