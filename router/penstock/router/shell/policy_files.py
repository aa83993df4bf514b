"""Policy files of this router: read and run once at the start; what their policies do wrong is counted and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from penstock.core.policy_files import PolicyFileError, run_policy_file
from penstock.router.decisions.policies import register, withdraw
from penstock.router.decisions.policies_written import INSTEAD, Written, written_policies

__all__ = ["WrittenPolicies"]

LOG_SECONDS = 10.0
"""Between two log lines about one policy."""
LARGEST = 1 << 20
"""Bytes of a policy file."""

log = logging.getLogger("penstock.router.policies")


class WrittenPolicies:
    """The policies that files bring."""

    def __init__(self, errors: MutableMapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        """Answers that could not be used are counted in `errors`, by policy."""
        self._errors, self._clock = errors, clock
        self._said: dict[str, tuple[float, int]] = {}
        self._names: list[str] = []

    def load(self, files: str) -> None:
        """Register what these comma-separated files bring. Raises `PolicyFileError`, or `NameTaken`."""
        for part in filter(None, (one.strip() for one in files.split(","))):
            name, _, path = part.rpartition("=")
            for policy in self._read(name, path):
                register(policy, reads=policy.reads_prompts)
                self._names.append(policy.name)
                self._errors[policy.name] = 0
                log.info("policy from a file", extra={"policy": policy.name, "file": path})

    def withdraw(self) -> None:
        """Take them back."""
        while self._names:
            withdraw(self._names.pop())

    def tell(self, policy: str, problem: str) -> None:
        """A policy gave an answer that could not be used."""
        self._errors[policy] += 1
        now, count = self._clock(), self._errors[policy]
        last, counted = self._said.get(policy, (-LOG_SECONDS, 0))
        if now - last < LOG_SECONDS:
            return
        self._said[policy] = now, count
        extra = {"policy": policy, "problem": problem, "instead": INSTEAD.name, "times": count - counted}
        log.warning("a policy failed", extra=extra)

    def _read(self, name: str, path: str) -> tuple[Written, ...]:
        brought = written_policies(run_policy_file(_text(path), path), self.tell)
        if not brought:
            raise PolicyFileError(f"{path}: brings no policy; give it a class with a name and a method pick")
        if not name:
            return brought
        named = tuple(policy for policy in brought if policy.name == name)
        if not named:
            there = ", ".join(policy.name for policy in brought)
            raise PolicyFileError(f"{path}: was to bring the policy {name!r}, and brings {there}; make names agree")
        return named


def _text(path: str) -> str:
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST:
            raise PolicyFileError(f"{path}: is larger than {LARGEST} bytes, so it is no policy file")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyFileError(f"{path}: is not text") from None
