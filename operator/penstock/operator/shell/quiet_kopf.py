"""kopf, imported without the Kubernetes client libraries it would otherwise drag along.

kopf looks for the official clients only to accept their model objects, which we never pass. Importing them costs
1.5 CPU seconds and 60 MB in every operator, so the look-up is made to fail where they happen to be installed.
This is the only module that imports kopf.
"""

from __future__ import annotations

import sys

_HEAVY = "kubernetes_asyncio"


def _hide() -> bool:
    """Make `import kubernetes_asyncio` fail until `_show`; gives whether it did (False: already imported)."""
    if _HEAVY in sys.modules:
        return False
    sys.modules[_HEAVY] = None  # type: ignore[assignment]  # the documented way to block an import
    return True


_hidden = _hide()
try:
    import kopf
finally:
    if _hidden:
        del sys.modules[_HEAVY]

from kopf import (  # noqa: E402  (after the guarded import)
    ConnectionInfo,
    OperatorRegistry,
    OperatorSettings,
    login_with_kubeconfig,
    login_with_service_account,
)

__all__ = [
    "ConnectionInfo",
    "OperatorRegistry",
    "OperatorSettings",
    "kopf",
    "login_with_kubeconfig",
    "login_with_service_account",
]
