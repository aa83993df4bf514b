"""Dashboard, alerts and runbook hold together: every series is exported by somebody, every link leads somewhere."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from penstock.autoscaler.shell.export import SignalCollector
from penstock.autoscaler.shell.limits_metrics import LimitsCollector
from penstock.autoscaler.shell.scaling_metrics import ScalingCollector
from penstock.box.binaries import PROMETHEUS_PROGRAMS, find_programs
from penstock.core.fleet import Fleet
from penstock.core.wire.metrics import ENGINE_METRICS
from penstock.operator.shell.metrics import Metrics
from penstock.router.shell.gateway import Gateway
from penstock.router.shell.kv_event_metrics import KvEventCollector
from penstock.router.shell.metrics import Collector, Counters
from penstock.router.shell.tokens.metrics import HitBooks, TokenCollector
from penstock.router.shell.tokens.service import TokenCounts
from penstock.workers.shell.sidecar.metrics import Metrics as SidecarMetrics

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "penstock"
RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text()
ALERTS_PAGE = (REPOSITORY / "docs" / "observability.md").read_text()
DASHBOARD = json.loads((CHART / "dashboards" / "penstock.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES_FILE = CHART / "files" / "alerts.yaml"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]
_SUFFIXES = re.compile(r"_(total|bucket|sum|count)$")
_NOT_OURS = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}


@cache
def exported() -> frozenset[str]:
    """The families of every role and of the engines, without the suffixes of their samples."""
    nothing: Any = SimpleNamespace(decided=(), decisions={}, failures=0)
    streams: Any = SimpleNamespace(stats=list, silent=list, indexes=dict)
    momentary: Any = SimpleNamespace(exchanges=(), connections=(), buffered_bytes=0, pool=SimpleNamespace(idle=0))
    collectors = (
        Collector(Counters(), Fleet(1), lambda: Gateway.gauges(momentary)),
        KvEventCollector(streams),
        TokenCollector(TokenCounts(), HitBooks()),
        SignalCollector(),
        ScalingCollector(nothing),
        LimitsCollector(nothing),
        Metrics().registry,
        SidecarMetrics(lambda: 0).registry,
    )
    names = {family.name for collector in collectors for family in collector.collect()}
    return frozenset(_SUFFIXES.sub("", name) for name in names | set(ENGINE_METRICS))


def series_of(expression: str) -> set[str]:
    """The names of series in a PromQL expression: ours, vLLM's, and the few that are not ours."""
    return set(re.findall(r"\b(penstock_\w+|vllm:\w+|process_\w+|up|ALERTS)\b", expression))


def queries() -> list[tuple[str, str]]:
    """What is asked, and by whom."""
    asked = [(f"panel {p['title']}", target["expr"]) for p in PANELS for target in p["targets"]]
    asked += [(f"alert {rule['alert']}", rule["expr"]) for rule in RULES]
    lists = DASHBOARD["templating"]["list"]
    return asked + [(f"variable {v['name']}", v["query"]) for v in lists if v["type"] == "query"]


@pytest.mark.parametrize(("asker", "expression"), queries())
def test_every_series_is_one_that_somebody_exports(asker: str, expression: str) -> None:
    named = series_of(expression)
    assert named, f"{asker} names no series"
    unknown = {name for name in named - _NOT_OURS if _SUFFIXES.sub("", name) not in exported()}
    assert not unknown, f"{asker} asks for {sorted(unknown)}, which nobody exports"


def test_every_panel_says_what_to_do_and_is_named_once() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    assert all(len(panel["description"]) > 30 for panel in PANELS)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in PANELS for target in panel["targets"])


def test_panels_lie_beside_each_other_and_never_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in _rows(place)):
            assert cell not in taken, f"{panel['title']} lies on {taken.get(cell)}"
            taken[cell] = panel["title"]


def _rows(place: dict[str, int]) -> range:
    return range(place["y"], place["y"] + place["h"])


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_into_the_runbook_leads_somewhere() -> None:
    links = re.findall(r"RUNBOOK_URL#([\w-]+)", json.dumps(DASHBOARD) + RULES_FILE.read_text())
    assert len(links) > len(RULES)
    assert set(links) <= anchors(RUNBOOK)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_entry_and_is_listed(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["annotations"]["runbook_url"] == f"RUNBOOK_URL#{name.lower()}"
    assert f"\n### {name}\n" in RUNBOOK
    assert f"[{name}](runbook.md#{name.lower()})" in ALERTS_PAGE
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert {"summary", "description"} <= rule["annotations"].keys()


def promtool() -> str:
    """The pinned promtool."""
    programs = find_programs(PROMETHEUS_PROGRAMS)
    if programs is None:
        pytest.skip("promtool is not in the cache: run `penstock binaries --prometheus`")
    return str(programs.path("promtool"))


def test_the_rules_are_sound() -> None:
    done = subprocess.run(
        [promtool(), "check", "rules", "--lint=all", "--lint-fatal", str(RULES_FILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    cases = (Path(__file__).parent / "alerts_test.yaml").read_text()
    missing = [rule["alert"] for rule in RULES if rule["alert"] not in cases and "Scaling" not in rule["alert"]]
    assert missing == [], "an alert without a case"
    (tmp_path / "cases.yaml").write_text(cases.replace("[RULES]", json.dumps([str(RULES_FILE)])))
    command = [promtool(), "test", "rules", str(tmp_path / "cases.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
