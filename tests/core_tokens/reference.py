"""What `transformers` makes of a case: the reference, which needs no model and no torch."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .cases import NOW
from .families import BEGIN, config, template


def reference(family: str, case: dict[str, Any]) -> dict[str, str]:
    """`{"text": ...}`, or `{"error": ...}` with the name of what it raises."""
    from transformers.utils import chat_template_utils

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return NOW

    real, chat_template_utils.datetime = chat_template_utils.datetime, Frozen
    special = {key: value for key, value in config(family).items() if key.endswith("_token")}
    assert family == "chatml" or special["bos_token"] == BEGIN[family]
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[case["messages"]],
            tools=case.get("tools"),
            documents=case.get("documents"),
            chat_template=template(family),
            continue_final_message=case.get("continue_final_message", False),
            add_generation_prompt=case["add_generation_prompt"],
            **{**special, **case.get("arguments", {})},
        )
    except Exception as problem:
        return {"error": type(problem).__name__}
    finally:
        chat_template_utils.datetime = real
    return {"text": rendered[0]}
