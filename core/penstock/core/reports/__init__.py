"""Reports: what a run of requests came to, in one form for the replay and the twin.

Pure. Nothing here may know how the requests were sent, or print.
"""

from penstock.core.reports.outcomes import Outcome, Verdict
from penstock.core.reports.report import SCHEMA_VERSION, Report, RequestCounts, count, summarise
from penstock.core.reports.statistics import Summary

__all__ = ["SCHEMA_VERSION", "Outcome", "Report", "RequestCounts", "Summary", "Verdict", "count", "summarise"]
