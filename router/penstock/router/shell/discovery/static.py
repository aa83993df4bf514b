"""Workers from the command line: for tests, benchmarks and machines without Kubernetes."""

from urllib.parse import urlsplit

from penstock.core.fleet import Fleet, Worker
from penstock.router.decisions import Policy
from penstock.router.shell.models import ModelTable, ServedModel


def parse_workers(text: str) -> list[Worker]:
    """`model=http://host:port,...` as workers; `ValueError` shows the entry that is wrong."""
    return [_parse(entry.strip()) for entry in text.split(",") if entry.strip()]


def _parse(entry: str) -> Worker:
    model, separator, url = entry.partition("=")
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError as bad:
        raise ValueError(f"--workers entry {entry!r}: {bad}") from None
    if not separator or not model or parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(f"--workers entry {entry!r} is not of the form model=http://host:port")
    return Worker(name=f"{parts.hostname}:{port}", host=parts.hostname, port=port, model=model)


def install(workers: list[Worker], fleet: Fleet, models: ModelTable, policy: Policy, created: int) -> None:
    """Put fixed workers in rotation; only their failures can take them out again, for a while."""
    for worker in workers:
        fleet.set_ready(fleet.add(worker), True)
    models.replace(ServedModel(name, policy, created) for name in {w.model for w in workers})
