"""OpenAI's forms: what requests may look like, and that chunks are what a client's parser expects."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.core.wire.openai import (
    ChatMessage,
    ChatRequest,
    ChunkWriter,
    CompletionRequest,
    PromptTokensDetails,
    Usage,
    error_body,
)


@pytest.mark.parametrize("prompt", ["text", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_a_prompt_has_four_forms(prompt):
    body = json.dumps({"model": "m", "prompt": prompt, "something_new": {"x": 1}}).encode()
    assert msgspec.json.decode(body, type=CompletionRequest).prompt == prompt


def test_content_parts_are_text():
    body = b'{"messages":[{"role":"user","content":[{"type":"text","text":"a b"},{"type":"image_url"}]}]}'
    request = msgspec.json.decode(body, type=ChatRequest)
    assert request.messages[0].text() == "a b"
    assert ChatMessage("assistant", None).text() == ""


@pytest.mark.parametrize("field", ["n", "stream", "max_tokens", "stop", "seed", "stream_options"])
def test_null_is_as_good_as_absent(field):
    request = msgspec.json.decode(json.dumps({"prompt": "x", field: None}), type=CompletionRequest)
    assert getattr(request, field) is None


def test_an_error_has_vllms_form():
    error = json.loads(error_body("no such model", "NotFoundError", 404, "model"))
    assert error == {"error": {"message": "no such model", "type": "NotFoundError", "param": "model", "code": 404}}


def events(data: bytes) -> list[dict]:
    """Parse a stream as a client does."""
    return [json.loads(line[6:]) for line in data.decode().split("\n\n") if line]


@given(st.text(), st.text(max_size=20), st.text(max_size=20))
def test_text_chunks_survive_any_text(text, name, model):
    writer = ChunkWriter(name, 5, model, chat=False, usage=True)
    (chunk,) = events(writer.text(1, text, "length", None))
    assert chunk == {
        "id": name,
        "object": "text_completion",
        "created": 5,
        "model": model,
        "choices": [{"index": 1, "text": text, "logprobs": None, "finish_reason": "length", "stop_reason": None}],
        "usage": None,
    }


def test_a_chats_chunks():
    writer = ChunkWriter("id", 5, "m", chat=True, usage=False)
    opening, text = events(writer.opening(0) + writer.text(0, "hi"))
    assert opening["object"] == "chat.completion.chunk"
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"][0]["delta"] == {"content": "hi"}
    assert text["choices"][0]["finish_reason"] is None
    assert "usage" not in text


def test_the_usage_chunk_has_no_choices():
    writer = ChunkWriter("id", 5, "m", chat=True, usage=True)
    (chunk,) = events(writer.usage(Usage(3, 5, 2, PromptTokensDetails(1))))
    assert chunk["choices"] == []
    assert chunk["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 5,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
