"""Write the chart's generated files (part of `make generate`).

`values.yaml`, `values.schema.json` and the reference page come from `chart_values`; the AcceleratorClasses come
from the catalogue of hardware in `penstock.core.models`. With `--check` nothing is written.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chart_values import ChartValues, Values
from generated import ROOT, run, to_yaml
from penstock.api import AcceleratorClassSpec
from penstock.core.models.hardware import Accelerator, known_accelerators

CHART = ROOT / "charts" / "penstock"
HEADER = "# Generated from hack/chart_values.py by `make generate`; do not edit.\n"
DEVICE_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}


def accelerator_spec(accelerator: Accelerator) -> dict[str, Any]:
    """The AcceleratorClass of a catalogue entry, with the sources of its figures in the description."""
    flops = {"bf16": _rate(accelerator.bf16_flops, "T")}
    if accelerator.fp8_flops is not None:
        flops["fp8"] = _rate(accelerator.fp8_flops, "T")
    spec: dict[str, Any] = {
        "type": "CPU" if accelerator.is_cpu else "GPU",
        "description": _description(accelerator),
        "memory": f"{_number(accelerator.memory_bytes / 2**30)}Gi",
        "memoryBandwidth": _rate(accelerator.memory_bandwidth, "G"),
        "flops": flops,
        "link": {"kind": accelerator.link.kind.value, "bandwidth": _rate(accelerator.link.bytes_per_second, "G")},
        "power": {"idle": round(accelerator.idle_watts), "max": round(accelerator.tdp_watts)},
        "pricePerHour": _number(accelerator.price_per_hour),
        "capacity": {"source": "Nodes"},
    }
    if not accelerator.is_cpu:  # any node has cores, so a CPU class selects none by itself
        spec["nodeSelector"] = {"penstock.dev/accelerator": accelerator.name}
        spec["resourceName"] = DEVICE_RESOURCES[accelerator.vendor]
    AcceleratorClassSpec.read(spec)
    return spec


def _description(accelerator: Accelerator) -> str:
    by_source: dict[str, list[str]] = {}
    for figure, source in accelerator.sources:
        by_source.setdefault(source, []).append(figure.replace("_", " "))
    sources = "; ".join(f"{', '.join(figures)}: {source}" for source, figures in by_source.items())
    return f"{accelerator.product} ({sources})"


def _rate(value: float, suffix: str) -> str:
    return f"{_number(value / {'G': 1e9, 'T': 1e12}[suffix])}{suffix}"


def _number(value: float) -> str:
    """Shortest decimal without an exponent, to a thousandth."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def values_yaml(values: Values, indent: int = 0) -> Iterator[str]:
    """Lines of `values.yaml`: each value under its description."""
    pad = " " * indent
    for name, info in type(values).model_fields.items():
        value = getattr(values, name)
        if indent == 0:
            yield ""
        for line in (info.description or "").splitlines():
            yield f"{pad}# {line.strip()}"
        if isinstance(value, Values):
            yield f"{pad}{info.alias}:"
            yield from values_yaml(value, indent + 2)
        else:
            text = to_yaml({info.alias: value}).rstrip("\n").removesuffix("\n...")
            yield from (f"{pad}{line}" for line in text.splitlines())


def reference_rows(values: Values, prefix: str = "") -> Iterator[str]:
    """Rows of the reference page, one per value."""
    for name, info in type(values).model_fields.items():
        value, path = getattr(values, name), f"{prefix}{info.alias}"
        if isinstance(value, Values):
            yield from reference_rows(value, f"{path}.")
        else:
            described = " ".join((info.description or "").split()).replace("|", "\\|")
            yield f"| `{path}` | `{json.dumps(value)}` | {described} |"


def values_schema() -> dict[str, Any]:
    """JSON Schema of the values; `global` is Helm's own key and may always be there."""
    schema = ChartValues.model_json_schema()
    schema["properties"]["global"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_untitled(schema)}


def _untitled(node: Any) -> Any:
    """The schema without the titles pydantic makes from names: they say nothing new."""
    if isinstance(node, dict):
        return {key: _untitled(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    return [_untitled(item) for item in node] if isinstance(node, list) else node


def render() -> dict[Path, str]:
    """Path and content of every generated file of the chart."""
    defaults = ChartValues()
    accelerators = {each.name: accelerator_spec(each) for each in known_accelerators()}
    reference = [
        "# Values of the Helm chart",
        "",
        "Generated from `hack/chart_values.py` by `make generate`; `helm` refuses unknown keys and wrong types.",
        "",
        "| value | default | meaning |",
        "|---|---|---|",
        *reference_rows(defaults),
    ]
    return {
        CHART / "values.yaml": "\n".join([HEADER.rstrip(), *values_yaml(defaults)]) + "\n",
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        CHART / "files" / "acceleratorclasses.yaml": to_yaml(
            accelerators, "# Generated from penstock.core.models.hardware by `make generate`; do not edit.\n"
        ),
        ROOT / "docs" / "reference" / "helm-values.md": "\n".join(reference) + "\n",
    }


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    return run("Write the chart's generated files.", render(), (), arguments)


if __name__ == "__main__":
    sys.exit(main())
