"""Processor and memory use of containers, from /proc: without cgroups the kernel keeps no sums, so we add up.

A container's processes are those in its mount namespace, which no other container shares.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.box.node.records import ContainerRecord, Sandbox
from penstock.box.node.wire import cri_pb2 as cri

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a set of processes has used (processor, nanoseconds since they began) and holds (memory, bytes)."""

    cpu_ns: int = 0
    rss: int = 0
    faults: int = 0
    major_faults: int = 0
    processes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_ns + other.cpu_ns, self.rss + other.rss, self.faults + other.faults,
            self.major_faults + other.major_faults, self.processes + other.processes,
        )  # fmt: skip


def parse_stat(text: str) -> Usage:
    """The usage in one /proc/<pid>/stat, children already reaped included. Fields as in proc(5)."""
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets; fields[0] is field 3
    ticks = sum(int(value) for value in fields[11:15])
    return Usage(ticks * _TICK_NS, int(fields[21]) * _PAGE, int(fields[7]), int(fields[9]), 1)


def usage_by_mount_namespace(proc: Path = Path("/proc")) -> dict[int, Usage]:
    """Usage summed by mount namespace (inode), of every process of the node."""
    sums: dict[int, Usage] = {}
    for entry in os.scandir(proc):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # ended while we looked
            inode = Path(entry.path, "ns/mnt").stat().st_ino
            usage = parse_stat(Path(entry.path, "stat").read_text())
            sums[inode] = sums.get(inode, Usage()) + usage
    return sums


@dataclass(slots=True)
class UsageMeter:
    """Reads usage at most once a second, however many ask."""

    _at: float = 0.0
    _last: Mapping[int, Usage] | None = None

    def read(self) -> Mapping[int, Usage]:
        """Usage by mount namespace, at most a second old."""
        now = time.monotonic()
        if self._last is None or now - self._at > 1.0:
            self._last, self._at = usage_by_mount_namespace(), now
        return self._last


def container_stats(record: ContainerRecord, usage: Mapping[int, Usage]) -> Any:
    """The protocol's message for one container."""
    attributes = cri.ContainerAttributes(
        id=record.id, metadata=record.config.metadata, labels=record.config.labels,
        annotations=record.config.annotations,
    )  # fmt: skip
    used = usage.get(record.mount_namespace, Usage())
    now = time.time_ns()
    return cri.ContainerStats(attributes=attributes, cpu=_cpu(used, now), memory=_memory(used, now))


def sandbox_stats(sandbox: Sandbox, records: Iterable[ContainerRecord], usage: Mapping[int, Usage]) -> Any:
    """The protocol's message for one pod: the sum of its running containers."""
    running = [record for record in records if record.running]
    used = sum((usage.get(record.mount_namespace, Usage()) for record in running), Usage())
    now = time.time_ns()
    attributes = cri.PodSandboxAttributes(
        id=sandbox.id, metadata=sandbox.config.metadata, labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
    )  # fmt: skip
    linux = cri.LinuxPodSandboxStats(
        cpu=_cpu(used, now), memory=_memory(used, now),
        process=cri.ProcessUsage(timestamp=now, process_count=cri.UInt64Value(value=used.processes)),
        containers=[container_stats(record, usage) for record in running],
    )  # fmt: skip
    return cri.PodSandboxStats(attributes=attributes, linux=linux)


def _cpu(used: Usage, now: int) -> Any:
    return cri.CpuUsage(timestamp=now, usage_core_nano_seconds=cri.UInt64Value(value=used.cpu_ns))


def _memory(used: Usage, now: int) -> Any:
    value = cri.UInt64Value(value=used.rss)
    return cri.MemoryUsage(
        timestamp=now, working_set_bytes=value, usage_bytes=value, rss_bytes=value,
        page_faults=cri.UInt64Value(value=used.faults), major_page_faults=cri.UInt64Value(value=used.major_faults),
    )  # fmt: skip
