"""What may pass from the network to the engine, and in which form.

An engine's port also takes orders (sleep, load an adapter, reset the cache); a port meant for requests passes requests
and questions only.
"""

from __future__ import annotations

from penstock.core.wire import WireError, strip_transfer_params

_PREFIX = "/v1/"
_ASKED = frozenset({"/health", "/version", "/ping", "/tokenize", "/detokenize", "/inference/v1/generate"})
_ORDERS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_METHODS = frozenset({"GET", "POST"})


def refused(method: str, path: str) -> tuple[int, str] | None:
    """Status and sentence for what does not pass; None where it does."""
    if path in _ORDERS or not (path.startswith(_PREFIX) or path in _ASKED):
        return 404, f"Unknown path {path[:200]}; the sidecar passes /v1/... and /health on to its engine."
    if ".." in path or "//" in path or "%" in path:
        return 400, f"The path {path[:200]!r} is not written plainly; send it without dots, escapes and empty parts."
    if method not in _METHODS:
        return 405, f"{method[:20]} is not possible on {path[:200]}; use GET or POST."
    return None


def without_transfer_params(body: bytes) -> bytes | None:
    """A client's body without transfer parameters, which end an engine or read another's blocks; None: not JSON."""
    try:
        return strip_transfer_params(body)
    except (WireError, UnicodeDecodeError, RecursionError):
        return None
