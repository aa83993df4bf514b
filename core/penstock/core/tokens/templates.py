"""A model's chat template: compiled once, rendered per request, equal to what an engine renders.

Engines render through `transformers`; what reaches the template there reaches it here: messages, tools, documents,
`add_generation_prompt`, the special tokens by name, and the request's own arguments. `continue_final_message` leaves
the last message open, in the same way: a mark is rendered behind its text and everything from it on is cut off.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any, Literal

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from msgspec import Struct, field
from penstock.core.tokens.errors import ModelFilesError, PromptError, TemplateError
from penstock.core.tokens.sandbox import MAX_SIZE, ChatSandbox, Render, RenderLimit, check_size, current

MAX_TEMPLATE = 1 << 18
"""Characters of a template; the largest in the field have some twenty thousand."""
ContentFormat = Literal["string", "openai"]
"""How a template wants a message's content: one text, or a list of parts it walks through itself."""
Conversation = Sequence[Mapping[str, Any]]

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatInput(Struct, frozen=True):
    """What a template is given, as `messages.conversation` prepares it."""

    messages: Conversation
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The request's own (`chat_template_kwargs`); they win over special tokens of the same name."""


class ChatTemplate:
    """One compiled template. Rendering is safe from several threads at once."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile `source`; raises `ModelFilesError` where it is no template or a huge one."""
        if len(source) > MAX_TEMPLATE:
            raise ModelFilesError(f"the chat template has {len(source)} characters; at most {MAX_TEMPLATE} are taken")
        self.source = source
        self._special_tokens = dict(special_tokens)
        sandbox = ChatSandbox()
        try:
            self.content_format = detect_content_format(sandbox.parse(source))
            self._template = sandbox.from_string(source)
            # They come as a chain of mappings, which every rendering walks in Python.
            self._template.globals = dict(self._template.globals)
        except (JinjaError, RecursionError) as problem:
            raise ModelFilesError(f"the chat template is not valid jinja2: {problem}") from problem

    def render(self, chat: ChatInput, now: datetime) -> str:
        """The prompt's text; `now` is what `strftime_now` tells.

        Raises `PromptError` where the template itself refuses the messages, `TemplateError` where it fails otherwise
        or costs too much.
        """
        if chat.continue_final_message:
            return self._render_open(chat, now)
        return self._render(chat, chat.messages, now)

    def _render(self, chat: ChatInput, messages: Conversation, now: datetime) -> str:
        values = {
            **self._special_tokens,
            **chat.arguments,
            "messages": messages,
            "tools": chat.tools,
            "documents": chat.documents,
            "add_generation_prompt": chat.add_generation_prompt and not chat.continue_final_message,
        }
        token = current.set(Render(now))
        try:
            return _bounded_text(self._template.generate(values))
        except RenderLimit as problem:
            raise TemplateError(str(problem)) from problem
        except JinjaError as problem:
            raise PromptError(f"the chat template refuses these messages: {problem}") from problem
        except Exception as problem:  # a template is a program: it may fail in any way a program can
            raise TemplateError(f"the chat template failed: {type(problem).__name__}: {problem}") from problem
        finally:
            current.reset(token)

    def _render_open(self, chat: ChatInput, now: datetime) -> str:
        """The text up to the end of the last message's own."""
        if chat.add_generation_prompt:
            raise PromptError("add_generation_prompt and continue_final_message exclude each other; set one to false")
        last = deepcopy(dict(chat.messages[-1]))
        final = _mark_end(last)
        if "content" not in self.source:
            raise PromptError("continue_final_message: this model's chat template shows no message's content")
        text = self._render(chat, [*chat.messages[:-1], last], now)
        if final.strip() not in text or _MARK.strip() not in text:
            raise PromptError("continue_final_message: the chat template does not show the final message as it is")
        end = text.rindex(_MARK.strip())
        # A template that trims takes the mark's own space with what it trims, and so what stood before it as well.
        return text[:end] if text[end : end + len(_MARK)] == _MARK else text[:end].rstrip()


def _bounded_text(pieces: Iterator[str]) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_SIZE:
            raise RenderLimit(f"the chat template writes more than {MAX_SIZE} characters")
        parts.append(piece)
    return str(check_size("".join(parts)))


def _mark_end(message: dict[str, Any]) -> str:
    """Put the mark behind the message's last text, in place; the text as it was."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _MARK
        return content
    for part in reversed(content or ()):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + _MARK
            return text
    raise PromptError("continue_final_message: the final message has no text to continue")


def detect_content_format(template: nodes.Template) -> ContentFormat:
    """`openai` where the template loops over a message's content, else `string`; as vLLM decides without a flag.

    It follows names as vLLM does: aliases and slices of `messages`, then loops over those, then loops over `content`
    of such a loop's message. What a macro does with its arguments is not followed, there or here.
    """
    aliases = {"messages"}
    assigns = [node for node in template.find_all(nodes.Assign) if isinstance(node.target, nodes.Name)]
    while True:
        found = {a.target.name for a in assigns if isinstance(a.target, nodes.Name) and _names(a.node) in aliases}
        if found <= aliases:
            break
        aliases |= found
    loops = list(template.find_all(nodes.For))
    messages = {
        loop.target.name for loop in loops if isinstance(loop.target, nodes.Name) and _names(loop.iter) in aliases
    }
    walked = any(_names(_content_owner(loop.iter)) in messages for loop in loops if _content_owner(loop.iter))
    return "openai" if walked else "string"


def _bare(node: nodes.Node | None) -> nodes.Node | None:
    """The expression below filters, tests and slices."""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            return node


def _names(node: nodes.Node | None) -> str | None:
    bare = _bare(node)
    return bare.name if isinstance(bare, nodes.Name) else None


def _content_owner(node: nodes.Node) -> nodes.Node | None:
    """`m` of `m.content`, `m['content']`, and filters and slices of them."""
    bare = _bare(node)
    if isinstance(bare, nodes.Getattr) and bare.attr == "content":
        return bare.node
    if isinstance(bare, nodes.Getitem) and isinstance(bare.arg, nodes.Const) and bare.arg.value == "content":
        return bare.node
    return None
