"""Small real models per template family: a tokenizer trained on a few lines, a config, a template of our own.

Each template is written in its family's style (what it reads, how it trims, where it refuses), so that what the field's
templates lean on is leant on here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = Path(__file__).parent / "families"
LINES = """The gate meters water into the turbine; the turbine turns, and the lamps of the valley come on.
Which worker holds the first blocks of this prompt? The one that answered its like a minute ago.
{"name": "lookup", "parameters": {"city": "Zürich", "days": 3, "exact": true}} <think> [1, 2.5, null] </think>
Ein Satz mit Umlauten: schöne Grüße aus Köln, déjà vu, naïve café, 東京 の 天気, привет мир, 🙂
    four spaces, a\ttab, 0 1 2 3 10 42 100 1024 65536, (a + b) * c / d - e = f; x_y-z @ #! % & | ~ ^ ` ' "
""".splitlines()

SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "mistral": ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
    "gemma": ["<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "deepseek": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
}
BEGIN = {family: tokens[0] for family, tokens in SPECIAL.items() if family != "chatml"}
FAMILIES = tuple(SPECIAL)


def template(family: str) -> str:
    return (FOLDER / f"{family}.jinja").read_text()


@cache
def tokenizer_json(family: str) -> bytes:
    """Byte-level for most, as in the field; text-level with spaces marked for the sentencepiece families."""
    pieces = family in ("mistral", "gemma")
    tokenizer = Tokenizer(models.BPE(byte_fallback=pieces, unk_token="<unk>" if pieces else None))
    if pieces:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = sorted({c for line in LINES for c in line.replace(" ", "▁")})
        special = SPECIAL[family] + [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        split = pre_tokenizers.Split(_PATTERN, "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), SPECIAL[family]
    trainer = trainers.BpeTrainer(
        vocab_size=900, min_frequency=1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    if family in BEGIN:
        begin = BEGIN[family]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return tokenizer.to_str().encode()


_PATTERN = Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def config(family: str) -> dict[str, Any]:
    tokens = SPECIAL[family]
    named = {"eos_token": tokens[2] if family == "chatml" else tokens[1]}
    if family in BEGIN:
        named["bos_token"] = BEGIN[family]
    if "<unk>" in tokens:
        named["unk_token"] = "<unk>"
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}


def files(family: str) -> dict[str, bytes]:
    return {
        "tokenizer.json": tokenizer_json(family),
        "tokenizer_config.json": json.dumps(config(family)).encode(),
        "chat_template.jinja": template(family).encode(),
    }


def write(family: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(family).items():
        (folder / name).write_bytes(content)
    return folder
