"""The engine's HTTP surface: which path does what, in vLLM's words.

Every handler answers at once or leaves the exchange with a reply that the driver feeds. Errors have vLLM's form:
`{"error": {"message", "type", "param", "code"}}`.
"""

import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from penstock.core.engine import Finished
from penstock.core.tokens.builtin import VOCABULARY, decode, encode, render_chat, word
from penstock.core.wire import WireError, decode_remote_blocks, openai, wants_decode_leg, wants_prefill_leg
from penstock.core.wire.openai import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    LoadAdapterRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)
from penstock.workers.decisions.simulated.faults import Faults, parse_faults
from penstock.workers.decisions.simulated.requests import (
    EngineShape,
    Generation,
    RequestError,
    plan_chat,
    plan_completion,
)
from penstock.workers.shell.simulated.driver import Driver, Live
from penstock.workers.shell.simulated.http import TEXT, Exchange, Request, Server
from penstock.workers.shell.simulated.kv_events import EventPublisher
from penstock.workers.shell.simulated.options import VERSION, Options
from penstock.workers.shell.simulated.replies import Reply, StreamReply, WholeReply
from penstock.workers.shell.simulated.transfer import KvTransfer

log = logging.getLogger(__name__)

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Route = Callable[[Request, Exchange], None]

_completion = msgspec.json.Decoder(CompletionRequest)
_chat = msgspec.json.Decoder(ChatRequest)


