"""The control channel of a box: a unix socket in its folder on which one JSON line asks and one JSON line answers.

Verbs: `list`; `kill` with `component` or `node`; `start` with `node`. Tests use it to break things on purpose.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from penstock.box.errors import BoxError

Request = dict[str, Any]
Answer = dict[str, Any]
Handler = Callable[[Request], Awaitable[Answer]]

_LINE_BYTES = 64 << 10
_ASK_SECONDS = 30.0


async def serve_control(path: Path, handle: Handler) -> asyncio.Server:
    """Answer requests on `path`. A BoxError of `handle` becomes `{"error": ...}`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _ASK_SECONDS)
            writer.write(json.dumps(await _answer(line, handle)).encode() + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # The asker went away or sent no line: nobody is left to tell.
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, sock=_bind(path), limit=_LINE_BYTES)


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    return listener


async def _answer(line: bytes, handle: Handler) -> Answer:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise BoxError("the request is not a JSON object")
        return await handle(request)
    except (BoxError, ValueError) as error:
        return {"error": str(error)}


def ask(path: Path, request: Request, timeout: float = _ASK_SECONDS) -> Answer:
    """Send one request to the supervisor behind `path`; raises BoxError when it refuses or cannot be reached."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            with _short(path) as address:
                connection.connect(address)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline(_LINE_BYTES) or b"{}")
        except (OSError, ValueError) as error:
            raise BoxError(f"the box's supervisor does not answer on {path}: {error}") from error
    if "error" in answer:
        raise BoxError(str(answer["error"]))
    return dict(answer)


class _short:  # noqa: N801 - reads as a verb where it is used
    """The path by way of an open folder: a unix socket's name may have 107 bytes only, a state folder's has more."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)
