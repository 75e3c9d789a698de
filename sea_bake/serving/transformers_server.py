"""transformers' own server, given living models: its routes, streams and checks, and our two sides behind them."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

from sea_bake.errors import SeaBakeError, SettingError, first_line_of, reason_of
from sea_bake.model.sites import text_config
from sea_bake.serving.fields import ANSWER, CHAT, TEXT
from sea_bake.serving.living import Living
from sea_bake.serving.pair import BASE, EDITED, room_for
from sea_bake.serving.request import OPEN, check_text, checked, draws
from sea_bake.serving.streams import usage_apart
from sea_bake.serving.templates import PLAIN, check_template, in_full

try:
    import uvicorn
    from fastapi import HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, StreamingResponse
    from jinja2 import TemplateError
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from transformers import PreTrainedTokenizerBase
    from transformers.cli.serving import chat_completion, completion, model_manager, response, transcription, utils
    from transformers.cli.serving.server import build_server
except ImportError as error:
    raise SettingError(
        f"the server of this transformers cannot be used ({error}): pip install -U 'sea-bake[serve]' transformers"
    ) from error

# Settings of apply_chat_template that the server chooses itself; "documents" of a template are its variables.
_CHOSEN = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "load_audio_from_video"}
_CHOSEN -= {"documents", "kwargs"}
_ELSEWHERE = ("/load_model", "/v1/audio/transcriptions")  # routes of transformers' own that are not, or not as they are
_BODY = "the body of a request has to be one JSON object in UTF-8, with Content-Type application/json"
_GRACE = 2  # seconds for answers that are growing when the server ends


class Voice:
    """A side as the server sees a model: its attributes are the model's, and it generates at a strength."""

    def __init__(self, pair: Living, side: str, strength: float) -> None:
        self.pair, self.side, self.strength = pair, side, strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pair.any_model, name)

    def generate(self, **given: Any) -> Any:
        with self.pair.model(self.side, self.strength) as model:
            return model.generate(**given)


class Manager(model_manager.ModelManager):
    """Two models by name, loaded already: nothing else is loaded, and nothing is unloaded."""

    def __init__(self, pair: Living, alpha: float) -> None:
        super().__init__(model_timeout=-1)
        self.pair, self.alpha = pair, alpha
        self.tokenizer = pair.tokenizer
        if not getattr(self.tokenizer, "chat_template", None):
            self.tokenizer = copy.copy(self.tokenizer)
            self.tokenizer.chat_template = PLAIN

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    def load_model_and_processor(self, model_id_and_revision: str, *_: Any, **__: Any) -> tuple[Any, Any]:
        if model_id_and_revision not in self.pair.sides:
            known = " and ".join(self.pair.sides)
            reason = f" {self.pair.lacking}" if model_id_and_revision in (BASE, EDITED) else ""
            raise HTTPException(404, f"there is no model {model_id_and_revision!r} here: {known} are served.{reason}")
        return Voice(self.pair, model_id_and_revision, self.alpha), self.tokenizer

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        return [{"id": side, "object": "model", "created": 0, "owned_by": self.pair.name} for side in self.pair.sides]

    get_gen_models = list_models  # its name in earlier releases

    def shutdown(self) -> None:
        pass


class _Queue(utils.GenerateManager):
    """Answers one after the other: no conversation longer than the model can read, which would block all that wait."""

    def generate_streaming(self, model: Voice, processor: Any, inputs: Any, gen_config: Any, **more: Any) -> Any:
        _fit(model, inputs, gen_config)
        return super().generate_streaming(model, processor, inputs, gen_config, **more)

    async def generate_non_streaming(
        self, model: Voice, processor: Any, inputs: Any, gen_config: Any, **more: Any
    ) -> Any:
        _fit(model, inputs, gen_config)
        return await super().generate_non_streaming(model, processor, inputs, gen_config, **more)


def _fit(voice: Voice, inputs: Any, gen_config: Any) -> None:
    """Cut an answer where the model's positions end. Raises HTTPException where there is no room for any."""
    count = inputs["input_ids"].shape[-1]
    with _refusals():
        if not count:
            raise SettingError("the prompt is empty, and this tokenizer puts no token in front of one: say something")
        gen_config.max_new_tokens = room_for(count, voice.pair.positions, gen_config.max_new_tokens)


class _State(utils.GenerationState):
    """One queue for both sides: hooks change the one model that both may be."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = _Queue()

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        return self.queue


@contextmanager
def _refusals(what: str = "", *errors: type[Exception]) -> Iterator[None]:
    """Our refusals as the server's; and what its own code says of ``what`` it reads, where it reads nothing else."""
    try:
        yield
    except SeaBakeError as error:
        raise HTTPException(422, str(error)) from error
    except errors as error:
        raise HTTPException(422, f"{what} cannot be read ({type(error).__name__}: {reason_of(error)})") from error


