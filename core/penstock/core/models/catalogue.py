"""The models Penstock knows by name. Shapes and counts are those of the published checkpoints' configurations.

A model that is not here is no dead end: `architecture_from_config` reads any Hugging Face `config.json`.
"""

from __future__ import annotations

import difflib
from functools import cache

from penstock.core.models.architecture import Attention, Experts, ModelArchitecture
from penstock.core.models.dtypes import DType

__all__ = ["find_model", "known_models", "suggest"]

_M = ModelArchitecture

_LLAMA = (
    _M("meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 32, 8, 128, 14336, 128256, 8_030_261_248, 131072,
       aliases=("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B",
                "llama-3.1-8b", "llama-3-8b")),
    _M("meta-llama/Llama-3.1-70B-Instruct", 80, 8192, 64, 8, 128, 28672, 128256, 70_553_706_496, 131072,
       aliases=("meta-llama/Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B-Instruct", "meta-llama/Meta-Llama-3.1-70B",
                "meta-llama/Llama-3.3-70B-Instruct", "llama-3.1-70b", "llama-3.3-70b", "llama-3-70b")),
    _M("meta-llama/Llama-3.1-405B-Instruct", 126, 16384, 128, 8, 128, 53248, 128256, 405_853_388_800, 131072,
       aliases=("meta-llama/Llama-3.1-405B", "meta-llama/Meta-Llama-3.1-405B-Instruct", "llama-3.1-405b")),
    _M("meta-llama/Meta-Llama-3-8B-Instruct", 32, 4096, 32, 8, 128, 14336, 128256, 8_030_261_248, 8192,
       aliases=("meta-llama/Meta-Llama-3-8B",)),
    _M("meta-llama/Meta-Llama-3-70B-Instruct", 80, 8192, 64, 8, 128, 28672, 128256, 70_553_706_496, 8192,
       aliases=("meta-llama/Meta-Llama-3-70B",)),
    _M("meta-llama/Llama-3.2-1B-Instruct", 16, 2048, 32, 8, 64, 8192, 128256, 1_235_814_400, 131072,
       tied_embeddings=True, aliases=("meta-llama/Llama-3.2-1B", "llama-3.2-1b")),
    _M("meta-llama/Llama-3.2-3B-Instruct", 28, 3072, 24, 8, 128, 8192, 128256, 3_212_749_824, 131072,
       tied_embeddings=True, aliases=("meta-llama/Llama-3.2-3B", "llama-3.2-3b")),
    _M("meta-llama/Llama-2-7b-chat-hf", 32, 4096, 32, 32, 128, 11008, 32000, 6_738_415_616, 4096,
       attention=Attention.MHA, dtype=DType.FP16, aliases=("meta-llama/Llama-2-7b-hf", "llama-2-7b")),
    _M("meta-llama/Llama-2-13b-chat-hf", 40, 5120, 40, 40, 128, 13824, 32000, 13_015_864_320, 4096,
       attention=Attention.MHA, dtype=DType.FP16, aliases=("meta-llama/Llama-2-13b-hf", "llama-2-13b")),
    _M("meta-llama/Llama-2-70b-chat-hf", 80, 8192, 64, 8, 128, 28672, 32000, 68_976_648_192, 4096,
       dtype=DType.FP16, aliases=("meta-llama/Llama-2-70b-hf", "llama-2-70b", "llama2-70b")),
    _M("codellama/CodeLlama-34b-Instruct-hf", 48, 8192, 64, 8, 128, 22016, 32000, 33_743_970_304, 16384,
       aliases=("codellama/CodeLlama-34b-hf", "codellama-34b")),
)  # fmt: skip

