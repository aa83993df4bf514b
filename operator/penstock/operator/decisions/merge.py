"""Merging a user's podTemplate over ours: maps key by key, lists of named things by name, the rest replaced.

Kubernetes' strategic merge has a merge key for each list of a pod; the lists that matter to users are all known by
one of a few keys, which the items themselves show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "claims": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""List by field name, and the field that tells its items apart (as Kubernetes' own patch merge keys)."""

APPENDED = frozenset({"tolerations"})
"""Lists without a key whose items add up: what the platform tolerates, the user's pod tolerates too."""

VOLUME_SOURCE_KEEPS = frozenset({"name"})


def merged(base: Any, over: Any, field: str = "") -> Any:
    """`over` laid on `base`. A null in `over` removes the field; neither argument is changed."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return _maps(base, over)
    if isinstance(base, list) and isinstance(over, list):
        return _lists(base, over, field)
    return over


def _maps(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result[key], value, key) if key in result else value
    return result


def _lists(base: Sequence[Any], over: Sequence[Any], field: str) -> list[Any]:
    if field in APPENDED:
        return [*base, *(item for item in over if item not in base)]
    key = MERGE_KEYS.get(field)
    if key is None or not all(isinstance(item, Mapping) and key in item for item in (*base, *over)):
        return list(over)
    result = {item[key]: item for item in base}
    for item in over:
        known = result.get(item[key])
        result[item[key]] = item if known is None else _items(known, item, field)
    return list(result.values())


def _items(base: Mapping[str, Any], over: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    # A volume, or an env entry, has one source: giving another one replaces the first instead of adding to it.
    one_of = field in ("volumes", "env") and set(over) - set(base) - VOLUME_SOURCE_KEEPS
    return over if one_of else _maps(base, over)
