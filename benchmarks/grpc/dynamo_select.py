"""Dynamo's HTTP select service, in its own interpreter: dynamo_select.py PORT. Needs nothing but the wheel."""

import os
import sys

os.environ.setdefault("DYN_LOG", "error")
from dynamo._core import run_select_service  # type: ignore[import-not-found]

run_select_service(["--port", sys.argv[1]])
