"""Where a model's tokenizer files lie on this machine: a mounted folder or a hub cache. Nothing is ever downloaded.

Two layouts are known below each root: `<root>/<model's name>/`, as one copies or mounts a model, and the hub's cache,
`<root>/models--<owner>--<name>/snapshots/<commit>/`, of which `refs/main` names the commit.
"""

from collections.abc import Sequence
from pathlib import Path

from penstock.core.tokens.errors import ModelFilesError
from penstock.core.tokens.files import LIMITS, NAMES, TEMPLATE, TEMPLATES, TOKENIZER

Fingerprint = tuple[tuple[str, int, int], ...]
"""Each file's name, size and time of change: equal while nothing was replaced."""

_MOST_TEMPLATES = 32


class ModelFolders:
    """Finds and reads models' files. Its methods touch the disk: call them off the event loop."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Look below `roots`, in order."""
        self._roots = tuple(roots)

    def find(self, model: str) -> Path | None:
        """The folder with the model's tokenizer; None where there is none."""
        parts = model.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            return None
        for root in self._roots:
            for folder in (root.joinpath(*parts), _snapshot(root / f"models--{'--'.join(parts)}")):
                if folder is not None and (folder / TOKENIZER).is_file():
                    return folder
        return None

    @staticmethod
    def fingerprint(folder: Path) -> Fingerprint:
        """What the folder's files are now."""
        stats = [(path.name, path.stat()) for path in _paths(folder)]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    @staticmethod
    def read(folder: Path) -> dict[str, bytes]:
        """The files by name; raises `ModelFilesError` for one that is too large or cannot be read."""
        files = {}
        for path in _paths(folder):
            name = path.name if path.parent == folder else f"{TEMPLATES}/{path.name}"
            limit = LIMITS.get(path.name, LIMITS[TEMPLATE])
            try:
                with path.open("rb") as file:
                    # One byte beyond the limit is enough to be refused, however large the file is.
                    files[name] = file.read(limit + 1)
            except OSError as problem:
                raise ModelFilesError(f"{path} cannot be read: {problem}") from problem
        return files


def _snapshot(cache: Path) -> Path | None:
    try:
        commit = (cache / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return cache / "snapshots" / commit if commit.isalnum() else None


def _paths(folder: Path) -> list[Path]:
    further = sorted((folder / TEMPLATES).glob("*.jinja"))[:_MOST_TEMPLATES]
    return [path for name in NAMES if (path := folder / name).is_file()] + further
