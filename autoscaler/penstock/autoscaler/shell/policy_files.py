"""Policy files of this autoscaler, run once at the start; what their planners do wrong is counted and logged."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from penstock.autoscaler.decisions.planners import DEFAULT_PLANNER, register_planner, written_planners
from penstock.core.policy_files import PolicyFileError, run_policy_file
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

LARGEST = 1 << 20
"""Bytes of a policy file."""

log = logging.getLogger("penstock.autoscaler.planners")


def load_planners(files: Sequence[str]) -> Mapping[str, int]:
    """Register what these files bring; the answer counts each planner's mistakes.

    Raises `PolicyFileError`, or `UnknownPlanner` for a name that is taken.
    """
    errors: dict[str, int] = {}

    def tell(planner: str, problem: str) -> None:
        # At most once a cycle and deployment, so the log is bounded already.
        errors[planner] += 1
        log.warning("a planner failed", extra={"planner": planner, "problem": problem, "instead": DEFAULT_PLANNER})

    for file in files:
        brought = written_planners(run_policy_file(_text(file), file), tell)
        if not brought:
            raise PolicyFileError(f"{file}: brings no planner; give it a class with a name and a method plan")
        for planner in brought:
            register_planner(planner)
            errors[planner.name] = 0
            log.info("planner from a file", extra={"planner": planner.name, "file": file})
    return errors


class PlannerCollector(Collector):
    """The mistakes of planners from files, for Prometheus."""

    def __init__(self, errors: Mapping[str, int]) -> None:
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        """One family, empty where no file brought a planner."""
        text = "Plans of planners from files that could not be used; TargetTracking planned instead."
        family = CounterMetricFamily("penstock_autoscaler_planner_errors", text, labels=["planner"])
        for planner, count in list(self._errors.items()):
            family.add_metric([planner], count)
        yield family


def _text(file: str) -> str:
    path = Path(file)
    try:
        if path.stat().st_size > LARGEST:
            raise PolicyFileError(f"{file}: is larger than {LARGEST} bytes, so it is no policy file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyFileError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyFileError(f"{file}: is not text") from None
