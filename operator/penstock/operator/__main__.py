"""`python -m penstock.operator`."""

import sys

from penstock.operator.shell.main import main

sys.exit(main())
