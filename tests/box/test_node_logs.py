"""Log lines as the kubelet reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from penstock.box.node.logs import LineFormatter, LogFile, Pump, stamp

LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)\n")


def read_back(log: bytes) -> bytes:
    """What the kubelet makes of a log: full lines get their line end back, parts do not."""
    out = b""
    position = 0
    while position < len(log):
        match = LINE.match(log, position)
        assert match is not None, log[position : position + 80]
        out += match[4] + (b"\n" if match[3] == b"F" else b"")
        position = match.end()
    return out


@given(st.lists(st.binary(min_size=1, max_size=40_000), max_size=6))
def test_nothing_is_lost_however_the_output_is_cut(chunks: list[bytes]) -> None:
    formatter = LineFormatter("stdout")
    log = b"".join(formatter.feed(chunk, 1) for chunk in chunks) + formatter.feed(b"", 2)
    written = b"".join(chunks)
    expected = written if written.endswith(b"\n") or not written else written + b"\n"
    assert read_back(log) == expected


def test_a_long_line_is_marked_in_parts() -> None:
    log = LineFormatter("stderr").feed(b"x" * 40_000 + b"\n", 0)
    flags = [match[3] for match in LINE.finditer(log)]
    assert flags == [b"P", b"P", b"F"]


def test_a_line_without_end_waits_for_the_rest() -> None:
    formatter = LineFormatter("stdout")
    assert formatter.feed(b"half", 0) == b""
    assert formatter.feed(b" done\n", 0).endswith(b"F half done\n")


def test_stamp_is_rfc3339_with_nanoseconds() -> None:
    assert stamp(1_700_000_000_000_000_042) == b"2023-11-14T22:13:20.000000042Z"


def test_a_renamed_log_gets_a_fresh_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "pod" / "0.log")
    log.write(b"one\n")
    log.path.rename(tmp_path / "old")
    log.write(b"two\n")
    log.reopen()
    log.write(b"three\n")
    log.close()
    assert (tmp_path / "old").read_bytes() == b"one\ntwo\n"
    assert log.path.read_bytes() == b"three\n"


async def test_the_pump_copies_to_file_and_to_those_attached(tmp_path: Path) -> None:
    read, write = os.pipe()
    seen, watcher = os.pipe()
    log = LogFile(tmp_path / "log")
    pump = Pump(read, "stdout", log, clock=lambda: 0)
    pump.attached.add(watcher)
    os.write(write, b"hello\nrest")
    os.close(write)
    await pump.ended.wait()
    assert read_back(log.path.read_bytes()) == b"hello\nrest\n"
    assert os.read(seen, 100) == b"hello\nrest"
    for fd in (seen, watcher):
        os.close(fd)
    log.close()


async def test_an_attached_reader_that_leaves_does_not_stop_the_log(tmp_path: Path) -> None:
    read, write = os.pipe()
    seen, watcher = os.pipe()
    os.close(seen)
    log = LogFile(tmp_path / "log")
    pump = Pump(read, "stdout", log, clock=lambda: 0)
    pump.attached.add(watcher)
    os.write(write, b"still here\n")
    os.close(write)
    await pump.ended.wait()
    assert b"still here" in log.path.read_bytes()
    assert not pump.attached
    os.close(watcher)
    log.close()
