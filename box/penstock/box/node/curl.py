"""A small curl for the toolbox image on machines that have none: enough to talk to a gateway from inside a pod.

Understands -s -S -N -i -f -k -X -d -H -o -w -m and their long forms; redirects are not followed. Output is written as
it arrives, so streams show. What it does not understand it refuses, rather than do something else.
"""

from __future__ import annotations

import argparse
import http.client
import ssl
import sys
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

# curl's own exit codes.
_BAD_URL, _CANNOT_CONNECT, _HTTP_ERROR, _TIMED_OUT = 3, 7, 22, 28


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; exits with code 2 on what is not understood."""
    parser = argparse.ArgumentParser(prog="curl", description="the box's small stand-in for curl")
    parser.add_argument("url")
    for short, long in (
        ("-s", "--silent"), ("-S", "--show-error"), ("-N", "--no-buffer"), ("-i", "--include"), ("-f", "--fail"),
        ("-k", "--insecure"),
    ):  # fmt: skip
        parser.add_argument(short, long, action="store_true")
    parser.add_argument("-X", "--request")
    parser.add_argument("-d", "--data", "--data-raw", action="append", default=[])
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-o", "--output")
    parser.add_argument("-w", "--write-out", default="")
    parser.add_argument("-m", "--max-time", type=float)
    return parser.parse_args(arguments)


def body_of(pieces: list[str]) -> bytes | None:
    """The request body of -d options: joined by &, @FILE and @- read in with line ends removed."""
    if not pieces:
        return None
    return b"&".join(_piece(piece) for piece in pieces)


def _piece(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    raw = sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
    return raw.replace(b"\r", b"").replace(b"\n", b"")


def headers_of(lines: list[str], body: bytes | None) -> dict[str, str]:
    """Request headers, with curl's defaults."""
    headers = {"User-Agent": "penstock-curl", "Accept": "*/*"}
    if body is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    for line in lines:
        name, _colon, value = line.partition(":")
        headers = {key: kept for key, kept in headers.items() if key.lower() != name.strip().lower()}
        headers[name.strip()] = value.strip()
    return headers


def connect(url: str, timeout: float | None, *, insecure: bool) -> tuple[http.client.HTTPConnection, str]:
    """A connection for `url` and the target to ask it for; raises ValueError when the URL is not one of ours."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"curl: (3) URL rejected: {url}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout), target
    context = ssl._create_unverified_context() if insecure else ssl.create_default_context()  # noqa: S323 - asked for
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context), target


def run(options: argparse.Namespace, out: BinaryIO) -> int:
    """Send the request and write the answer to `out`; returns curl's exit code."""
    body = body_of(options.data)
    connection, target = connect(options.url, options.max_time, insecure=options.insecure)
    method = options.request or ("POST" if body is not None else "GET")
    connection.request(method, target, body, headers_of(options.header, body))
    response = connection.getresponse()
    failed = options.fail and response.status >= 400
    if options.include:
        head = f"HTTP/1.1 {response.status} {response.reason}\r\n{response.headers}"
        out.write(head.encode())
    while not failed and (data := response.read1(1 << 16)):
        out.write(data)
        out.flush()
    sys.stdout.write(write_out(options.write_out, response.status))
    if failed and not (options.silent and not options.show_error):
        sys.stderr.write(f"curl: (22) The requested URL returned error: {response.status}\n")
    return _HTTP_ERROR if failed else 0


def write_out(form: str, status: int) -> str:
    """What -w prints: the status code is the one variable known."""
    for name in ("%{http_code}", "%{response_code}"):
        form = form.replace(name, str(status))
    return form.replace("\\n", "\n").replace("\\t", "\t")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    if options.output:
        with Path(options.output).open("wb") as file:
            return _attempt(options, file)
    return _attempt(options, sys.stdout.buffer)


def _attempt(options: argparse.Namespace, out: BinaryIO) -> int:
    try:
        code = run(options, out)
    except ValueError as error:
        code = _complain(options, str(error), _BAD_URL)
    except TimeoutError:
        code = _complain(options, f"curl: (28) timed out after {options.max_time} s", _TIMED_OUT)
    except (OSError, http.client.HTTPException) as error:
        code = _complain(options, f"curl: (7) {options.url}: {error}", _CANNOT_CONNECT)
    out.flush()
    sys.stdout.flush()
    return code


def _complain(options: argparse.Namespace, message: str, code: int) -> int:
    if not options.silent or options.show_error:
        sys.stderr.write(message + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
