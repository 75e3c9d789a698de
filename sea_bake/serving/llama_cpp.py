"""Both sides of a GGUF in llama.cpp: its own server on loopback, spoken to with the client of OpenAI."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.activations.rendering import rendered
from sea_bake.errors import CheckpointError, SettingError, first_line_of, need
from sea_bake.exporting.gguf.layout import layout_of
from sea_bake.io import interrupts
from sea_bake.serving.llama_cpp_server import Server
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply, Say, Turns, room_for, tokens_of
from sea_bake.serving.sampling import Sampling

CURE = (
    "Install it (pip install xllamacpp, or llama.cpp with its llama-server on the PATH), or run the file in "
    "transformers: --runtime transformers"
)
_STARTING = 120.0  # seconds for a server to read its weights
# Tokens of a conversation, where the model reads more: their cache is taken from memory at the start, for each side (of
# an 8B model of Llama's shape 128 KiB a token, so 2 GiB).
LONGEST = 1 << 14
_SEEDS = 2**32 - 1  # llama.cpp has 32 bits for one, and draws a seed of its own for the largest
# Every token may be drawn, as in the other runtimes; llama.cpp has defaults of its own.
_PLAIN = {"top_k": 0, "min_p": 0, "typical_p": 1, "repeat_penalty": 1}


def installed() -> str | None:
    """What there is of llama.cpp: "xllamacpp" (a wheel of it), the path of llama-server, or None."""
    if importlib.util.find_spec("xllamacpp") is not None:
        return "xllamacpp"
    return shutil.which("llama-server")


class LlamaCpp(Pair):
    """A GGUF, and the one that it was made from; or a LoRA on that one, whose strength is free.

    Args:
        edited: the file; None of a base alone.
        base: the base's own file, if there is one.
        lora: whether the edited one is an adapter, which needs the base.

    Raises:
        SettingError: llama.cpp is not there; prompts that the file's chat template does not render so.
        CheckpointError: it cannot load a file.
        MissingExtraError: nor is the client that speaks to it.
    """

    runtime = "llama.cpp"

    def __init__(
        self,
        edited: Path | None,
        base: Path | None,
        *,
        lora: bool = False,
        form: PromptFormat | None = None,
        lacking: str = "",
    ) -> None:
        if installed() is None:
            raise SettingError(f"a GGUF runs in llama.cpp, which is not installed here. {CURE}")
        need("serve", "Talking to llama.cpp", "openai")
        one = edited or base
        assert one is not None
        self.name, self.lacking, self.form, self.lora = one.name, lacking, form or PromptFormat(), lora
        self.how = None if edited is None else "gguf"
        self.sides = tuple(side for side, file in ((BASE, base), (EDITED, edited)) if file is not None)
        self._files = {BASE: base, EDITED: edited}
        if not lora:
            self.fixed = (
                f"the edit is in the weights of {self.name}, so its strength is fixed: export it with --lora, and "
                "llama.cpp can change it"
            )
        self._stack = contextlib.ExitStack()
        self._servers: dict[str, Server] = {}
        try:
            self.check_format(self.form)
        except BaseException:
            self.close()
            raise

    def _server(self, side: str) -> Server:
        key = BASE if self.lora else side
        if key not in self._servers:
            model, adapter = self._files[key], self._files[EDITED] if self.lora else None
            assert model is not None
            layout = layout_of(model)
            start = _in_process if installed() == "xllamacpp" else _started
            context = min(layout.context or LONGEST, LONGEST)
            address = self._stack.enter_context(start(model, adapter, context))
            self._servers[key] = self._stack.enter_context(Server.at(address, layout))
        return self._servers[key]

    def check_format(self, form: PromptFormat) -> None:
        rendered(self._server(self.sides[-1]).tokenizer, "Is it so?", form)

    def reply(
        self, side: str, prompt: str, *, before: Turns = (), strength: float = 1.0, sampling: Sampling, say: Say
    ) -> Reply:
        self.check(side, strength)
        server = self._server(BASE if strength == 0 else side)
        ids = list(tokens_of(server.tokenizer, prompt, before, self.form).ids)
        count = room_for(len(ids), server.positions, sampling.max_new_tokens, server.limit)
        extra: dict[str, Any] = {"cache_prompt": False, **_PLAIN}
        if self.lora:
            extra["lora"] = [{"id": 0, "scale": strength if side == EDITED else 0.0}]
        text, said, ended = "", 0, False
        from openai import OpenAIError

        seed = (sampling.seed + len(before)) % _SEEDS
        try:
            with server.client.completions.create(
                model=side, prompt=ids, stream=True, stream_options={"include_usage": True}, max_tokens=count,
                temperature=sampling.temperature, seed=seed, top_p=1, extra_body=extra,
            ) as pieces:  # fmt: skip
                for piece in pieces:
                    interrupts.check()
                    said = piece.usage.completion_tokens if piece.usage else said
                    for choice in piece.choices:
                        ended = ended or choice.finish_reason == "stop"
                        if choice.text:
                            text += choice.text
                            say(choice.text)
        except OpenAIError as error:
            raise SettingError(f"llama.cpp does not answer: {first_line_of(error)}") from error
        return Reply(text, said, ended)

    def close(self) -> None:
        self._servers.clear()
        self._stack.close()


@contextlib.contextmanager
def _in_process(model: Path, adapter: Path | None, context: int) -> Iterator[str]:
    """The wheel xllamacpp: llama.cpp's own server in this process; its address."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.n_parallel = str(model), 0, 1
    settings.warmup, settings.verbosity = False, -1
    settings.n_ctx = context
    if adapter is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    try:
        server = xllamacpp.Server(settings)
    except Exception as error:
        raise CheckpointError(f"llama.cpp cannot load {model}: {first_line_of(error)}") from error
    try:
        yield server.listening_address
    finally:
        del server


@contextlib.contextmanager
def _started(model: Path, adapter: Path | None, context: int) -> Iterator[str]:
    """llama-server in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    line = [str(installed()), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-np", "1"]
    line += ["-c", str(context)]
    line += [] if adapter is None else ["--lora", str(adapter)]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    server = subprocess.Popen(line, start_new_session=True, **quiet)  # Ctrl-C is for the answer, and not for it
    try:
        end = time.monotonic() + _STARTING
        while not _healthy(port):
            if server.poll() is not None or time.monotonic() > end:
                raise CheckpointError(f"{line[0]} cannot load {model}: run it to see why ({' '.join(line[1:3])})")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
