"""Latency coefficients that others measured and published, each with where it stands.

Three sources, named in every profile's provenance:

- Splitwise (`perf_model.csv` of splitwise-sim, MIT): whole passes of BLOOM-176B and Llama-2-70B, fitted here by least
  squares weighted by relative error, prefill on T and S, decode on B and C. Engines of 2023: the ratios between
  accelerators hold better than the milliseconds.
- DistServe (`profiler-a100-80g.vllm.json`, Apache-2.0): its own fits of OPT under vLLM, below 95 sequences.
- Vidur (operator profiles, MIT): all but attention, fitted on 256 to 4096 tokens (Llama 3: the line through 512 and
  4096, because its fit reaches to 32k and misses short passes by a third), and the floor below 64 tokens.
  Attention is not in the public files and comes from the roofline, as do the A40's all-reduces.

Where two sources cover a pair, the one that timed whole passes comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from penstock.core.models.catalogue import find_model
from penstock.core.models.hardware import find_accelerator
from penstock.core.models.latency import Coefficients, LatencyProfile, ProfileSource
from penstock.core.models.parallelism import Parallelism
from penstock.core.models.roofline import all_reduce_ms, attention_ms, kv_read_ms

T = TypeVar("T")

__all__ = ["PublishedProfile", "find_published", "published_profiles"]


@dataclass(frozen=True, slots=True)
class PublishedProfile:
    """One published measurement: which model on which accelerator, how spread, and how long its passes take."""

    model: str
    accelerator: str
    parallelism: Parallelism
    latency: LatencyProfile


_SPLITWISE = "splitwise-sim data/perf_model.csv @8f99e7dc, MIT (ISCA 2024); relative least squares of the medians"
_DISTSERVE = "DistServe simdistserve profiler-a100-80g.vllm.json @82831f16, Apache-2.0 (OSDI 2024)"
_VIDUR = "Vidur data/profiling @7d475133, MIT (MLSys 2024), all but attention; attention by roofline"

# model, accelerator, tensor, prefill (a, b, c), decode (a, b, c)
_SPLITWISE_FITS: tuple[tuple[str, str, int, Coefficients, Coefficients], ...] = (
    ("bigscience/bloom", "a100-80g", 8, (31.9073, 0.276591, 1.34989e-5), (47.7961, 0.456023, 4.48297e-4)),
    ("bigscience/bloom", "h100-80g", 8, (21.1445, 0.120919, 7.05057e-6), (35.4618, 0.311611, 1.79655e-4)),
    ("llama-2-70b", "a100-80g", 2, (25.7705, 0.369956, -2.59045e-6), (57.0392, 0.434028, 1.02430e-4)),
    ("llama-2-70b", "a100-80g", 4, (17.6655, 0.252381, -1.86494e-6), (43.1896, 0.197346, 3.94348e-4)),
    ("llama-2-70b", "a100-80g", 8, (26.8810, 0.153426, 1.38809e-6), (43.9895, 0.200324, 3.48621e-4)),
    ("llama-2-70b", "h100-80g", 2, (22.8655, 0.133789, 3.42903e-6), (36.7713, 0.419000, 6.59080e-5)),
    ("llama-2-70b", "h100-80g", 4, (25.2108, 0.0892499, 2.78975e-6), (28.7117, 0.273859, 1.19815e-4)),
    ("llama-2-70b", "h100-80g", 8, (26.4505, 0.0641351, 3.63464e-6), (29.9050, 0.206373, 1.73671e-4)),
)

# Printed by their authors as (a, context, batch); here in our order (a, batch, context).
_DISTSERVE_FITS: tuple[tuple[str, str, int, Coefficients, Coefficients], ...] = (
    ("opt-13b", "a100-80g", 1, (22.05220, 0.140509, 8.07658e-6), (23.47504, 0.0607269, 5.92934e-4)),
    ("opt-13b", "a100-80g", 2, (27.44081, 0.0905453, 8.45205e-6), (24.54058, 0.0871579, 2.24401e-4)),
    ("opt-13b", "a100-80g", 4, (30.53632, 0.0515064, 4.23247e-7), (25.90114, 0.0552809, 7.75363e-5)),
    ("opt-66b", "a100-80g", 2, (58.38220, 0.382641, -7.11415e-6), (57.07344, 0.2249374, 3.646114e-3)),
    ("opt-66b", "a100-80g", 4, (42.96549, 0.212866, 4.60102e-5), (39.58179, 0.1358087, 6.945722e-4)),
    ("opt-66b", "a100-80g", 8, (38.93119, 0.157368, 4.53168e-6), (31.17604, 0.0679770, 2.755654e-4)),
)

# model, accelerator, then for tensor 1, 2, 4, 8: (a ms, b ms a token above 256 tokens, floor ms up to 64 tokens)
_VIDUR_FITS: tuple[tuple[str, str, tuple[Coefficients, ...]], ...] = (
    ("llama-2-7b", "a100-80g", ((2.31469, 0.0640949, 9.28), (3.57596, 0.0361669, 8.528),
                                (4.95483, 0.0209829, 5.36), (5.15892, 0.0152428, 4.464))),
    ("codellama-34b", "a100-80g", ((33.3082, 0.288082, 45.84), (17.7333, 0.159736, 28.536),
                                   (12.1362, 0.0905693, 16.248), (12.458, 0.0567003, 11.16))),
    ("llama-2-70b", "a100-80g", ((64.4693, 0.592483, 92.88), (40.9431, 0.317832, 54.88),
                                 (27.4676, 0.176949, 31.04), (22.4619, 0.108515, 20.68))),
    ("qwen-72b", "a100-80g", ((59.805, 0.615772, 94.4), (41.0735, 0.327353, 55.4),
                              (24.3426, 0.184025, 31.32), (20.8672, 0.11179, 20.88))),
    ("meta-llama/Meta-Llama-3-8B", "a100-80g", ((0.60, 0.06649, 10.464), (2.83, 0.03816, 9.008),
                                                (6.08, 0.02218, 5.68), (4.79, 0.015706, 4.688))),
    ("meta-llama/Meta-Llama-3-70B", "a100-80g", ((29.98, 0.61270, 92.68), (24.35, 0.32627, 55.32),
                                                 (18.56, 0.17781, 31.08), (21.26, 0.10864, 20.96))),
    ("llama-2-7b", "h100-80g", ((3.16342, 0.0200783, 5.792), (4.19218, 0.011875, 5.216),
                                (3.67793, 0.00792008, 4.784), (3.34371, 0.0063883, 3.776))),
    ("codellama-34b", "h100-80g", ((14.6751, 0.100452, 24.72), (9.29514, 0.0559637, 16.68),
                                   (7.94509, 0.0326405, 11.544), (7.4188, 0.0220814, 7.728))),
    ("llama-2-70b", "h100-80g", ((27.2391, 0.207428, 50.0), (19.9963, 0.111036, 31.8),
                                 (13.6135, 0.0637952, 21.6), (14.3494, 0.0401812, 14.04))),
    ("qwen-72b", "h100-80g", ((31.2867, 0.213046, 51.76), (20.5366, 0.114473, 32.4),
                              (14.9247, 0.0642652, 21.76), (14.3976, 0.0405355, 14.16))),
    ("llama-2-7b", "a40-48g", ((9.96643, 0.122907, 26.304), (6.79968, 0.0621908, 13.28),
                               (3.94223, 0.0331608, 7.136), (2.7295, 0.0188772, 4.064))),
    ("codellama-34b", "a40-48g", ((54.8026, 0.582186, 127.248), (22.311, 0.308501, 64.608),
                                  (16.3578, 0.156957, 34.08), (11.0638, 0.0824981, 18.096))),
    ("llama-2-70b", "a40-48g", ((120.044, 1.19269, 258.72), (41.5577, 0.605956, 134.88),
                                (15.613, 0.326618, 70.0), (13.0942, 0.166456, 36.0))),
    ("qwen-72b", "a40-48g", ((104.409, 1.2435, 269.52), (49.3247, 0.621299, 137.44),
                             (19.0687, 0.330488, 70.48), (16.5994, 0.169763, 36.56))),
)  # fmt: skip

_WITHOUT_ALL_REDUCE = "a40-48g"
_CHORD = 256  # As in the roofline: decode becomes a straight line over this many sequences.
_SCHEDULER_MS = 0.008


@cache
def published_profiles() -> tuple[PublishedProfile, ...]:
    """Every published profile, the preferred one of a pair first."""
    whole = [
        _whole_pass(fits, origin) for fits, origin in ((_SPLITWISE_FITS, _SPLITWISE), (_DISTSERVE_FITS, _DISTSERVE))
    ]
    return tuple(profile for source in (*whole, _vidur()) for profile in source)


def find_published(model: str, accelerator: str, parallelism: Parallelism) -> LatencyProfile | None:
    """The preferred published latency of this model (public name), accelerator and parallelism, or None.

    Checkpoints that share every width share their speed: Llama 3.1 is answered by what was measured on Llama 3.
    """
    return _index().get((_shape(model), accelerator, parallelism))


@cache
def _index() -> dict[tuple[object, str, Parallelism], LatencyProfile]:
    table: dict[tuple[object, str, Parallelism], LatencyProfile] = {}
    for known in published_profiles():
        table.setdefault((_shape(known.model), known.accelerator, known.parallelism), known.latency)
    return table


def _shape(name: str) -> object:
    model = find_model(name)
    if model is None:
        return name
    widths = (model.layers, model.hidden, model.attention_heads, model.kv_heads, model.intermediate, model.vocab)
    return (*widths, model.total_parameters)


def _whole_pass(
    fits: tuple[tuple[str, str, int, Coefficients, Coefficients], ...], origin: str
) -> Iterator[PublishedProfile]:
    for name, accelerator, tensor, prefill, decode in fits:
        latency = LatencyProfile(prefill, decode, ProfileSource.CATALOGUE, origin)
        yield PublishedProfile(_known(find_model, name).name, accelerator, Parallelism(tensor), latency)


def _vidur() -> Iterator[PublishedProfile]:
    for name, accelerator, by_tensor in _VIDUR_FITS:
        for tensor, fit in zip((1, 2, 4, 8), by_tensor, strict=True):
            yield _with_attention(name, accelerator, tensor, fit)


def _with_attention(name: str, accelerator_name: str, tensor: int, fit: Coefficients) -> PublishedProfile:
    model, accelerator = _known(find_model, name), _known(find_accelerator, accelerator_name)
    intercept, per_token, floor = fit
    fixed, reduce = all_reduce_ms(model, accelerator, tensor) if accelerator_name == _WITHOUT_ALL_REDUCE else (0.0, 0.0)
    slope = max(0.0, intercept + per_token * _CHORD - floor) / _CHORD + reduce + _SCHEDULER_MS
    latency = LatencyProfile(
        prefill=(intercept + fixed, per_token + reduce, attention_ms(model, accelerator, tensor)),
        decode=(floor + fixed, slope, kv_read_ms(model, accelerator, tensor)),
        source=ProfileSource.CATALOGUE,
        provenance=_VIDUR,
    )
    return PublishedProfile(model.name, accelerator_name, Parallelism(tensor), latency)


def _known(find: Callable[[str], T | None], name: str) -> T:
    found = find(name)
    if found is None:
        raise LookupError(f"published profiles name {name}, which the catalogue does not have")
    return found
