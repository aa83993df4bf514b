"""Where chat templates run: jinja2's immutable sandbox, with what a render may cost bounded.

A chat template is a program that comes with a model's files. jinja2's sandbox keeps it from Python's internals; this
one also counts: loop rounds and calls (so that nested loops end), the size of what an operation makes (so that a
doubled text does not eat the memory), and repetitions asked for. What a template may see and what its filters give is
as in `transformers`, whose rendering engines use: trimmed blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`, and `{% generation %}` blocks, which mark text and change none.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 200_000
"""Loop rounds and calls of one render. A chat of 1,000 messages takes some ten thousand."""
MAX_SIZE = 1 << 24
"""Characters or items one operation may make, and numbers one may ask with: 16 Mi, the gateway's largest body."""
_LARGEST_NUMBER = 1 << 1024
_WIDE = re.compile(r"\d{5}|\*")
"""A width in a format text that is too large, or comes from elsewhere."""


class RenderLimit(JinjaError):
    """A render went beyond what it may cost."""


@dataclass(slots=True)
class Render:
    """One render under way: when it is, and what is left of its steps."""

    now: datetime
    steps: int = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Take `steps` from what is left; raises `RenderLimit`."""
        self.steps -= steps
        if self.steps < 0:
            raise RenderLimit(f"the chat template takes more than {MAX_STEPS} loop rounds and calls")


current: ContextVar[Render] = ContextVar("current")
"""The render of this thread or task; set for as long as it lasts."""


def check_size(value: Any) -> Any:
    """The value itself; raises `RenderLimit` where it is larger than a render may make."""
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_SIZE:
        raise RenderLimit(f"the chat template makes a value of more than {MAX_SIZE} characters or items")
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise RenderLimit("the chat template makes a number of more than 1,024 bits")
    return value


def _check_planned(size: int) -> None:
    """Refuse, before it is made, a value whose size is known."""
    if size > MAX_SIZE:
        raise RenderLimit(f"the chat template asks for a value of more than {MAX_SIZE} characters or items")


@pass_context
def _metered(_context: Context, value: Any) -> Any:
    """A loop's iterable, its rounds paid for. (`pass_context` keeps jinja2 from evaluating it while compiling.)"""
    render = current.get()
    if isinstance(value, Sized):
        render.spend(len(value))
        return value
    return _paid(value, render)


def _paid(values: Iterable[Any], render: Render) -> Iterator[Any]:
    for value in values:
        render.spend(1)
        yield value


@pass_context
def _measured(_context: Context, value: Any) -> Any:
    return check_size(value)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `transformers` gives it: jinja2's own filter escapes HTML, which would change tokens."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise JinjaError(message)


def _strftime_now(form: str) -> str:
    return current.get().now.strftime(form)


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the assistant says, marked for training."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """A call block, so that names set within stay within, as in training."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


def _size_of_replace(text: Any, old: Any, new: Any, *_: Any) -> int:
    return (len(text) + 1 if old == "" else str(text).count(str(old))) * len(str(new))


def _size_of_join(separator: Any, items: Any) -> int:
    return len(str(separator)) * len(items) if isinstance(items, Sized) else 0


def _size_of_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    return (str(text).count("\n") + 1) * (width if isinstance(width, int) else len(str(width)))


def _size_of_format(text: Any, *_: Any, **__: Any) -> int:
    return MAX_SIZE + 1 if _WIDE.search(str(text)) else 0


def _size_of_count(_value: Any, count: Any, *_: Any, **__: Any) -> int:
    return int(count)


_PLANNED: dict[str, Callable[..., int]] = {
    "replace": _size_of_replace,
    "join": lambda items, separator="", *_, **__: _size_of_join(separator, items),
    "indent": _size_of_indent,
    "format": _size_of_format,
    "center": _size_of_count,
    "batch": _size_of_count,
    "slice": _size_of_count,
}
"""Filters that can make much out of little, with what they are about to make."""


def _guarded(name: str) -> Callable[..., Any]:
    """jinja2's own filter, refused where it would make too much."""
    original, planned = FILTERS[name], _PLANNED[name]
    if name not in ("replace", "join"):

        def plain(value: Any, *args: Any, **kwargs: Any) -> Any:
            _check_planned(planned(value, *args, **kwargs))
            return original(value, *args, **kwargs)

        return plain

    @pass_eval_context
    def with_context(context: nodes.EvalContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_planned(planned(value, *args, **kwargs))
        return original(context, value, *args, **kwargs)

    return with_context


class ChatSandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates are compiled in and run in."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        """As `transformers` sets it up, with the meters in place."""
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters |= {name: _guarded(name) for name in _PLANNED}
        self.filters |= {"tojson": _tojson, "penstock_metered": _metered, "penstock_measured": _measured}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Python of a template: every loop, concatenation and filter goes through its meter."""
        for loop in list(source.find_all(nodes.For)):
            loop.iter = self._through("penstock_metered", loop.iter)
        _replace(source, nodes.Concat, lambda node: self._through("penstock_measured", node))
        _replace(source, nodes.Filter, self._measure_filter)
        return super()._generate(source, *args, **kwargs)

    def _measure_filter(self, node: nodes.Filter) -> nodes.Expr:
        return node if node.name.startswith("penstock_") else self._through("penstock_measured", node)

    def _through(self, name: str, node: Any) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self)
        return made

    def wrap_str_format(self, value: Any) -> Any:
        """`text.format`, which jinja2 confines, refused where the text names a huge width."""
        text = getattr(value, "__self__", None)
        if isinstance(text, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _check_planned(_size_of_format(text))
        return super().wrap_str_format(value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja2's own
        """A call from a template: one step; neither its numbers nor its result may be huge."""
        current.get().spend(1)
        for value in (*args, *kwargs.values()):
            if isinstance(value, int | float):
                _check_planned(int(abs(value)))
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str) and args and name == "replace":
            _check_planned(_size_of_replace(text, *args))
        elif isinstance(text, str) and args and name == "join":
            _check_planned(_size_of_join(text, args[0]))
        return check_size(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation from a template, refused before it is done where its result would be huge."""
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    _check_planned(len(value) * times)
        elif operator == "**":
            _check_planned(int(abs(right)) * int(max(1, abs(left))).bit_length() << 14)
        elif operator == "%" and isinstance(left, str):
            _check_planned(_size_of_format(left))
        return check_size(super().call_binop(context, operator, left, right))


def _replace(root: nodes.Node, kind: type[Any], change: Callable[[Any], nodes.Expr]) -> None:
    """Put `change(node)` in the place of every node of a kind, children before parents."""

    def changed(node: nodes.Node) -> nodes.Node:
        _replace(node, kind, change)
        return change(node) if isinstance(node, kind) else node

    for name, value in list(root.iter_fields()):
        if isinstance(value, list):
            value[:] = [changed(item) if isinstance(item, nodes.Node) else item for item in value]
        elif isinstance(value, nodes.Node):
            setattr(root, name, changed(value))
