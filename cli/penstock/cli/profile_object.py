"""A fitted profile as the manifest that `kubectl apply` takes."""

from __future__ import annotations

import re
from typing import Any

from penstock.api import PerformanceProfile
from penstock.api.base import DNS_NAME_PATTERN
from penstock.core.models import LatencyProfile, Parallelism
from pydantic import ValidationError


def profile_object(
    profile: LatencyProfile,
    model: str,
    accelerator: str,
    degrees: Parallelism,
    name: str | None,
    kv_capacity_tokens: int | None = None,
) -> dict[str, Any]:
    """The object as a manifest, `name` by default made from model, class and degrees. Raises ValueError for a name
    that the API does not take, of object, model or class."""
    a, b, c = profile.prefill
    d, e, f = profile.decode
    spec: dict[str, Any] = {
        "modelName": model,
        "acceleratorClassName": accelerator,
        "parallelism": degrees.to_dict(),
        "source": str(profile.source),
        "prefill": {"base": _decimal(a), "perToken": _decimal(b), "perSquaredToken": _decimal(c)},
        "decode": {"base": _decimal(d), "perSequence": _decimal(e), "perContextToken": _decimal(f)},
    }
    if kv_capacity_tokens is not None:
        spec["kvCapacityTokens"] = kv_capacity_tokens
    spec["provenance"] = profile.provenance
    made = {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "PerformanceProfile",
        "metadata": {"name": _name(name, model, accelerator, degrees)},
        "spec": spec,
    }
    try:
        PerformanceProfile.model_validate(made)
    except ValidationError as error:
        wrong = (f"{one['loc'][-1]} {one['input']!r}: {one['msg']}" for one in error.errors())
        raise ValueError(f"the API takes no such profile: {'; '.join(wrong)}") from None
    return made


def _name(given: str | None, model: str, accelerator: str, degrees: Parallelism) -> str:
    spread = "-".join(f"{key[0]}p{degree}" for key, degree in degrees.to_dict().items())
    plain = re.sub(r"[^a-z0-9]+", "-", model.rpartition("/")[2].lower()).strip("-")
    called = given or f"{plain}-{accelerator}-{spread}"
    if len(called) > 253 or not re.fullmatch(DNS_NAME_PATTERN, called):
        raise ValueError(
            f"{called!r} is no name of an object; give one by --name: lower-case letters, digits, - and ., which "
            "may be neither first nor last"
        )
    return called


def _decimal(value: float) -> str:
    """A number as the API takes it, to twelve places."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"
