"""A request's way to its block hashes, beside the references in the same run: `transformers` and `cbor2`.

    python benchmarks/tokens/run.py [--tokens 2048] [--rounds 15] [--json FILE]

Three stages (chat template, tokenizer, hashes) and the whole, for a chat of about that many tokens with a tool; the
whole once with every turn new, once with only the last turn new, as the next request of a conversation is. The
reference of the first two is `transformers` with the same files, of the third the chain written down with `cbor2`, as
engines have it. The sides take turns within each round; figures are medians, and only the ratios mean something on
another machine. Both sides must give equal ids and equal hashes, or the run fails.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "core_tokens"))

import cbor2
import families
import transformers
from penstock.core.tokens.files import read_files
from penstock.core.tokens.prompts import BlockNaming, named, prompts_of
from penstock.core.tokens.requests import ChatPrompt, read_request
from penstock.core.tokens.segments import MOST_IDS
from penstock.core.tokens.tokenizer import ModelTokenizer

NOW = datetime(2026, 1, 2)
BLOCK = 16
FAMILY = "llama3"
TOOL = {
    "type": "function",
    "function": {"name": "lookup", "description": "Weather", "parameters": {"type": "object", "properties": {}}},
}

Work = Callable[[], Any]


def conversation(tokenizer: ModelTokenizer, tokens: int) -> list[dict[str, str]]:
    """Turns of some 64 tokens each, none equal to another, as many as make a prompt of about `tokens`."""
    turn, used, turns = " ".join(families.LINES[:2]), 0, []
    per_turn = len(tokenizer.encode(turn, special=False)) + 5
    while used < tokens or len(turns) % 2 == 0:
        turns.append({"role": ("user", "assistant")[len(turns) % 2], "content": f"{len(turns)} {turn}"})
        used += per_turn
    return turns


def reference_hashes(ids: Sequence[int]) -> list[bytes]:
    """The engine's chain, by the library engines use."""
    parent, hashes = sha256(cbor2.dumps("vllm-none-hash", canonical=True)).digest(), []
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        parent = sha256(cbor2.dumps((parent, tuple(ids[start : start + BLOCK]), None), canonical=True)).digest()
        hashes.append(parent)
    return hashes


class Side:
    """The whole way of one side, for a chat whose last turn is another one at each call."""

    def __init__(self, turns: list[dict[str, str]], way: Callable[[bytes], Any]) -> None:
        self._turns, self._way, self._calls = turns, way, itertools.count()

    def __call__(self) -> Any:
        last = {**self._turns[-1], "content": f"{next(self._calls)} {self._turns[-1]['content']}"}
        return self._way(json.dumps({"model": "m", "messages": [*self._turns[:-1], last], "tools": [TOOL]}).encode())


def stages(tokens: int) -> tuple[int, dict[str, tuple[Work, Work]]]:
    """Tokens of the prompt, and for each stage ours and the reference's."""
    tokenizer, fresh = (ModelTokenizer(read_files(families.files(FAMILY)), most_kept=kept) for kept in (MOST_IDS, 0))
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers.AutoTokenizer.from_pretrained(families.write(FAMILY, Path(folder)))
    turns = conversation(tokenizer, tokens)
    text = tokenizer.render(ChatPrompt(turns, [TOOL]), NOW)
    ids = tokenizer.encode(text, special=False)
    day = NOW.strftime("%d %b %Y")

    def reference(body: bytes) -> tuple[list[int], list[bytes]]:
        asked = json.loads(body)
        made = theirs.apply_chat_template(
            asked["messages"], tools=asked["tools"], add_generation_prompt=True, return_dict=False, date_string=day
        )
        return made, reference_hashes(made)

    def ours(body: bytes, by: ModelTokenizer) -> tuple[list[int], list[bytes]]:
        (prompt,) = prompts_of(read_request(body, chat=True), by, BlockNaming(BLOCK), NOW)
        return list(prompt.token_ids), list(prompt.block_hashes)

    def template_theirs() -> str:
        return theirs.apply_chat_template(
            turns, tools=[TOOL], add_generation_prompt=True, tokenize=False, date_string=day
        )

    return len(ids), {
        "template": (lambda: tokenizer.render(ChatPrompt(turns, [TOOL]), NOW), template_theirs),
        "tokenizer": (
            lambda: fresh.encode(text, special=False),
            lambda: theirs.encode(text, add_special_tokens=False),
        ),
        "hashes": (
            lambda: list(named(ids, None, BlockNaming(BLOCK)).block_hashes),
            lambda: reference_hashes(ids),
        ),
        "whole, all new": (Side(turns, lambda body: ours(body, fresh)), Side(turns, reference)),
        "whole, last new": (Side(turns, lambda body: ours(body, tokenizer)), Side(turns, reference)),
    }


def measure(pairs: dict[str, tuple[Work, Work]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of both sides of each stage, and reference over ours (above 1: ours is faster)."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for round_number in range(rounds + 1):
        for name, works in pairs.items():
            for side in (0, 1) if round_number % 2 else (1, 0):
                start = time.perf_counter()
                works[side]()
                if round_number:  # the first round warms both sides up
                    times[name][side].append((time.perf_counter() - start) * 1e3)
    figures = {}
    for name, (ours, theirs) in times.items():
        own, other = statistics.median(ours), statistics.median(theirs)
        figures[name] = {"ms": own, "reference_ms": other, "ratio": other / own}
    return figures


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tokens, pairs = stages(options.tokens)
    for name, (ours, theirs) in pairs.items():
        if ours() != theirs():
            sys.exit(f"{name}: the two sides do not give the same")
    figures = measure(pairs, options.rounds)
    print(f"{tokens} tokens, blocks of {BLOCK}, median of {options.rounds} rounds; equal ids and hashes on both sides")
    print(f"{'stage':<16} {'ours ms':>9} {'reference ms':>13} {'reference/ours':>15}")
    for name, row in figures.items():
        print(f"{name:<16} {row['ms']:>9.3f} {row['reference_ms']:>13.3f} {row['ratio']:>15.2f}")
    if options.json:
        options.json.write_text(json.dumps({"tokens": tokens, "stages": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
