"""An engine's own `/tokenize`: what to ask where a model's files are not here, and what files are checked against."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
from penstock.core.tokens.errors import PromptError, TokensUnknown
from penstock.core.tokens.requests import ChatPrompt, PromptRequest

_MOST_BYTES = 16 << 20
_AT_ONCE = 32
_MOST_TEXTS = 4
"""Texts of one batch that are worth asking for."""


class NoEngine(TokensUnknown):
    """No engine answered `/tokenize` in time."""

    reason = "NoEngine"


class _Answer(msgspec.Struct):
    tokens: list[int]


_answers = msgspec.json.Decoder(_Answer)


class EngineTokenizer:
    """Asks engines for tokens: at most two of them, one after the other, within one time-out each."""

    def __init__(self, client: httpx.AsyncClient, timeout: float) -> None:
        """`timeout` in seconds, for a whole answer."""
        self._client = client
        self._timeout = timeout
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def ids(self, engines: Sequence[str], request: PromptRequest) -> list[list[int]]:
        """Token ids of each of a request's prompts. `engines` are base URLs.

        Raises `PromptError` where an engine refuses the prompt, `TokensUnknown` where none can tell.
        """
        if request.keep is not None:
            raise TokensUnknown("engines are not asked for prompts that are cut")
        if isinstance(request.prompt, ChatPrompt):
            return [await self._one(engines, _chat_body(request, request.prompt))]
        if sum(isinstance(prompt, str) for prompt in request.prompt) > _MOST_TEXTS:
            raise TokensUnknown(f"engines are not asked for more than {_MOST_TEXTS} texts at once")
        return [
            await self._one(engines, _text_body(request, prompt)) if isinstance(prompt, str) else prompt
            for prompt in request.prompt
        ]

    async def _one(self, engines: Sequence[str], body: bytes) -> list[int]:
        said = "there is no ready engine to ask"
        for engine in engines[:2]:
            try:
                async with self._gate, asyncio.timeout(self._timeout):
                    status, content = await self._post(engine, body)
            except (TimeoutError, httpx.HTTPError) as problem:
                said = f"{engine}/tokenize: {problem!r}"
                continue
            if status == 200:
                return _ids(content)
            said = f"{engine}/tokenize answered {status}"
            if status in (400, 422):
                raise PromptError(f"the engine refuses the prompt: {content[:500].decode('utf-8', 'replace')}")
        raise NoEngine(said)

    async def _post(self, engine: str, body: bytes) -> tuple[int, bytes]:
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", f"{engine}/tokenize", content=body, headers=headers) as response:
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise httpx.DecodingError(f"the answer has more than {_MOST_BYTES} bytes")
            return response.status_code, bytes(content)


def _ids(content: bytes) -> list[int]:
    try:
        return _answers.decode(content).tokens
    except msgspec.MsgspecError as problem:
        raise NoEngine(f"the engine's answer to /tokenize is not one: {problem}") from problem


def _text_body(request: PromptRequest, prompt: str) -> bytes:
    body = {"model": request.model, "prompt": prompt, "add_special_tokens": request.special}
    return msgspec.json.encode(body)


def _chat_body(request: PromptRequest, chat: ChatPrompt) -> bytes:
    arguments: dict[str, Any] = dict(chat.arguments)
    if chat.documents is not None:
        # `/tokenize` has no documents of its own; the template finds them all the same.
        arguments["documents"] = chat.documents
    body: dict[str, Any] = {
        "model": request.model,
        "messages": chat.messages,
        "add_generation_prompt": chat.add_generation_prompt,
        "continue_final_message": chat.continue_final_message,
        "add_special_tokens": request.special,
    }
    if chat.tools is not None:
        body["tools"] = chat.tools
    if arguments:
        body["chat_template_kwargs"] = arguments
    return msgspec.json.encode(body)
