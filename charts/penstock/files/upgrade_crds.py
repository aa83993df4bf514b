"""Bring the CustomResourceDefinitions up to date: Helm installs them once and never touches them again.

Runs in a Job before an upgrade, in the operator's image. Each definition's spec is replaced as a whole: merging by
server-side apply would keep every field and rule that an older release had and this one has not, because Helm, which
created them, still owns them. Labels and annotations of others stay.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RESOURCE = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ATTEMPTS = 30


class Refused(Exception):
    """The API server answered, and said no."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


def server() -> str:
    """Address of the API server, from the variables every pod has (or KUBERNETES_URL)."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return os.environ.get("KUBERNETES_URL") or f"https://{f'[{host}]' if ':' in host else host}:{port}"


def call(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request as the pod's service account; raises `Refused`, or OSError where there is no answer."""
    account = Path(os.environ.get("SERVICE_ACCOUNT_FOLDER", ACCOUNT))
    token = (account / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"}
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server() + path, content, headers, method=method)
    trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
            document: dict[str, Any] = json.load(answer)
            return document
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode(errors="replace")) from None


def replaced(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The stored definition with the wanted spec and, beside those of others, the wanted labels."""
    metadata = dict(stored["metadata"])
    metadata.pop("managedFields", None)
    metadata["labels"] = {**(metadata.get("labels") or {}), **wanted["metadata"].get("labels", {})}
    return {**stored, "metadata": metadata, "spec": wanted["spec"]}


def once(wanted: dict[str, Any]) -> dict[str, Any]:
    """Replace the definition, or create it where an older release had none."""
    path = f"{RESOURCE}/{wanted['metadata']['name']}"
    try:
        stored = call("GET", path)
    except Refused as refused:
        if refused.code != 404:
            raise
        return call("POST", RESOURCE, wanted)
    return call("PUT", path, replaced(stored, wanted))


def established(definition: dict[str, Any]) -> bool:
    """Whether the API server serves this definition."""
    conditions = (definition.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def upgrade(wanted: dict[str, Any]) -> None:
    """Bring one definition up to date, patiently: the server may be away, and others may write at the same time."""
    name = wanted["metadata"]["name"]
    for left in reversed(range(ATTEMPTS)):
        try:
            if established(once(wanted)):
                print(f"{name} is up to date", flush=True)
                return
            problem = "not established yet"
        except Refused as refused:
            if refused.code < 500 and refused.code not in (409, 429):
                sys.exit(f"{name}: {refused}")
            problem = str(refused.code)
        except OSError as away:
            problem = str(away)
        print(f"{name}: {problem}; {left} tries left", flush=True)
        time.sleep(1)
    sys.exit(f"{name} could not be brought up to date; see kubectl describe crd {name}, then run the upgrade again")


def main(folder: str) -> None:
    """Upgrade every definition in a folder."""
    files = sorted(Path(folder).glob("*.yaml"))
    if not files:
        sys.exit(f"{folder} holds no definitions")
    for file in files:
        upgrade(yaml.safe_load(file.read_text()))


if __name__ == "__main__":
    main(sys.argv[1])
