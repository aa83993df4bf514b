"""Policies that somebody wrote: a Python file, run as a module, and what it brings.

The same file goes to the lab, the router and the autoscaler, so what a file is and what is wrong with one is said
here, once. Running a file is running code, with the rights of whoever runs it; nothing here pretends otherwise. Reading
it from disk is the caller's affair.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import re
import sys
import traceback
from types import ModuleType
from typing import Any

__all__ = ["PolicyFileError", "bring", "check_name", "is_whole", "run_policy_file", "where"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")


class PolicyFileError(ValueError):
    """The file is no policy file; the message names file, line and what is wrong."""


def run_policy_file(source: str, file: str) -> ModuleType:
    """The module that this source makes, run. Raises `PolicyFileError`.

    It is made anew at every call: what an earlier one kept in its module is not there.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    module = ModuleType(f"penstock_policy_file_{digest}")
    module.__file__ = file
    # Tracebacks show lines, and dataclasses find their module, only of what is known by name.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102
    except SyntaxError as error:
        raise PolicyFileError(f"{file}, line {error.lineno or 1}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise PolicyFileError(f"{where(error, file)}: {_words(error)}") from error
    return module


def bring(module: ModuleType, listed: str, methods: tuple[str, ...]) -> tuple[Any, ...]:
    """What a file brings of one kind: its tuple or list called `listed`, else each of its classes that has a `name` and
    these methods and can be made without arguments. Raises `PolicyFileError`."""
    file = str(module.__file__)
    found = getattr(module, listed, None)
    if found is None:
        found = [_made(one, file) for one in vars(module).values() if _is_of(one, module, methods)]
    if not isinstance(found, list | tuple):
        raise PolicyFileError(f"{file}: {listed} is {type(found).__name__}; make it a tuple, as {listed} = (Mine(),)")
    for one in found:
        if not is_whole(one, methods):
            raise PolicyFileError(
                f"{file}: {one!r} in {listed} has no {' or no '.join(('name', *methods))}; give an object of a class "
                "that has them"
            )
        check_name(one.name, file)
    return tuple(found)


def is_whole(one: Any, methods: tuple[str, ...]) -> bool:
    """Whether an object has a name and these methods."""
    return isinstance(getattr(one, "name", None), str) and all(callable(getattr(one, name, None)) for name in methods)


def check_name(name: str, file: str) -> None:
    """Refuse a name that a ModelDeployment could not carry."""
    if not _NAME.fullmatch(name):
        raise PolicyFileError(f"{file}: {name!r} is no policy name; use at most 63 letters and digits, as in MyPolicy")


def where(error: BaseException, file: str) -> str:
    """The file with the last line of it that an error passed through, as `policy.py, line 12`."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines and lines[-1] is not None else file


def _words(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _is_of(one: Any, module: ModuleType, methods: tuple[str, ...]) -> bool:
    return inspect.isclass(one) and one.__module__ == module.__name__ and is_whole(one, methods)


def _made(kind: type, file: str) -> Any:
    try:
        return kind()
    except Exception as error:
        raise PolicyFileError(
            f"{where(error, file)}: {kind.__name__} cannot be made without arguments: {_words(error)}"
        ) from error
