"""One JSON object a line on standard error, which is what log collectors read without being told how."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, logger and message, and the traceback where there is one."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging(level: str) -> None:
    """Log at `level`; kopf's own chatter only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # Every watch tells every failed attempt at length; the sweeper says once what is wrong with the API server.
    for chatty in ("kopf._cogs.clients.watching", "kopf._core.reactor.orchestration"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    # It warns that it does not take the process's signals, which is why it runs where it does.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
