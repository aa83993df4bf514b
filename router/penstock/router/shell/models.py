"""Which models this gateway serves, and by which policy."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from penstock.router.decisions import Policy


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

    def listing(self) -> bytes:
        """Answer to `GET /v1/models` in OpenAI's form."""
        return msgspec.json.encode({"object": "list", "data": [_entry(self._models[n]) for n in self.names()]})

    def entry(self, name: str) -> bytes | None:
        """Answer to `GET /v1/models/{model}`, `None` when it is not served."""
        model = self._models.get(name)
        return None if model is None else msgspec.json.encode(_entry(model))


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
