"""Scenario files: a cluster and its workload as YAML, checked at the door.

Text in, forms out, and back: reading a file from disk is the caller's affair. An error names the file, the field and
what to write there.
"""

from penstock.simulator.files.forms import ScenarioForm, model_named
from penstock.simulator.files.read import ScenarioError, Traces, check_scenario, parse_scenario, write_scenario
from penstock.simulator.files.workload import WorkloadForm

__all__ = [
    "ScenarioError",
    "ScenarioForm",
    "Traces",
    "WorkloadForm",
    "check_scenario",
    "model_named",
    "parse_scenario",
    "write_scenario",
]
