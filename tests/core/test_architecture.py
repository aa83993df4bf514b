"""Shapes and counts of the catalogue against what the checkpoints' authors publish."""

import pytest
from penstock.core.models import (
    Attention,
    DType,
    Experts,
    ModelArchitecture,
    Parallelism,
    architecture_from_config,
    count_parameters,
    find_model,
    known_models,
    suggest,
)


def model(name: str) -> ModelArchitecture:
    found = find_model(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("known", known_models(), ids=lambda known: known.name)
def test_declared_parameters_follow_from_the_shape(known: ModelArchitecture) -> None:
    # Gemma 3's published count holds a vision tower of 0.42 B beside the language model.
    tolerance = 0.016 if "gemma-3" in known.name else 0.002
    assert count_parameters(known) == pytest.approx(known.total_parameters, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "kibibytes"),
    [
        ("llama-3.1-8b", 128),
        ("llama-3-70b", 320),
        ("llama-3.1-405b", 504),
        ("llama-2-7b", 512),
        ("mistral-7b", 128),
        ("opt-13b", 800),
        ("qwen2.5-7b", 56),
    ],
)
def test_kv_bytes_per_token_are_the_published_ones(name: str, kibibytes: int) -> None:
    assert model(name).kv_bytes_per_token() == kibibytes * 1024


def test_the_latent_cache_of_deepseek_v3_is_its_papers_70_kilobytes() -> None:
    assert model("deepseek-ai/DeepSeek-R1").kv_bytes_per_token() == 70_272
    assert model("deepseek-v3").kv_bytes_per_token("fp8") == 35_136


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 12.9),
        ("mixtral-8x22b", 39.1),
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22),
        ("deepseek-v3", 37),
        ("llama-3.1-8b", 8.03),
    ],
)
def test_active_parameters_are_the_published_ones(name: str, billions: float) -> None:
    assert model(name).active_parameters / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(("name", "gibibytes"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_four_bit_experts_make_the_published_checkpoint_sizes(name: str, gibibytes: float) -> None:
    assert model(name).weights_bytes() / 2**30 == pytest.approx(gibibytes, abs=0.1)


def test_weights_follow_the_number_format() -> None:
    llama = model("llama-3.1-8b")
    assert llama.weights_bytes() == 2 * llama.total_parameters
    assert llama.weights_bytes("fp8") == llama.total_parameters
    assert model("deepseek-v3").weights_bytes() == model("deepseek-v3").total_parameters


def test_names_are_found_by_alias_and_in_any_case() -> None:
    assert model("META-LLAMA/llama-3.1-8b-INSTRUCT") is model("Llama-3.1-8B-Instruct") is model(" llama-3.1-8b ")
    assert find_model("llama-9") is None


def test_a_mistyped_name_suggests_the_right_one() -> None:
    assert suggest("meta-llama/Llama-3.1-8B-Instuct")[0] == "meta-llama/Llama-3.1-8B-Instruct"
    assert suggest("zzzz") == ()


def test_kv_heads_bound_how_far_the_cache_is_cut() -> None:
    assert [model("llama-3.1-70b").kv_shards(tensor) for tensor in (1, 4, 8, 16)] == [1, 4, 8, 8]
    assert model("deepseek-v3").kv_shards(8) == 1


@pytest.mark.parametrize("alias", ["bfloat16", "torch.bfloat16", "BF16"])
def test_number_formats_have_the_fields_names(alias: str) -> None:
    assert DType.parse(alias) is DType.BF16


def test_an_unknown_number_format_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown number format 'fp7'; use one of .*bf16"):
        DType.parse("fp7")


def test_formats_of_one_size_are_not_one_format() -> None:
    assert DType.BF16 is not DType.FP16
    assert DType.FP8 is not DType.INT8


def test_an_impossible_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="active experts"):
        Experts(routed=4, active=5, layers=1, intermediate=8)
    with pytest.raises(ValueError, match="MLA needs"):
        ModelArchitecture("m", 1, 8, 1, 1, 8, 8, 8, 10, 10, attention=Attention.MLA)


# Parallelism


def test_expert_parallelism_adds_no_accelerators() -> None:
    degrees = Parallelism(tensor=2, data=4, expert=8)
    assert (degrees.accelerators, degrees.expert_shards) == (8, 8)
    assert Parallelism(tensor=4, pipeline=2).accelerators == 8


@pytest.mark.parametrize("degrees", [{"tensor": 0}, {"tensor": True}, {"expert": 3}, {"sequence": 2}, {"tensor": 1.5}])
def test_bad_degrees_are_refused_by_name(degrees: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(degrees))):
        Parallelism.from_dict(degrees)


def test_degrees_survive_a_round_trip() -> None:
    for degrees in (Parallelism(), Parallelism(4, 2), Parallelism(2, data=2, expert=4)):
        assert Parallelism.from_dict(degrees.to_dict()) == degrees


# Hugging Face configurations, cut to the keys that say something

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": 163840, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip
OPT = {
    "model_type": "opt", "num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "ffn_dim": 20480,
    "vocab_size": 50272, "max_position_embeddings": 2048, "torch_dtype": "float16",
}  # fmt: skip
BLOOM = {"model_type": "bloom", "n_layer": 70, "n_embed": 14336, "n_head": 112, "vocab_size": 250880,
         "seq_length": 2048, "torch_dtype": "bfloat16"}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32,
    "num_experts_per_tok": 4, "experts_per_token": 4, "vocab_size": 201088, "max_position_embeddings": 131072,
    "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
GEMMA3 = {"model_type": "gemma3", "text_config": {
    "model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32,
    "num_key_value_heads": 16, "head_dim": 128, "intermediate_size": 21504, "vocab_size": 262208,
    "sliding_window": 1024, "sliding_window_pattern": 6, "max_position_embeddings": 131072}}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"),
    [(LLAMA, "llama-3.1-8b"), (DEEPSEEK, "deepseek-v3"), (OPT, "opt-13b"), (BLOOM, "bloom-176b"),
     (GPT_OSS, "gpt-oss-20b"), (GEMMA3, "gemma-3-27b")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_config_gives_the_catalogues_architecture(config: dict[str, object], name: str) -> None:
    read, known = architecture_from_config(config, "read"), model(name)
    assert read.total_parameters == pytest.approx(known.total_parameters, rel=0.016)
    for field in ("layers", "hidden", "kv_heads", "head_dim", "attention", "experts", "max_context", "dtype",
                  "kv_values_per_token", "tied_embeddings", "sliding_window", "sliding_layers"):  # fmt: skip
        assert getattr(read, field) == getattr(known, field), field


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_config_without_a_key_says_which(missing: str) -> None:
    with pytest.raises(ValueError, match=f"config of llama: {missing}.* is missing"):
        architecture_from_config({key: value for key, value in LLAMA.items() if key != missing})


@pytest.mark.parametrize("wrong", ["32", 3.5, True, -1])
def test_a_config_with_a_wrong_value_says_which(wrong: object) -> None:
    with pytest.raises(ValueError, match="config of llama: num_hidden_layers is"):
        architecture_from_config(LLAMA | {"num_hidden_layers": wrong})


@pytest.mark.parametrize(("method", "size"), [("awq", 0.5), ("gptq", 0.5), ("fp8", 1.0)])
def test_a_quantised_config_weighs_less(method: str, size: float) -> None:
    read = architecture_from_config(LLAMA | {"quantization_config": {"quant_method": method}})
    assert read.weights_bytes() == round(read.total_parameters * size)
