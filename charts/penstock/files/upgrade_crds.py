"""Bring the CustomResourceDefinitions up to date: Helm installs them once and never touches them again.

Runs in a Job before an upgrade, with Python's standard library alone. Each file is sent to the API server as it
stands, by server-side apply, and must come back established.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RESOURCE = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ATTEMPTS = 30


def server() -> str:
    """Address of the API server, from the variables every pod has (or KUBERNETES_URL)."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return os.environ.get("KUBERNETES_URL") or f"https://{f'[{host}]' if ':' in host else host}:{port}"


def call(method: str, path: str, body: bytes | None = None) -> dict:
    """One request as the pod's service account; the answer as a dictionary."""
    account = Path(os.environ.get("SERVICE_ACCOUNT_FOLDER", ACCOUNT))
    headers = {
        "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
        "Content-Type": "application/apply-patch+yaml",
        "Accept": "application/json",
    }
    request = urllib.request.Request(server() + path, body, headers, method=method)
    trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
        return json.load(answer)


def patiently(method: str, path: str, body: bytes | None = None) -> dict:
    """`call`, tried again while the API server is away; a refusal ends at once with the server's sentence."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return call(method, path, body)
        except urllib.error.HTTPError as refused:
            if refused.code < 500 and refused.code != 429:
                sys.exit(f"{method} {path}: {refused.code} {refused.read().decode(errors='replace')}")
            problem = f"{refused.code}"
        except OSError as away:
            problem = str(away)
        print(f"{method} {path}: {problem}; {left} tries left", flush=True)
        time.sleep(1)
    sys.exit(f"{method} {path}: the API server did not answer; run the upgrade again")


def established(definition: dict) -> bool:
    """Whether the API server serves this definition."""
    conditions = definition.get("status", {}).get("conditions", [])
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def upgrade(file: Path) -> None:
    """Apply one file and wait until the API server serves it."""
    name = file.stem
    definition = patiently("PATCH", f"{RESOURCE}/{name}?fieldManager=penstock-crds&force=true", file.read_bytes())
    for _ in range(ATTEMPTS):
        if established(definition):
            print(f"{name} is up to date", flush=True)
            return
        time.sleep(0.5)
        definition = patiently("GET", f"{RESOURCE}/{name}")
    sys.exit(f"{name} was not established; see its conditions with kubectl describe crd {name}")


def main(folder: str) -> None:
    """Upgrade every definition in a folder."""
    files = sorted(Path(folder).glob("*.yaml"))
    if not files:
        sys.exit(f"{folder} holds no definitions")
    for file in files:
        upgrade(file)


if __name__ == "__main__":
    main(sys.argv[1])
