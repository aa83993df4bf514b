"""Asking the server, before a trace is played, whether it serves the model and how long its context is."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

_TIMEOUT_S = 10.0


class ServerError(Exception):
    """The server cannot be used for this run; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the server says of a model; None where it does not say."""

    max_context_tokens: int | None = None


def find_model(base: str, model: str, api_key: str | None) -> ServedModel:
    """Look `model` up in the server's list. Raises ServerError when it is not there or the server does not answer.

    A server without such a list (404, 405) is taken to serve the model.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{base}/v1/models", headers=headers, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerError(
            f"{base} does not answer: {error or type(error).__name__}; is it up, and is --url right?"
        ) from None
    if answer.status_code in {404, 405}:
        return ServedModel()
    if answer.status_code != 200:
        raise ServerError(f"{base}/v1/models answers {answer.status_code}: {answer.text[:200]}")
    return _pick(base, model, answer)


def _pick(base: str, model: str, answer: httpx.Response) -> ServedModel:
    try:
        listed = {entry["id"]: entry for entry in answer.json()["data"]}
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{base}/v1/models is not a list of models in OpenAI's form; is --url right?") from None
    if model not in listed:
        known = ", ".join(sorted(listed)) or "none yet"
        raise ServerError(f"{base} does not serve {model!r}; it serves: {known}")
    limit = listed[model].get("max_model_len")
    return ServedModel(limit if isinstance(limit, int) and limit > 0 else None)
