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
from sea_bake.activations.rendering import without_reasoning
from sea_bake.errors import CheckpointError, SettingError, first_line_of, need
from sea_bake.io import interrupts
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply, Say, Turns
from sea_bake.serving.sampling import Sampling

CURE = (
    "Install it (pip install xllamacpp, or llama.cpp with its llama-server on the PATH), or run the file in "
    "transformers: --runtime transformers"
)
_STARTING = 120.0  # seconds for a server to read its weights


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
        SettingError: llama.cpp is not there.
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
        self._clients: dict[str, Any] = {}

    def _client(self, side: str) -> Any:
        key = BASE if self.lora else side
        if key not in self._clients:
            from openai import OpenAI

            model, adapter = self._files[key], self._files[EDITED] if self.lora else None
            assert model is not None
            start = _in_process if installed() == "xllamacpp" else _started
            address = self._stack.enter_context(start(model, adapter))
            client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=None)
            self._clients[key] = self._stack.enter_context(client)
        return self._clients[key]

    def check_format(self, form: PromptFormat) -> None:
        if form.primer or form.template_args or not form.chat_template:
            raise SettingError(
                "llama.cpp renders prompts with the chat template of the file: drop --primer, --template-args and "
                "--no-chat-template, or take --runtime transformers"
            )

    def reply(
        self, side: str, prompt: str, *, before: Turns = (), strength: float = 1.0, sampling: Sampling, say: Say
    ) -> Reply:
        self.check(side, strength)
        messages: list[dict[str, str]] = []
        if self.form.system is not None:
            messages.append({"role": "system", "content": self.form.system})
        for question, answer in before:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": without_reasoning(answer)})
        messages.append({"role": "user", "content": prompt})
        extra: dict[str, Any] = {"cache_prompt": False}
        if self.lora:
            extra["lora"] = [{"id": 0, "scale": strength if side == EDITED else 0.0}]
        text, count, ended = "", 0, False
        from openai import OpenAIError

        try:
            with self._client(BASE if strength == 0 else side).chat.completions.create(
                model=side, messages=messages, stream=True, temperature=sampling.temperature, seed=sampling.seed,
                max_tokens=sampling.max_new_tokens, extra_body=extra,
            ) as pieces:  # fmt: skip
                for piece in pieces:
                    interrupts.check()
                    for choice in piece.choices:
                        ended = ended or choice.finish_reason == "stop"
                        if choice.delta.content:
                            text, count = text + choice.delta.content, count + 1
                            say(choice.delta.content)
        except OpenAIError as error:
            raise SettingError(f"llama.cpp does not answer: {first_line_of(error)}") from error
        return Reply(text, count, ended)

    def close(self) -> None:
        self._clients.clear()
        self._stack.close()


@contextlib.contextmanager
def _in_process(model: Path, adapter: Path | None) -> Iterator[str]:
    """The wheel xllamacpp: llama.cpp's own server in this process; its address."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.n_parallel = str(model), 0, 1
    settings.warmup, settings.verbosity = False, -1
    settings.n_ctx = 4096
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
def _started(model: Path, adapter: Path | None) -> Iterator[str]:
    """llama-server in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    line = [str(installed()), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-np", "1", "-c", "4096"]
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
