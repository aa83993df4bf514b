"""Pages that a browser shows without a network: tables and plots of runs in one HTML file, the same bytes each time."""

from penstock.simulator.pages.compared import Side, compare_page
from penstock.simulator.pages.run import run_page
from penstock.simulator.pages.swept import sweep_page

__all__ = ["Side", "compare_page", "run_page", "sweep_page"]
