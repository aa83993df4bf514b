"""The chats every family's template is tried with, as a template is given them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

NOW = datetime(2026, 3, 1, 12, 30, 5)

LOOKUP = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Weather of a city: <b>today</b> & the next days, 'as is'",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Ort, z. B. Zürich"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
BARE = {"type": "function", "function": {"name": "now", "description": None, "parameters": None}}
PLAIN = [{"role": "user", "content": "Which worker holds it?"}]
SYSTEM = [{"role": "system", "content": "  Be brief.\n"}, *PLAIN]
TURNS = [
    *SYSTEM,
    {"role": "assistant", "content": " The first. "},
    {"role": "user", "content": "And <now> & then?\n\n"},
]
CALL = {
    "id": "call00001",
    "function": {"arguments": {"city": "Zürich", "days": 3}, "name": "lookup"},
    "type": "function",
}
CALLED = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "clear", "°C": 21}', "tool_call_id": "call00001"},
]
THOUGHT = [
    *PLAIN,
    {"role": "assistant", "content": "Mine.", "reasoning": "\nhm\n", "reasoning_content": "\nhm\n"},
]
OPEN = [*PLAIN, {"role": "assistant", "content": "The one that  "}]
UNICODE = [{"role": "user", "content": "東京 の 天気は? 🙂 \u00a0привет\r\n\ttab {{ bos_token }} {% raw %}"}]
DOCUMENTS = [{"title": "Gates", "text": "A gate meters."}, {"title": "Turbines", "text": "It turns."}]


def case(messages: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    return {"messages": messages, "add_generation_prompt": True, **others}


CASES: dict[str, dict[str, Any]] = {
    "plain": case(PLAIN),
    "no-generation-prompt": case(PLAIN, add_generation_prompt=False),
    "system": case(SYSTEM),
    "turns": case(TURNS),
    "unicode": case(UNICODE),
    "tools": case(PLAIN, tools=[LOOKUP]),
    "tools-and-system": case(SYSTEM, tools=[LOOKUP, BARE]),
    "no-tools-but-a-list": case(PLAIN, tools=[]),
    "called": case(CALLED, tools=[LOOKUP]),
    "called-then-answered": case(
        [*CALLED, {"role": "assistant", "content": "Clear."}, {"role": "user", "content": "Thanks"}], tools=[LOOKUP]
    ),
    "two-calls": case([CALLED[0], {**CALLED[1], "tool_calls": [CALL, {**CALL, "id": "call00002"}]}], tools=[LOOKUP]),
    "thought": case(THOUGHT),
    "thinking-off": case(PLAIN, arguments={"enable_thinking": False, "thinking": True}),
    "date": case(PLAIN, arguments={"date_string": "1 Jan 1970"}),
    "documents": case(PLAIN, documents=DOCUMENTS),
    "continued": case(OPEN, add_generation_prompt=False, continue_final_message=True),
    "continued-without-space": case(
        [*PLAIN, {"role": "assistant", "content": "It"}], add_generation_prompt=False, continue_final_message=True
    ),
    "parts": case([{"role": "user", "content": [{"type": "text", "text": " one"}, {"type": "text", "text": "two "}]}]),
    "own-bos": case(PLAIN, arguments={"bos_token": "<mine>"}),
    "out-of-turn": case([*PLAIN, *PLAIN]),
    "unknown-role": case([{"role": "narrator", "content": "Meanwhile"}]),
}
