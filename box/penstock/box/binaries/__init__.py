"""The real Kubernetes programs at pinned versions: one call gives the folders they lie in.

`find_programs` looks only at this machine; `ensure_programs` also downloads (with checksums) or builds.
"""

from penstock.box.binaries.ensure import ensure_programs
from penstock.box.binaries.find import Programs, find_programs
from penstock.box.binaries.pins import ALL_PROGRAMS, API_PROGRAMS, PROMETHEUS_PROGRAMS

__all__ = ["ALL_PROGRAMS", "API_PROGRAMS", "PROMETHEUS_PROGRAMS", "Programs", "ensure_programs", "find_programs"]
