"""A model's tokenizer files, read and checked: what `transformers` would make of the folder, from bytes alone.

`tokenizer.json` is the tokenizer whole, special tokens that it adds to a text included. `tokenizer_config.json` names
the special tokens that templates use; `special_tokens_map.json` has the last word on them where the config has no table
of added tokens (as in `transformers`). The chat template stands in `chat_template.jinja`, or in the config; there may
be several by name, of which `tool_use` serves requests with tools.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.core.tokens.errors import ModelFilesError

TOKENIZER, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
"""The default template, and the folder of further ones (`<name>.jinja`)."""
NAMES = (TOKENIZER, CONFIG, SPECIAL, TEMPLATE)
LIMITS = {TOKENIZER: 256 << 20, CONFIG: 16 << 20, SPECIAL: 1 << 20, TEMPLATE: 1 << 20}
"""Bytes a file may have; the largest tokenizer.json in the field has some 35 MB."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the vocabulary, as the config describes it."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files say."""

    tokenizer: bytes
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by the name templates call them (`bos_token`)."""
    added: tuple[AddedToken, ...] = ()
    """Tokens the tokenizer must know, in the order of their ids; most stand in `tokenizer` already."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates by name; the usual one is `default`."""


def read_files(files: Mapping[str, bytes]) -> ModelFiles:
    """The files' meaning. Keys are `NAMES`, and `additional_chat_templates/<name>.jinja`.

    Raises `ModelFilesError` for a missing tokenizer.json and for any file that is not what it should be.
    """
    if TOKENIZER not in files:
        raise ModelFilesError(f"{TOKENIZER} is missing; models with other tokenizer files are left to the engine")
    for name, content in files.items():
        if len(content) > LIMITS.get(name, LIMITS[TEMPLATE]):
            raise ModelFilesError(f"{name} has {len(content)} bytes, more than such a file may have")
    config = _object(files, CONFIG)
    if "added_tokens_decoder" not in config:
        config |= _object(files, SPECIAL)
    added = _added(config)
    special = {name: token.content for name, value in config.items() if (token := _named(name, value)) is not None}
    return ModelFiles(files[TOKENIZER], special, added, _templates(files, config))


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except ValueError as problem:
        raise ModelFilesError(f"{name} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise ModelFilesError(f"{name} must be a JSON object")
    return value


def _named(name: str, value: Any) -> AddedToken | None:
    """The token behind a config key such as `bos_token`, or a model's own `image_token`."""
    if name in _NAMED and isinstance(value, dict) and isinstance(value.get("content"), str):
        return _token(value)
    if name.endswith("_token") and isinstance(value, str):
        return AddedToken(value)
    return None


def _token(value: Mapping[str, Any]) -> AddedToken:
    flags = {key: bool(value[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in value}
    return AddedToken(str(value["content"]), bool(value.get("special", True)), **flags)


def _is_entry(key: str, value: Any) -> bool:
    return key.isdecimal() and isinstance(value, dict) and "content" in value


def _added(config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """Tokens of the config's table by id, then the named ones and further special ones, each once."""
    table = config.get("added_tokens_decoder") or {}
    if not isinstance(table, dict) or not all(_is_entry(key, value) for key, value in table.items()):
        raise ModelFilesError(f"{CONFIG}: added_tokens_decoder must map ids to tokens with a content")
    found = {
        str(value["content"]): _token(value) for _, value in sorted(table.items(), key=lambda entry: int(entry[0]))
    }
    for name, value in config.items():
        token = _named(name, value)
        if token is not None:
            found.setdefault(token.content, token)
    further = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    for value in further.values() if isinstance(further, dict) else further:
        token = _token(value) if isinstance(value, dict) else AddedToken(str(value))
        found.setdefault(token.content, token)
    return tuple(found.values())


def _templates(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; files of their own win over the config as a whole."""
    own = {"default": files[TEMPLATE]} if TEMPLATE in files else {}
    for name, content in files.items():
        folder, _, base = name.rpartition("/")
        if folder == TEMPLATES and base.endswith(".jinja"):
            own[base.removesuffix(".jinja")] = content
    if own:
        return {name: _text(name, content) for name, content in own.items()}
    given = config.get("chat_template")
    if given is None:
        return {}
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, dict):
        return {str(name): str(text) for name, text in given.items()}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in given}
    except (TypeError, KeyError) as problem:
        raise ModelFilesError(f"{CONFIG}: chat_template must be a text or a list of names and templates") from problem


def _text(name: str, content: bytes) -> str:
    try:
        # As a file opened in text mode: line ends are one character, whatever the file's.
        return content.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as problem:
        raise ModelFilesError(f"chat template {name} is not UTF-8: {problem}") from problem