def asked(handler: type[Any], route: str) -> type[Any]:
    """A handler of transformers that reads "alpha" too, and refuses what it cannot do with a sentence.

    Args:
        route: a key of ``fields.FIELDS``.
    """

    class Asked(handler):
        def _validate_request(self, body: dict[str, Any]) -> None:
            super()._validate_request({name: value for name, value in body.items() if name != "alpha"})

        def _resolve_model(self, body: dict[str, Any]) -> Any:
            self.model_manager.load_model_and_processor(str(body.get("model")))  # a name that is not there
            name, voice, processor = super()._resolve_model(body)
            alpha = body.pop("alpha", None)
            with _refusals():
                check_template(processor, body.get("tools"), body.get("chat_template_kwargs", ()))
                tokens = getattr(text_config(voice.pair.any_model), "vocab_size", math.inf)
                for token in body.get("logit_bias") or ():
                    if int(token) >= tokens:
                        raise SettingError(f"logit_bias names the token {token}, and the model has {tokens}, from 0 on")
                if alpha is None:
                    return name, voice, processor
                if name == BASE:
                    raise SettingError("alpha is the strength of the edit: it belongs to the model 'edited'")
                if isinstance(alpha, bool) or not isinstance(alpha, int | float):
                    raise SettingError(f"alpha = {alpha!r:.40} is no number")
                voice.pair.check(name, alpha)
            return name, Voice(voice.pair, name, float(alpha)), processor

        @staticmethod
        def get_processor_inputs_from_messages(messages: Any, modality: Any) -> Any:
            with _refusals("messages", KeyError, TypeError, AttributeError, ValueError):
                return in_full(lambda some: handler.get_processor_inputs_from_messages(some, modality), messages)

        @staticmethod
        def _normalize_input(body: dict[str, Any]) -> Any:
            with _refusals("input", KeyError, TypeError, AttributeError, ValueError):
                return handler._normalize_input(body)

        def _build_generation_config(self, body: dict[str, Any], *given: Any, **more: Any) -> Any:
            plain = {name: value for name, value in body.items() if name not in ("generation_config", "logit_bias")}
            with _refusals("generation_config", TypeError, ValueError):
                config = super()._build_generation_config(body | {"logit_bias": None}, *given, **more)
            if config.max_new_tokens is None:
                config.max_new_tokens = super()._build_generation_config(plain, *given, **more).max_new_tokens
            if body.get("logit_bias"):
                config.sequence_bias = {(int(token),): float(bias) for token, bias in body["logit_bias"].items()}
            if draws(body):
                config.do_sample = True  # or what is asked for would have no say
            return config

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            with _refusals():
                body = checked(body, route, rendering=_CHOSEN)
            body.setdefault("stream", False)  # OpenAI's default; transformers streams what /v1/responses answers
            apart = body.pop("stream_options", None) is not None
            if not body.get("stop", True):
                del body["stop"]  # empty: as without it
            try:
                answer = await super().handle_request(body, request_id)
                if apart and body["stream"]:
                    answer.body_iterator = usage_apart(answer.body_iterator)
                return answer
            except TemplateError as error:
                reason = first_line_of(error)
                raise HTTPException(422, f"the chat template refuses these messages: {reason}") from error
            except (TypeError, ValueError) as error:
                held = [name for name in OPEN if body.get(name) is not None]
                if not held:  # our fault, or transformers': no 4xx
                    raise
                raise HTTPException(
                    422, f"this cannot be answered with {' and '.join(held)} as given: {first_line_of(error)}"
                ) from error

    return Asked


def application(pair: Living, *, alpha: float = 1.0, hosts: Sequence[str] = ()) -> Any:
    """The ASGI application: transformers' routes, for those who call it by one of these names."""
    if EDITED in pair.sides:
        pair.check(EDITED, alpha)
    manager, state = Manager(pair, alpha), _State()
    handlers = {
        "chat_handler": asked(chat_completion.ChatCompletionHandler, CHAT),
        "completion_handler": asked(completion.CompletionHandler, TEXT),
        "response_handler": asked(response.ResponseHandler, ANSWER),
        "transcription_handler": transcription.TranscriptionHandler,
    }
    made = {name: handler(manager, state) for name, handler in handlers.items()}
    if "systemone_handler" in inspect.signature(build_server).parameters:
        from transformers.cli.serving.systemone import SystemOneHandler

        class Decisions(SystemOneHandler):
            async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
                with _refusals():
                    check_text(body)
                return await super().handle_request(body, request_id)

        made["systemone_handler"] = Decisions(manager, state)
    app = build_server(manager, generation_state=state, **made)
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") not in _ELSEWHERE]

    @app.post("/load_model")
    async def load_model(body: dict[str, Any]) -> StreamingResponse:
        """What ``transformers chat`` asks for first: it is loaded already."""
        name = str(body.get("model"))
        manager.load_model_and_processor(name)
        return StreamingResponse(manager.load_model_streaming(name), media_type="text/event-stream")

    @app.exception_handler(AnyHTTPException)
    async def refused(_request: Any, error: AnyHTTPException) -> JSONResponse:
        unreadable = error.status_code == 400 and "parsing the body" in str(error.detail)  # no UTF-8, or too deep
        return _told(error.status_code, f"{_BODY}: {error.detail}" if unreadable else str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def unread(_request: Any, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(str(one.get("ctx", {}).get("error", one["msg"])) for one in error.errors())
        return _told(400, f"{_BODY}: {said}")

    @app.exception_handler(Exception)
    async def failed(_request: Any, error: Exception) -> JSONResponse:
        """Its traceback follows in the terminal of the server, which ends the connection: nobody is to use it again."""
        told = _told(500, f"the server failed, see its terminal: {first_line_of(error)}", "server_error")
        told.headers["Connection"] = "close"
        return told

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


def _told(code: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
    """As OpenAI's client reads it, so that its users do."""
    told = {"message": message.encode("utf-8", "backslashreplace").decode(), "type": kind, "code": None}
    return JSONResponse({"error": told}, code)


@contextmanager
def served(pair: Living, place: socket.socket, *, alpha: float = 1.0, hosts: Sequence[str] = ()) -> Iterator[str]:
    """Serve while the block runs; gives the address that clients take as their base URL."""
    app = application(pair, alpha=alpha, hosts=hosts)
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=_GRACE)
    server = uvicorn.Server(config)
    thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[place])), daemon=True)
    thread.start()
    host, port = place.getsockname()[:2]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(2 * _GRACE)