_QWEN = (
    _M("Qwen/Qwen2.5-7B-Instruct", 28, 3584, 28, 4, 128, 18944, 152064, 7_615_616_512, 32768,
       aliases=("Qwen/Qwen2.5-7B", "qwen2.5-7b")),
    _M("Qwen/Qwen2.5-32B-Instruct", 64, 5120, 40, 8, 128, 27648, 152064, 32_763_876_352, 32768,
       aliases=("Qwen/Qwen2.5-32B", "qwen2.5-32b")),
    _M("Qwen/Qwen2.5-72B-Instruct", 80, 8192, 64, 8, 128, 29568, 152064, 72_706_203_648, 32768,
       aliases=("Qwen/Qwen2.5-72B", "qwen2.5-72b")),
    _M("Qwen/Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, 8_190_735_360, 40960, aliases=("qwen3-8b",)),
    _M("Qwen/Qwen3-32B", 64, 5120, 64, 8, 128, 25600, 151936, 32_762_123_264, 40960, aliases=("qwen3-32b",)),
    _M("Qwen/Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 6144, 151936, 30_532_122_624, 40960,
       experts=Experts(routed=128, active=8, layers=48, intermediate=768), aliases=("qwen3-30b-a3b",)),
    _M("Qwen/Qwen3-235B-A22B", 94, 4096, 64, 4, 128, 12288, 151936, 235_093_634_560, 40960,
       experts=Experts(routed=128, active=8, layers=94, intermediate=1536), aliases=("qwen3-235b-a22b",)),
)  # fmt: skip

_MISTRAL = (
    _M("mistralai/Mistral-7B-Instruct-v0.3", 32, 4096, 32, 8, 128, 14336, 32768, 7_248_023_552, 32768,
       aliases=("mistralai/Mistral-7B-v0.3", "mistral-7b")),
    _M("mistralai/Mixtral-8x7B-Instruct-v0.1", 32, 4096, 32, 8, 128, 14336, 32000, 46_702_792_704, 32768,
       experts=Experts(routed=8, active=2, layers=32, intermediate=14336),
       aliases=("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b")),
    _M("mistralai/Mixtral-8x22B-Instruct-v0.1", 56, 6144, 48, 8, 128, 16384, 32768, 140_630_071_296, 65536,
       experts=Experts(routed=8, active=2, layers=56, intermediate=16384),
       aliases=("mistralai/Mixtral-8x22B-v0.1", "mixtral-8x22b")),
)  # fmt: skip

_DEEPSEEK = (
    _M("deepseek-ai/DeepSeek-V3", 61, 7168, 128, 128, 128, 18432, 129280, 671_026_419_200, 163840,
       attention=Attention.MLA, kv_lora_rank=512, rope_head_dim=64, q_lora_rank=1536, dtype=DType.FP8,
       experts=Experts(routed=256, active=8, layers=58, intermediate=2048, shared=1),
       aliases=("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-R1-0528",
                "deepseek-v3", "deepseek-r1")),
    _M("deepseek-ai/DeepSeek-V2-Lite-Chat", 27, 2048, 16, 16, 128, 10944, 102400, 15_706_484_224, 163840,
       attention=Attention.MLA, kv_lora_rank=512, rope_head_dim=64,
       experts=Experts(routed=64, active=6, layers=26, intermediate=1408, shared=2),
       aliases=("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2-lite")),
)  # fmt: skip

_OTHERS = (
    _M("openai/gpt-oss-20b", 24, 2880, 64, 8, 64, 2880, 201088, 20_914_757_184, 131072,
       experts=Experts(routed=32, active=4, layers=24, intermediate=2880, dtype=DType.MXFP4),
       sliding_window=128, sliding_layers=12, aliases=("gpt-oss-20b",)),
    _M("openai/gpt-oss-120b", 36, 2880, 64, 8, 64, 2880, 201088, 116_829_156_672, 131072,
       experts=Experts(routed=128, active=4, layers=36, intermediate=2880, dtype=DType.MXFP4),
       sliding_window=128, sliding_layers=18, aliases=("gpt-oss-120b",)),
    _M("google/gemma-2-27b-it", 46, 4608, 32, 16, 128, 36864, 256000, 27_227_128_320, 8192,
       tied_embeddings=True, sliding_window=4096, sliding_layers=23, aliases=("google/gemma-2-27b", "gemma-2-27b")),
    _M("google/gemma-3-27b-it", 62, 5376, 32, 16, 128, 21504, 262208, 27_432_406_640, 131072,
       tied_embeddings=True, sliding_window=1024, sliding_layers=52, aliases=("google/gemma-3-27b-pt", "gemma-3-27b")),
    _M("microsoft/phi-4", 40, 5120, 40, 10, 128, 17920, 100352, 14_659_507_200, 16384, aliases=("phi-4",)),
    _M("facebook/opt-13b", 40, 5120, 40, 40, 128, 20480, 50272, 12_853_473_280, 2048,
       attention=Attention.MHA, gated=False, tied_embeddings=True, dtype=DType.FP16, aliases=("opt-13b",)),
    _M("facebook/opt-66b", 64, 9216, 72, 72, 128, 36864, 50272, 65_719_222_272, 2048,
       attention=Attention.MHA, gated=False, tied_embeddings=True, dtype=DType.FP16, aliases=("opt-66b",)),
    _M("facebook/opt-175b", 96, 12288, 96, 96, 128, 49152, 50272, 174_604_505_088, 2048,
       attention=Attention.MHA, gated=False, tied_embeddings=True, dtype=DType.FP16, aliases=("opt-175b",)),
    _M("bigscience/bloom", 70, 14336, 112, 112, 128, 57344, 250880, 176_247_271_424, 2048,
       attention=Attention.MHA, gated=False, tied_embeddings=True, aliases=("bloom-176b", "bigscience/bloom-176b")),
    _M("Qwen/Qwen-72B", 80, 8192, 64, 64, 128, 24576, 152064, 72_287_920_128, 32768,
       attention=Attention.MHA, aliases=("Qwen/Qwen-72B-Chat", "qwen-72b")),
)  # fmt: skip

_MODELS = _LLAMA + _QWEN + _MISTRAL + _DEEPSEEK + _OTHERS


def known_models() -> tuple[ModelArchitecture, ...]:
    """Every model of the catalogue, in the catalogue's order."""
    return _MODELS


def find_model(name: str) -> ModelArchitecture | None:
    """The model of this public name or alias, letter case apart; None when the catalogue has none."""
    return _by_name().get(name.strip().lower())


def suggest(name: str, limit: int = 3) -> tuple[str, ...]:
    """Public names close to a mistyped one, best first; empty when nothing is near."""
    near = difflib.get_close_matches(name.strip().lower(), _by_name(), n=4 * limit, cutoff=0.6)
    return tuple(dict.fromkeys(_by_name()[key].name for key in near))[:limit]


@cache
def _by_name() -> dict[str, ModelArchitecture]:
    table: dict[str, ModelArchitecture] = {}
    for model in _MODELS:
        for key in (model.name, model.name.rpartition("/")[2], *model.aliases):
            held = table.setdefault(key.lower(), model)
            if held is not model:
                raise ValueError(f"catalogue: {key} names both {held.name} and {model.name}")
    return table
