"""What turns a prompt into token ids: a model's own tokenizer and template, or the built-in ones.

Both stand behind `PromptTokenizer`, so that whoever needs tokens does not ask which model is simulated.
"""

from datetime import datetime
from typing import Protocol

import msgspec
import tokenizers
from penstock.core.tokens import builtin, messages
from penstock.core.tokens.errors import ModelFilesError, PromptError, TokensUnknown
from penstock.core.tokens.files import AddedToken, ModelFiles
from penstock.core.tokens.requests import ChatPrompt
from penstock.core.tokens.segments import MOST_IDS, SegmentCache, cacheable
from penstock.core.tokens.templates import ChatInput, ChatTemplate
from penstock.core.wire.openai import ChatMessage


class PromptTokenizer(Protocol):
    """Text and chats into token ids, as one engine makes them."""

    def encode(self, text: str, *, special: bool, limit: int | None = None, side: str = "left") -> list[int]:
        """Ids of a text. `special` adds the tokens the model wants around a text; `limit` keeps so many ids, the
        special ones among them, and cuts on `side`."""
        ...

    def render(self, chat: ChatPrompt, now: datetime) -> str:
        """The text of a chat. Raises `PromptError` or `TokensUnknown`."""
        ...


class BuiltinTokenizer:
    """The simulated engine's own."""

    def encode(self, text: str, *, special: bool, limit: int | None = None, side: str = "left") -> list[int]:
        """One id per word; the simulated engine adds no special tokens and cuts no prompt."""
        return builtin.encode(text)

    def render(self, chat: ChatPrompt, now: datetime) -> str:
        """The simulated engine's chat form, which has no tools or documents."""
        try:
            spoken = msgspec.convert(chat.messages, list[ChatMessage])
        except msgspec.ValidationError as problem:
            raise PromptError(f"messages: {problem}") from problem
        if not spoken:
            raise PromptError("messages must hold at least one message")
        return builtin.render_chat(
            spoken, add_generation_prompt=chat.add_generation_prompt, continue_final=chat.continue_final_message
        )


class ModelTokenizer:
    """A model's own, from its files. Safe to use from several threads."""

    def __init__(self, files: ModelFiles, most_kept: int = MOST_IDS) -> None:
        """Load; raises `ModelFilesError`. Takes up to some seconds for a large vocabulary.

        `most_kept`: ids of texts seen before that are kept, 4 bytes each.
        """
        self._tokenizer = _load(files)
        self._templates = {name: ChatTemplate(text, files.special_tokens) for name, text in files.templates.items()}
        self._added_by_special = self._tokenizer.num_special_tokens_to_add(False)
        self._segments = SegmentCache(self._tokenizer, most_kept) if cacheable(self._tokenizer) else None

    @property
    def vocabulary(self) -> int:
        """Ids there are, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, special: bool, limit: int | None = None, side: str = "left") -> list[int]:
        """Ids of a text, equal to the engine's. Raises `PromptError` for half a surrogate pair."""
        try:
            return self._encode(text, special, limit, side)
        except TypeError as problem:  # what the library makes of text that has no UTF-8
            raise PromptError("the prompt holds half a surrogate pair, which is no character") from problem

    def _encode(self, text: str, special: bool, limit: int | None, side: str) -> list[int]:
        if limit is None and self._segments is not None and not (special and self._added_by_special):
            return self._segments.encode(text)
        # A batch of one: unlike the library's single call it lets other threads run meanwhile.
        if limit is None:
            ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
            return ids
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        room = max(0, limit - (self._added_by_special if special else 0))
        if len(encoding.ids) > room:
            encoding.truncate(room, direction=side)
        # A truncated encoding carries what was cut; its ids are what was kept.
        done = self._tokenizer.post_process(encoding, add_special_tokens=special)
        return list(done.ids)

    def render(self, chat: ChatPrompt, now: datetime) -> str:
        """The chat through the model's template."""
        template = self._template(chat.tools is not None)
        return template.render(
            ChatInput(
                messages.conversation(chat.messages, template.content_format),
                messages.tools(chat.tools),
                chat.documents,
                chat.add_generation_prompt,
                chat.continue_final_message,
                chat.arguments,
            ),
            now,
        )

    def _template(self, with_tools: bool) -> ChatTemplate:
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            raise TokensUnknown("the model's files hold no default chat template")
        return self._templates["default"]


def _load(files: ModelFiles) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(files.tokenizer.decode())
    except Exception as problem:  # the library raises bare exceptions
        raise ModelFilesError(f"tokenizer.json cannot be loaded: {problem}") from problem
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [token for token in files.added if token.content not in known]
    tokenizer.add_tokens([_added(token) for token in missing])
    return tokenizer


def _added(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
