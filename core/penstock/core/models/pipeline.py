"""What a pipeline of stages does to a worker's pace: several batches are in flight, each on another stage.

A pass over a batch goes through all stages one after the other, so no batch gets through faster than without a
pipeline. But a stage is free for the next batch after its share of that time, and in the time of one pass as many
batches get through as there are stages. `pipelined` is the pace of all of them together, as of one engine:

- A worker that only prefills takes the time of a pass divided by the stages plus a millisecond a stage, as DistServe's
  simulator (OSDI 2024) charges it: the rate at which prompts follow one another.
- One that decodes has its sequences split over the batches. In the time of one pass every sequence gets its token and
  each batch may carry a chunk of prompt, so give that engine `stages` times the token budget. Each batch reads all the
  weights on its way: the time of a pass keeps its base, and what grows with tokens or sequences shrinks.

What one prompt itself still waits for, when the first stage is done with it, is `fill_ms`.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.core.models.latency import LatencyProfile, attention_work

__all__ = ["HOP_MS", "fill_ms", "pipelined"]

HOP_MS = 1.0
"""Handing one batch's activations to the next stage, as DistServe's simulator has it."""


def pipelined(profile: LatencyProfile, stages: int, *, prefill_only: bool = False) -> LatencyProfile:
    """The pace of a worker of `stages` stages whose one pass through all of them takes what `profile` says.

    `prefill_only` is for a worker that decodes nothing: then a stage's share of reading the weights is the shortest
    pass, too. Raises ValueError for fewer than 1 stage.
    """
    if stages < 1:
        raise ValueError(f"a pipeline of {stages} stages is none; give at least 1")
    if stages == 1:
        return profile
    (a, b, c), (base, sequence, context), (experts, share) = profile.prefill, profile.decode, profile.experts
    passes = stages if prefill_only else 1
    hops = HOP_MS * stages / passes
    return replace(
        profile,
        prefill=(a / passes + hops, b / stages, c / stages),
        decode=(base / passes + hops, sequence / stages, context / stages),
        experts=(experts / passes, share),
        provenance=f"{profile.provenance}; {stages} pipeline stages by DistServe's law",
    )


def fill_ms(profile: LatencyProfile, stages: int, prompt_tokens: int, budget: int) -> float:
    """What a prompt's first token waits for beyond the pace of `pipelined`: its last chunk on the remaining stages.

    `profile` is that of one pass through all stages, `budget` the most prompt tokens of a pass.
    """
    if stages == 1:
        return 0.0
    chunk = min(prompt_tokens, budget)
    whole = profile.prefill_ms(chunk, attention_work(chunk, prompt_tokens - chunk))
    return whole * (1.0 - 1.0 / stages) + HOP_MS * (stages - 1)
