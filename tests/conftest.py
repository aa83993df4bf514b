"""Settings of every test: how long Hypothesis searches, and what a machine under load must not turn into a failure."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine is no defect of the code: examples have no deadline of their own, pytest's time-out bounds a test.
settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("full", settings.get_profile("usual"), max_examples=2000)
settings.load_profile("full" if os.environ.get("PENSTOCK_FULL") == "1" else "usual")
