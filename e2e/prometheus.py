"""A real Prometheus in the box, as the example installs it, and the dashboard's questions put to it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from penstock.box.lifecycle import Box
from penstock.box.ready import client_context, kubeconfig_identity

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLE = REPOSITORY / "examples" / "prometheus" / "prometheus.yaml"
DASHBOARD = REPOSITORY / "charts" / "penstock" / "dashboards" / "penstock.json"
_PROXY = "/api/v1/namespaces/default/services/prometheus:9090/proxy"
Object = dict[str, Any]


def manifest(programs: Path, interval: str) -> str:
    """The example, with what a box needs instead of an image: the program from a folder of this machine."""
    documents = list(yaml.safe_load_all(EXAMPLE.read_text()))
    for document in documents:
        if document["kind"] == "ConfigMap":
            data = document["data"]
            assert data["prometheus.yml"].count("15s") == 2
            data["prometheus.yml"] = data["prometheus.yml"].replace("15s", interval)
        if document["kind"] == "Deployment":
            spec = document["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            container |= {"image": "penstock/toolbox:0.1.0", "command": ["/opt/prometheus/prometheus"]}
            container["volumeMounts"].append({"name": "program", "mountPath": "/opt/prometheus", "readOnly": True})
            spec["volumes"].append({"name": "program", "hostPath": {"path": str(programs)}})
    return yaml.safe_dump_all(documents)


@dataclass(frozen=True, slots=True)
class Question:
    """One query of one panel."""

    panel: str
    kind: str
    legend: str
    expr: str
    unit: str

    @property
    def name(self) -> str:
        """Panel and legend: what an exception names."""
        return f"{self.panel}: {self.legend}"

    def expanded(self, values: dict[str, str]) -> str:
        """The query with the dashboard's variables put in, as Grafana does it."""
        text = self.expr
        for name, value in values.items():
            text = text.replace(f"${name}", value)
        assert "$" not in text, f"{self.name}: a variable is left in {text}"
        return text


def questions(dashboard: Object) -> Iterator[Question]:
    """Every query of every panel."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "short")
            yield Question(panel["title"], panel["type"], target["legendFormat"], target["expr"], unit)


class Prometheus:
    """Its HTTP API, through the API server's proxy."""

    def __init__(self, box: Box) -> None:
        ca, identity = kubeconfig_identity(box.kubeconfig)
        context = client_context(ca, identity)
        self._client = httpx.Client(base_url=box.api_url, verify=context, timeout=30.0, trust_env=False)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def get(self, path: str, **parameters: str | float) -> Any:
        """`data` of an answer; raises AssertionError with what Prometheus said when it refuses."""
        answer = self._client.get(f"{_PROXY}/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{path} {parameters}: {answer.status_code} {answer.text[:500]}"
        return json.loads(answer.text)["data"]

    def complete(self, pod: str, port: int, model: str, prefiller: str) -> int:
        """A completion asked of a pod itself, as a client of picks does; the status."""
        path = f"/api/v1/namespaces/default/pods/{pod}:{port}/proxy/v1/completions"
        body = {"model": model, "prompt": f"asked beside the gateway {time.time()} " * 100, "max_tokens": 4}
        return self._client.post(path, json=body, headers={"x-prefiller-host-port": prefiller}).status_code

    def label_values(self, query: str) -> list[str]:
        """What Grafana offers for a variable: the query of a dashboard's variable, answered."""
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert match, query
        return list(self.get(f"label/{match[2]}/values", **{"match[]": match[1]}))

    def value(self, query: str) -> float | None:
        """The one value of an instant query; None where there is none."""
        result = self.get("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def history(self, query: str, start: float, step: float) -> list[Object]:
        """The series of a range query up to now, without what is not a number."""
        data = self.get("query_range", query=query, start=start, end=time.time(), step=step)
        for series in data["result"]:
            series["values"] = [[at, value] for at, value in series["values"] if value != "NaN"]
        return [series for series in data["result"] if series["values"]]

    def targets(self) -> list[Object]:
        """What is scraped."""
        return list(self.get("targets", state="active")["activeTargets"])
