"""Recording picks: nothing is wrapped where nobody asked, and the answer stays the policy's own where somebody did."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.core.fleet import Fleet, Pick, Request, Worker
from penstock.router.decisions import UnknownPolicy, find_policy
from penstock.router.decisions.policies import reads_prompts
from penstock.router.shell.recording import policies
from penstock.simulator.snapshots import replay_records


def test_without_a_folder_policies_are_the_plain_ones() -> None:
    assert policies("") is find_policy
    assert policies("")("KVAware") is find_policy("KVAware")


def test_what_is_picked_is_picked_and_written(tmp_path: Path) -> None:
    fleet = Fleet(2)
    for number in range(3):
        fleet.set_ready(fleet.add(Worker(f"team/w{number}", "10.0.0.1", 8000 + number, "m")), True)
    policy = policies(str(tmp_path / "new"))("KVAware")
    assert policy.name == "KVAware"
    assert reads_prompts(policy)
    request = Request("r", "m", 100, 10, block_hashes=(b"a" * 32,))
    answer = policy.pick(request, fleet.view(), 5.0, 7)
    assert isinstance(answer, Pick)
    assert answer.decode == find_policy("KVAware").pick(request, fleet.view(), 5.0, 7).decode  # type: ignore[union-attr]
    with (tmp_path / "new" / "picks.jsonl").open("rb") as lines:
        assert replay_records(lines, "picks.jsonl").same == {"Pick": 1}


def test_an_unknown_policy_is_still_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownPolicy, match="unknown routing policy 'Best'"):
        policies(str(tmp_path))("Best")
