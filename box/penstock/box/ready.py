"""Is the API server ready? One HTTPS request, asked until it says yes."""

from __future__ import annotations

import base64
import http.client
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from penstock.box.errors import BoxError
from penstock.box.pki import KeyPair, load_pair

_POLL_SECONDS = 0.1


def client_context(ca_pem: bytes, identity: KeyPair) -> ssl.SSLContext:
    """TLS settings that trust only `ca_pem` and present `identity`."""
    context = ssl.create_default_context(cadata=ca_pem.decode())
    # The standard library loads a client's key from a file only; the file lives for two lines.
    with tempfile.NamedTemporaryFile() as file:
        file.write(identity.certificate_pem + identity.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def kubeconfig_identity(path: Path) -> tuple[bytes, KeyPair]:
    """(authority PEM, identity) of one of our own kubeconfigs."""
    document = yaml.safe_load(path.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    identity = load_pair(base64.b64decode(user["client-certificate-data"]), base64.b64decode(user["client-key-data"]))
    return base64.b64decode(cluster["certificate-authority-data"]), identity


def api_answers(host: str, port: int, context: ssl.SSLContext, path: str = "/readyz") -> bool:
    """True when GET `path` on the API server returns 200; every failure to connect is False."""
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until(
    check: Callable[[], bool], timeout: float, what: str, hint: Path | None = None, poll: float = _POLL_SECONDS
) -> None:
    """Ask `check` every `poll` seconds; raises BoxError naming `what` and where to look after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            where = f"; see {hint}" if hint else ""
            raise BoxError(f"{what} did not come within {timeout:.0f} s{where}")
        time.sleep(poll)
