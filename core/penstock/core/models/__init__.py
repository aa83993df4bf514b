"""What everyone knows about models and machines: shapes, memory, latency, watts and price.

Pure functions and frozen values; nothing here reads a clock, a file or a network. Enter by name with `find_model` and
`find_accelerator`, leave with a `LatencyProfile` (`resolve_profile`) and a `MemoryFit` (`fit`).
"""

from penstock.core.models.architecture import Attention, Experts, ModelArchitecture, count_parameters
from penstock.core.models.catalogue import find_model, known_models, suggest
from penstock.core.models.dtypes import DType
from penstock.core.models.hardware import (
    Accelerator,
    Link,
    LinkKind,
    find_accelerator,
    known_accelerators,
    suggest_accelerator,
)
from penstock.core.models.huggingface import architecture_from_config
from penstock.core.models.latency import Coefficients, LatencyProfile, ProfileSource, attention_work
from penstock.core.models.memory import MemoryFit, fit, smallest_fit
from penstock.core.models.parallelism import Parallelism
from penstock.core.models.power import Phase, energy_joules, slowdown, throttled, watts
from penstock.core.models.profiles import resolve_profile
from penstock.core.models.published import PublishedProfile, find_published, published_profiles
from penstock.core.models.roofline import Efficiency, roofline_profile
from penstock.core.models.transfer import transfer_ms_per_token

__all__ = [
    "Accelerator",
    "Attention",
    "Coefficients",
    "DType",
    "Efficiency",
    "Experts",
    "LatencyProfile",
    "Link",
    "LinkKind",
    "MemoryFit",
    "ModelArchitecture",
    "Parallelism",
    "Phase",
    "ProfileSource",
    "PublishedProfile",
    "architecture_from_config",
    "attention_work",
    "count_parameters",
    "energy_joules",
    "find_accelerator",
    "find_model",
    "find_published",
    "fit",
    "known_accelerators",
    "known_models",
    "published_profiles",
    "resolve_profile",
    "roofline_profile",
    "slowdown",
    "smallest_fit",
    "suggest",
    "suggest_accelerator",
    "throttled",
    "transfer_ms_per_token",
    "watts",
]
