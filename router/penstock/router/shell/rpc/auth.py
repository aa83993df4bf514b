"""Who may call: TLS with certificates that can be renewed in place, and bearer tokens from a file.

Both are read again when their files change, because Kubernetes replaces mounted Secrets under a running process.
"""

import hmac
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from penstock.router.shell.rpc.refusals import Refused, abort

log = logging.getLogger("penstock.router.rpc")

_OPEN = ("/grpc.health.v1.Health/",)
"""Answered without a token: a kubelet's probe has none, and it learns nothing but whether we serve."""
_BEARER = "bearer "

Fingerprint = tuple[tuple[int, int, int], ...]


def fingerprint(*paths: Path) -> Fingerprint:
    """What changes when one of the files is replaced or rewritten; `OSError` when one cannot be read."""
    found = [path.stat() for path in paths]
    return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in found)


class Tokens:
    """The tokens a file holds, one a line; empty lines and lines that begin with # are passed over."""

    def __init__(self, path: Path) -> None:
        """Read the file; `ValueError` when it holds no token, `OSError` when it cannot be read."""
        self._path = path
        self._seen: Fingerprint = fingerprint(path)
        self._tokens = _read_tokens(path)

    def knows(self, token: bytes) -> bool:
        """Whether this is one of the tokens, told in a time that says nothing about them."""
        self._refresh()
        # All of them are compared, also after a match.
        matches = [hmac.compare_digest(token, known) for known in self._tokens]
        return any(matches)

    def _refresh(self) -> None:
        """Read a file that has changed; one that is broken or gone leaves the tokens as they were."""
        try:
            now = fingerprint(self._path)
            if now == self._seen:
                return
            self._tokens, self._seen = _read_tokens(self._path), now
            log.info("tokens read", extra={"tokens": len(self._tokens)})
        except (OSError, ValueError) as problem:
            log.warning("token file not usable; the tokens read before stay valid", extra={"problem": str(problem)})


def _read_tokens(path: Path) -> tuple[bytes, ...]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    tokens = tuple(line.encode() for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ValueError(f"--grpc-token-file {path} holds no token; write one on a line")
    return tokens


class BearerAuth(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through whose metadata has `authorization: Bearer <token>` with a known token."""

    def __init__(self, tokens: Tokens) -> None:
        """Know these tokens."""
        self._tokens = tokens

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """The call's handler, or one that refuses."""
        handler = await continuation(details)
        if details.method.startswith(_OPEN) or self._knows(details.invocation_metadata):
            return handler
        return _refusing(handler)

    def _knows(self, metadata: Any) -> bool:
        given = [value for key, value in metadata or () if key == "authorization"]
        if len(given) != 1 or not isinstance(given[0], str) or not given[0].lower().startswith(_BEARER):
            return False
        return self._tokens.knows(given[0][len(_BEARER) :].strip().encode())


def _refusing(handler: grpc.RpcMethodHandler | None) -> grpc.RpcMethodHandler:
    """A handler of the same kind that refuses; unknown methods are refused alike, so that nothing can be probed."""
    message = "this router wants `authorization: Bearer <token>`, and the token to be one of its --grpc-token-file"
    refused = Refused(grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated", message)

    async def refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
        await abort(context, refused)

    if handler is None or not (handler.request_streaming or handler.response_streaming):
        return grpc.unary_unary_rpc_method_handler(refuse)
    if not handler.request_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    return grpc.stream_unary_rpc_method_handler(refuse)


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """TLS credentials that follow their files; with `client_ca` every client must show a certificate of it.

    `OSError` when a file cannot be read, `ValueError` when what it holds is no certificate or key.
    """
    paths = tuple(p for p in (certificate, key, client_ca) if p is not None)
    seen = fingerprint(*paths)
    first = _certificates(certificate, key, client_ca)

    def current() -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake, on a thread of gRPC's; None keeps what is in use."""
        nonlocal seen
        try:
            now = fingerprint(*paths)
            if now == seen:
                return None
            renewed = _certificates(certificate, key, client_ca)
        except (OSError, ValueError) as problem:
            log.warning("certificate not usable; the one before stays", extra={"problem": str(problem)})
            return None
        seen = now
        log.info("certificate renewed")
        return renewed

    return grpc.dynamic_ssl_server_credentials(first, current, require_client_authentication=client_ca is not None)


def _certificates(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    pairs = [(_pem(key, b"PRIVATE KEY"), _pem(certificate, b"CERTIFICATE"))]
    roots = None if client_ca is None else _pem(client_ca, b"CERTIFICATE")
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=roots)


def _pem(path: Path, kind: bytes) -> bytes:
    content = path.read_bytes()
    if b"-----BEGIN " not in content or kind not in content:
        raise ValueError(f"{os.fspath(path)} holds no {kind.decode().lower()} in PEM form")
    return content