class App:
    """One engine's endpoints. Construct, then give `handle` to the server."""

    def __init__(
        self,
        options: Options,
        driver: Driver,
        events: EventPublisher | None,
        transfer: KvTransfer | None,
        die: Callable[[str], None],
    ) -> None:
        """`die` ends the process as an assertion inside the engine would."""
        self.server: Server | None = None
        self._options = options
        self._driver = driver
        self._events = events
        self._transfer = transfer
        self._die = die
        self._created = int(time.time())
        self._adapters: dict[str, str] = {}
        self._sleep_level: int | None = None
        self._routes = self._table()
        driver.on_finished = self._finished
        driver.metrics.set("engine_sleep_state", 1, "awake")

    def _table(self) -> dict[str, dict[str, Route]]:
        table: dict[str, dict[str, Route]] = {
            "/health": {"GET": self._empty},
            "/ping": {"GET": self._empty, "POST": self._empty},
            "/version": {"GET": lambda _, x: _json(x, {"version": VERSION})},
            "/load": {"GET": lambda _, x: _json(x, {"server_load": self._driver.requests})},
            "/metrics": {"GET": self._metrics},
            "/v1/models": {"GET": self._models},
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat_completions},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/kv_event_sources": {"GET": self._kv_event_sources},
        }
        if self._options.runtime_lora:
            table["/v1/load_lora_adapter"] = {"POST": self._load_adapter}
            table["/v1/unload_lora_adapter"] = {"POST": self._unload_adapter}
        if self._options.dev_mode:
            table |= {
                "/sleep": {"POST": self._sleep},
                "/wake_up": {"POST": self._wake_up},
                "/is_sleeping": {"GET": lambda _, x: _json(x, {"is_sleeping": self._sleep_level is not None})},
                "/pause": {"POST": self._pause},
                "/resume": {"POST": self._resume},
                "/is_paused": {"GET": lambda _, x: _json(x, {"is_paused": self._driver.paused})},
                "/reset_prefix_cache": {"POST": self._reset_prefix_cache},
            }
        if self._options.enable_faults:
            table["/faults"] = {"GET": self._get_faults, "POST": self._set_faults}
        return table

    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer one request."""
        methods = self._routes.get(request.path)
        if methods is None:
            return _error(exchange, RequestError("Not Found", status=404, kind="NotFoundError"))
        route = methods.get(request.method)
        if route is None:
            refusal = RequestError("Method Not Allowed", status=405, kind="MethodNotAllowedError")
            return _error(exchange, refusal)
        try:
            return route(request, exchange)
        except RequestError as error:
            return _error(exchange, error)
        except msgspec.DecodeError as error:
            # A body that is no JSON, or whose fields have other types than OpenAI's.
            return _error(exchange, RequestError(f"{error}"))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            body = openai.error_body("Internal Server Error", "InternalServerError", 500)
            return exchange.respond(500, body)

    def _metrics(self, request: Request, exchange: Exchange) -> None:
        if self._driver.faults.no_metrics:
            raise RequestError("metrics are switched off by a fault", status=503, kind="ServiceUnavailableError")
        exchange.respond(200, self._driver.page(), METRICS_TYPE)

    # Generation.

    def _completions(self, request: Request, exchange: Exchange) -> None:
        body = _completion.decode(request.body)
        self._generate(request, exchange, body, plan_completion(body, self._shape()), chat=False)

    def _chat_completions(self, request: Request, exchange: Exchange) -> None:
        body = _chat.decode(request.body)
        self._generate(request, exchange, body, plan_chat(body, self._shape()), chat=True)

    def _shape(self) -> EngineShape:
        options = self._options
        return EngineShape(
            options.names,
            options.max_model_len,
            options.default_max_tokens,
            options.mean_output_tokens,
            self._adapters,
        )

    def _generate(
        self, request: Request, exchange: Exchange, body: GenerationRequest, plan: Generation, *, chat: bool
    ) -> None:
        lease, remote = self._legs(body.kv_transfer_params, plan)
        reply = self._reply(request, exchange, body, plan, chat=chat)
        if remote is not None and self._transfer is not None:
            for index in range(len(plan.choices)):
                self._transfer.expect(reply.sequence(index), remote)
            reply.hit_elsewhere = remote.remote_prefill_cached_tokens
        self._driver.submit(
            reply,
            priority=body.priority,
            salt=body.cache_salt,
            lease_s=lease,
            remote_tokens=None if remote is None else remote.remote_num_tokens or plan.prompt_tokens,
        )

    def _legs(self, params: Any, plan: Generation) -> tuple[float | None, Any]:
        """Lease of a prefill leg, source of a decode leg. Without a connector the parameters mean nothing."""
        if self._transfer is None or params is None:
            return None, None
        if wants_prefill_leg(params):
            return self._transfer.lease_s, None
        if not wants_decode_leg(params):
            return None, None
        try:
            remote = decode_remote_blocks(params)
        except WireError as error:
            # A real engine asserts here and dies; whoever lets clients send these fields is to find out.
            self._die(f"kv_transfer_params broke an assertion: {error}")
            raise RequestError("the engine has died", status=500, kind="InternalServerError") from error
        if any(len(choice.prompt) != (remote.remote_num_tokens or len(choice.prompt)) for choice in plan.choices):
            self._die("the decode leg's prompt is not the prefill leg's")
            raise RequestError("the engine has died", status=500, kind="InternalServerError")
        return None, remote

    def _reply(
        self, request: Request, exchange: Exchange, body: GenerationRequest, plan: Generation, *, chat: bool
    ) -> Reply:
        asked = request.headers.get(b"x-request-id", b"").decode("latin-1") or body.request_id or uuid.uuid4().hex
        name = f"{'chatcmpl' if chat else 'cmpl'}-{asked}"
        details = self._options.prompt_tokens_details
        continues = isinstance(body, ChatRequest) and body.continue_final_message
        if not body.stream:
            return WholeReply(exchange, plan, name, chat=chat, details=details, continues=continues)
        wanted = body.stream_options or openai.StreamOptions()
        return StreamReply(
            exchange,
            plan,
            name,
            chat=chat,
            details=details,
            usage=wanted.include_usage or self._options.force_include_usage,
            continuous=wanted.include_usage and wanted.continuous_usage_stats,
            continues=continues,
        )

    def _finished(self, name: str, live: Live, end: Finished) -> None:
        if self._transfer is not None:
            blocks = self._transfer.finished(name, end)
            live.reply.transfer_params = msgspec.to_builtins(blocks)

    # What the engine is.

    def _empty(self, request: Request, exchange: Exchange) -> None:
        exchange.respond(200)

    def _models(self, request: Request, exchange: Exchange) -> None:
        options = self._options
        base = options.names[0]
        length = options.max_model_len
        cards = [
            openai.ModelCard(id=name, created=self._created, root=base, max_model_len=length) for name in options.names
        ]
        cards += [
            openai.ModelCard(id=name, created=self._created, root=path, parent=base)
            for name, path in self._adapters.items()
        ]
        exchange.respond(200, msgspec.json.encode(openai.ModelList(data=cards)))

    def _tokenize(self, request: Request, exchange: Exchange) -> None:
        body = msgspec.json.decode(request.body, type=TokenizeRequest)
        if body.messages is not None:
            text = render_chat(body.messages, add_generation_prompt=body.add_generation_prompt, continue_final=False)
        elif body.prompt is not None:
            text = body.prompt
        else:
            raise RequestError("give prompt or messages", param="prompt")
        tokens = encode(text)
        strings = list(map(word, tokens)) if body.return_token_strs else None
        length = self._options.max_model_len
        _json(exchange, {"count": len(tokens), "max_model_len": length, "tokens": tokens, "token_strs": strings})

    def _detokenize(self, request: Request, exchange: Exchange) -> None:
        tokens = msgspec.json.decode(request.body, type=DetokenizeRequest).tokens
        wrong = [token for token in tokens if not 0 <= token < VOCABULARY]
        if wrong:
            raise RequestError(f"Token id {wrong[0]} is out of vocabulary", param="tokens")
        _json(exchange, {"prompt": decode(tokens)})

    def _kv_event_sources(self, request: Request, exchange: Exchange) -> None:
        _json(exchange, {} if self._events is None else {"0": self._events.source})

    # Adapters.

    def _load_adapter(self, request: Request, exchange: Exchange) -> None:
        body = msgspec.json.decode(request.body, type=LoadAdapterRequest)
        name, path = body.lora_name, body.lora_path
        if not name or not path:
            raise RequestError("Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
        if name in self._adapters and not body.load_inplace:
            message = f"The lora adapter '{name}' has already been loaded."
            raise RequestError(message, kind="InvalidUserInput")
        if path.startswith("/") and not Path(path).exists():
            raise RequestError(f"No adapter found for {name} at {path}", status=404, kind="NotFoundError")
        self._adapters[name] = path
        exchange.respond(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), TEXT)

    def _unload_adapter(self, request: Request, exchange: Exchange) -> None:
        name = msgspec.json.decode(request.body, type=UnloadAdapterRequest).lora_name
        if not name:
            raise RequestError("'lora_name' must be provided.", kind="InvalidUserInput")
        if self._adapters.pop(name, None) is None:
            raise RequestError(f"The lora adapter '{name}' cannot be found.", status=404, kind="NotFoundError")
        exchange.respond(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), TEXT)

    # Sleep, pause, faults.

    def _sleep(self, request: Request, exchange: Exchange) -> None:
        level = request.query.get("level", "1")
        if level not in ("1", "2"):
            raise RequestError(f"sleep level must be 1 or 2, not {level}", param="level")
        self._driver.pause(True)
        self._driver.reset_prefix_cache()
        self._set_sleep(int(level))
        exchange.respond(200)

    def _wake_up(self, request: Request, exchange: Exchange) -> None:
        self._set_sleep(None)
        self._driver.pause(False)
        exchange.respond(200)

    def _set_sleep(self, level: int | None) -> None:
        self._sleep_level = level
        for state, on in (("awake", None), ("weights_offloaded", 1), ("discard_all", 2)):
            self._driver.metrics.set("engine_sleep_state", float(level == on), state)

    def _pause(self, request: Request, exchange: Exchange) -> None:
        self._driver.pause(True)
        exchange.respond(200)

    def _resume(self, request: Request, exchange: Exchange) -> None:
        self._driver.pause(self._sleep_level is not None)
        exchange.respond(200)

    def _reset_prefix_cache(self, request: Request, exchange: Exchange) -> None:
        self._driver.reset_prefix_cache()
        exchange.respond(200)

    def _get_faults(self, request: Request, exchange: Exchange) -> None:
        _json(exchange, msgspec.to_builtins(self._driver.faults))

    def _set_faults(self, request: Request, exchange: Exchange) -> None:
        try:
            faults = parse_faults(request.body.decode("utf-8", "replace"), self._driver.faults)
        except WireError as error:
            raise RequestError(str(error)) from error
        log.warning("faults are now %s", faults)
        _json(exchange, msgspec.to_builtins(faults))
        self.apply_faults(faults)

    def apply_faults(self, faults: Faults) -> None:
        """Go wrong as told; a hang freezes HTTP as well."""
        self._driver.set_faults(faults)
        if self.server is not None:
            self.server.frozen = faults.hang


def _json(exchange: Exchange, value: Any) -> None:
    exchange.respond(200, msgspec.json.encode(value))


def _error(exchange: Exchange, error: RequestError) -> None:
    exchange.respond(error.status, openai.error_body(error.message, error.kind, error.status, error.param))
