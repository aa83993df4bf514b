"""Chat templates give the reference's text, character for character, in every family's style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.core.tokens.errors import ModelFilesError, PromptError, TokensUnknown
from penstock.core.tokens.files import read_files
from penstock.core.tokens.sandbox import ChatSandbox
from penstock.core.tokens.templates import MAX_TEMPLATE, ChatInput, ChatTemplate, detect_content_format

from .cases import CASES, LOOKUP, NOW, PLAIN
from .families import FAMILIES, files
from .reference import reference

GOLDEN = Path(__file__).parent / "golden"
PAIRS = [(family, name) for family in FAMILIES for name in CASES]


def chat(case: dict[str, Any]) -> ChatInput:
    return ChatInput(
        case["messages"],
        case.get("tools"),
        case.get("documents"),
        case["add_generation_prompt"],
        case.get("continue_final_message", False),
        case.get("arguments", {}),
    )


def template(family: str) -> ChatTemplate:
    known = read_files(files(family))
    return ChatTemplate(known.templates["default"], known.special_tokens)


def rendered(family: str, case: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": template(family).render(chat(case), NOW)}
    except PromptError:
        return {"error": "TemplateError"}
    except TokensUnknown:
        return {"error": "TypeError"}


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_text_equals_the_golden_text(family: str, name: str) -> None:
    golden = json.loads((GOLDEN / f"{family}.json").read_text())
    assert rendered(family, CASES[name]) == golden[name]


def test_the_golden_files_hold_every_case_and_mostly_texts() -> None:
    for family in FAMILIES:
        golden = json.loads((GOLDEN / f"{family}.json").read_text())
        assert set(golden) == set(CASES)
        assert sum("text" in answer for answer in golden.values()) >= 17


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_the_golden_text_is_what_the_reference_says_today(family: str, name: str) -> None:
    pytest.importorskip("transformers")
    golden = json.loads((GOLDEN / f"{family}.json").read_text())
    assert reference(family, CASES[name]) == golden[name]


texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": texts})
call = st.builds(
    lambda arguments: {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00009", "function": {"arguments": arguments, "name": "f"}, "type": "function"}],
    },
    st.dictionaries(texts, values, max_size=3),
)
tool = st.builds(
    lambda parameters: {"type": "function", "function": {"name": "f", "description": None, "parameters": parameters}},
    st.dictionaries(texts, values, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.lists(turn | call, min_size=1, max_size=5),
    st.none() | st.lists(tool, max_size=2),
    st.sampled_from([(True, False), (False, False), (False, True)]),
)
def test_any_chat_gives_what_the_reference_gives(family, messages, tools, ending) -> None:
    pytest.importorskip("transformers")
    case = {
        "messages": messages,
        "tools": tools,
        "add_generation_prompt": ending[0],
        "continue_final_message": ending[1],
    }
    wanted = reference(family, case)
    got = rendered(family, case)
    # Which error is not compared: both refuse.
    assert got.get("text") == wanted.get("text")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% set rest = messages[1:] %}{% for m in rest %}{% for p in m.content | list %}{% endfor %}{% endfor %}",
            "openai",
        ),
        (
            "{% set a = messages %}{% set b = a %}{% for m in b %}{% for p in m.content[1:] %}{% endfor %}{% endfor %}",
            "openai",
        ),
        (
            "{% macro f(c) %}{% for p in c %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ f(m.content) }}{% endfor %}",
            "string",
        ),
        ("{% for t in tools %}{% for p in t.content %}{% endfor %}{% endfor %}", "string"),
    ],
)
def test_the_content_format_is_found_as_vllm_finds_it(text: str, wanted: str) -> None:
    assert detect_content_format(ChatSandbox().parse(text)) == wanted


def test_only_gemma_walks_through_parts() -> None:
    assert {family: template(family).content_format for family in FAMILIES} == {
        "llama3": "string",
        "chatml": "string",
        "mistral": "string",
        "gemma": "openai",
        "deepseek": "string",
    }


ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute filter": "{{ messages | attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "format through a filter": "{% set m = ['{0.__class__}'] | map('format', 1) | list %}{{ m[0].__class__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "change": "{{ messages.append({'role': 'x'}) }}",
    "change a message": "{{ messages[0].update({'role': 'x'}) }}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(name: str) -> None:
    messages = [dict(PLAIN[0])]
    try:
        text = ChatTemplate(ESCAPES[name], {}).render(ChatInput(messages), NOW)
    except (PromptError, TokensUnknown, ModelFilesError):
        text = ""
    assert text == "", f"the template saw {text[:80]!r}"
    assert messages == PLAIN


DOUBLING = "{%% set n = namespace(s='xx') %%}{%% for i in range(64) %%}{%% set n.s = %s %%}{%% endfor %%}"
BOMBS = {
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "repetition": "{{ 'x' * 99999999999 }}",
    "repetition of a list": "{{ ([0] * 999999999) | length }}",
    "doubling": DOUBLING % "n.s + n.s",
    "doubling by ~": DOUBLING % "n.s ~ n.s",
    "doubling by join": DOUBLING % "[n.s, n.s] | join",
    "replace": "{% set s = 'a' * 9999999 %}{{ s | replace('a', s) | length }}",
    "replace method": "{% set s = 'a' * 9999999 %}{{ s.replace('a', s) | length }}",
    "join method": "{% set s = 'a' * 9999999 %}{{ s.join(s) | length }}",
    "width": "{{ 'x' | center(999999999) | length }}",
    "width method": "{{ 'x'.ljust(999999999) | length }}",
    "width in a format": "{{ '%0999999999d' | format(1) | length }}",
    "width in a format method": "{{ '{:0999999999d}'.format(1) | length }}",
    "width by %": "{{ ('%999999999d' % 1) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "indent": "{{ ('\\n' * 9999999) | indent(9999) | length }}",
    "batch": "{{ [1] | batch(999999999, 0) | list | length }}",
    "output": "{% set s = 'x' * 9999999 %}{{ s }}{{ s }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_render_may_cost_is_bounded(name: str) -> None:
    with pytest.raises((TokensUnknown, PromptError)):
        ChatTemplate(BOMBS[name], {}).render(ChatInput(PLAIN), NOW)


def test_a_thousand_messages_with_tools_are_well_within_the_bounds() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 40} for i in range(1001)]
    for family in FAMILIES:
        assert template(family).render(ChatInput(messages, [LOOKUP] * 50), NOW).count("word") == 40 * 1001


def test_bad_templates_are_refused_when_loaded() -> None:
    with pytest.raises(ModelFilesError, match="not valid jinja2"):
        ChatTemplate("{% for m in messages %}", {})
    with pytest.raises(ModelFilesError, match="characters"):
        ChatTemplate("x" * (MAX_TEMPLATE + 1), {})


def test_the_templates_own_refusal_reaches_the_client() -> None:
    with pytest.raises(PromptError, match="take turns"):
        template("gemma").render(ChatInput([*PLAIN, *PLAIN]), NOW)


def test_both_endings_at_once_are_refused() -> None:
    with pytest.raises(PromptError, match="exclude each other"):
        template("chatml").render(ChatInput(PLAIN, continue_final_message=True), NOW)
