"""The gateway a replay goes to when it is not told: the running box's, else the usual local port."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from penstock.box.errors import BoxError
from penstock.box.paths import BoxPaths

FALLBACK_URL = "http://127.0.0.1:8000"


def default_url(env: Mapping[str, str] = os.environ, box: str = "default") -> str:
    """Base URL of the box called `box` if it says one, else FALLBACK_URL."""
    try:
        settings = json.loads(BoxPaths.of(box, env).settings.read_text(encoding="utf-8"))
        port = settings.get("gateway_port")
    except (BoxError, OSError, ValueError, AttributeError):
        return FALLBACK_URL
    return f"http://127.0.0.1:{port}" if isinstance(port, int) else FALLBACK_URL
