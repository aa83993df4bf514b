"""Which models this gateway serves, and by which policy."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from penstock.router.decisions import Policy
from penstock.router.shell.adapters import LoadedAdapter


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One public model name. `created` is in Unix seconds; `ttft_ms` and `tpot_ms` are its deployment's objectives."""

    name: str
    policy: Policy
    created: int
    max_context_tokens: int | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None


class ModelTable:
    """Served models by name; replaced whole by discovery."""

    def __init__(self) -> None:
        """Start with no model."""
        self._models: dict[str, ServedModel] = {}

    def replace(self, models: Iterable[ServedModel]) -> None:
        """Serve exactly these from now on."""
        self._models = {m.name: m for m in models}

    def get(self, name: str) -> ServedModel | None:
        """The model of that name, `None` when it is not served here."""
        return self._models.get(name)

    def names(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._models)

    def listing(self, adapters: Iterable[LoadedAdapter] = ()) -> bytes:
        """Answer to `GET /v1/models` in OpenAI's form: models, then adapters of theirs."""
        entries = [_entry(self._models[name]) for name in self.names()]
        known = [(adapter, self._models.get(adapter.base)) for adapter in adapters if adapter.name not in self._models]
        entries += [_adapter_entry(adapter, base) for adapter, base in known if base is not None]
        return msgspec.json.encode({"object": "list", "data": entries})

    def entry(self, name: str, adapter: LoadedAdapter | None = None) -> bytes | None:
        """Answer to `GET /v1/models/{model}`, `None` when it is not served; `adapter` is the one of that name."""
        model = self._models.get(name)
        if model is not None:
            return msgspec.json.encode(_entry(model))
        base = None if adapter is None else self._models.get(adapter.base)
        return None if adapter is None or base is None else msgspec.json.encode(_adapter_entry(adapter, base))


def _adapter_entry(adapter: LoadedAdapter, base: ServedModel) -> dict[str, object]:
    """As vLLM lists an adapter: its base is its parent."""
    return _entry(base) | {"id": adapter.name, "root": adapter.path, "parent": base.name}


def _entry(model: ServedModel) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "penstock",
        "root": model.name,
    }
    if model.max_context_tokens is not None:
        entry["max_model_len"] = model.max_context_tokens
    return entry
