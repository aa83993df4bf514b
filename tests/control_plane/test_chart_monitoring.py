"""What the chart ships for Prometheus and Grafana: found by label, readable, scraped the same way by either road."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from penstock.box.binaries import find_programs

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "penstock"
EXAMPLE = REPOSITORY / "examples" / "prometheus" / "prometheus.yaml"
RUNBOOK = "runbookUrl=https://wiki.example.org/penstock/runbook"
Object = dict[str, Any]


@functools.cache
def rendered(*settings: str) -> dict[tuple[str, str], Object]:
    """What helm renders with these values, by kind and name."""
    programs = find_programs(frozenset({"helm"}))
    if programs is None:
        pytest.skip("helm is not in the cache: run `penstock binaries`")
    command = [str(programs.path("helm")), "template", "penstock", str(CHART), "--namespace=penstock-system"]
    command += ["--kube-version=1.34.0", *(f"--set={setting}" for setting in settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    objects = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def dashboard(*settings: str) -> Object:
    return dict(json.loads(rendered(*settings)["ConfigMap", "penstock-dashboard"]["data"]["penstock.json"]))


def test_grafanas_sidecar_finds_the_dashboard() -> None:
    config_map = rendered()["ConfigMap", "penstock-dashboard"]
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard()["uid"] == "penstock"
    assert ("ConfigMap", "penstock-dashboard") not in rendered("dashboard.enabled=false")


def test_links_lead_to_the_runbook_that_was_named_and_nowhere_without_one() -> None:
    source = json.loads((CHART / "dashboards" / "penstock.json").read_text())
    with_links = dashboard(RUNBOOK)
    assert with_links["links"][0]["url"] == "https://wiki.example.org/penstock/runbook"
    urls = [link["url"] for panel in with_links["panels"] for link in panel.get("links") or ()]
    assert urls and all(url.startswith("https://wiki.example.org/penstock/runbook#") for url in urls)
    without = dashboard()
    assert without["links"] == [] and not any(panel.get("links") for panel in without["panels"])
    # Nothing but the links may differ: the legends' braces are Grafana's, not Helm's.
    targets = [panel.get("targets") for panel in source["panels"]]
    assert targets == [panel.get("targets") for panel in without["panels"]]
    assert any("{{" in target["legendFormat"] for panel in targets for target in panel or ())


def test_alerts_come_for_both_kinds_of_prometheus() -> None:
    assert not [name for kind, name in rendered() if name == "penstock-alerts"]
    rule = rendered("alerts.enabled=true", "alerts.labels.release=prom", RUNBOOK)["PrometheusRule", "penstock-alerts"]
    assert rule["metadata"]["labels"]["release"] == "prom"
    config_map = rendered("alerts.enabled=true", "alerts.form=ConfigMap", RUNBOOK)["ConfigMap", "penstock-alerts"]
    assert yaml.safe_load(config_map["data"]["penstock.yaml"]) == rule["spec"]
    annotations = [each["annotations"] for group in rule["spec"]["groups"] for each in group["rules"]]
    assert all(a["runbook_url"].startswith("https://wiki.example.org/penstock/runbook#") for a in annotations)
    plain = rendered("alerts.enabled=true")["PrometheusRule", "penstock-alerts"]
    bare = [each["annotations"] for group in plain["spec"]["groups"] for each in group["rules"]]
    assert bare == [{key: text for key, text in a.items() if key != "runbook_url"} for a in annotations]


def test_both_ways_of_scraping_give_the_same_labels() -> None:
    """But for namespace and pod, which the Prometheus Operator sets by itself."""
    monitors = rendered("podMonitor.enabled=true")
    documents = list(yaml.safe_load_all(EXAMPLE.read_text()))
    (config,) = [d["data"]["prometheus.yml"] for d in documents if d["kind"] == "ConfigMap"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(config)["scrape_configs"]}
    endpoints = [e for name in ("penstock", "penstock-workers") for e in _endpoints(monitors, name)]
    assert len(jobs) == len(endpoints)
    for job, endpoint in zip(jobs.values(), endpoints, strict=True):
        kept = next(rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep")
        assert kept.endswith(f";{endpoint['port']}")
        ours = {rule["targetLabel"]: rule["sourceLabels"] for rule in endpoint["relabelings"]}
        files = {r["target_label"]: r["source_labels"] for r in job["relabel_configs"] if "target_label" in r}
        assert ours.items() <= files.items()
        assert files.keys() - ours.keys() <= {"namespace", "pod"}
        assert endpoint.get("honorLabels", False) == job.get("honor_labels", False)


def _endpoints(monitors: dict[tuple[str, str], Object], name: str) -> list[Object]:
    return list(monitors["PodMonitor", name]["spec"]["podMetricsEndpoints"])
