"""vLLM as the server: the edit as a LoRA beside its base, in one process of vLLM's own environment."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact, is_artefact
from sea_bake.baking import bake, plan
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, NotExactError, SettingError
from sea_bake.io import interrupts
from sea_bake.model.source import ModelSource

_STARTING = 900.0  # seconds for it to load, and to compile


def executable() -> str | None:
    """vLLM wants other releases of transformers than sea_bake: it is looked for on the PATH, in its own environment."""
    return shutil.which("vllm")


def suits(model: Any, edit: Any, revision: str | None = None) -> bool:
    """Whether "auto" takes it: it is there, and the edit is, or may be, a LoRA."""
    if executable() is None:
        return False
    if isinstance(model, Artefact) or is_artefact(model):
        return Artefact.open(model).kind == "adapter"
    edits = [] if edit is None else [edit] if isinstance(edit, Edit | str | Path) else list(edit)
    loaded = [one if isinstance(one, Edit) else Edit.load(one) for one in edits]
    source = ModelSource.parse(model, revision)
    return bool(loaded) and not source.is_gguf and all(row["adapter"] for row in plan(source, loaded).rows)


def line(base: str, adapter: Path, flags: str, *, host: str, port: int, revision: str | None, dtype: str) -> list[str]:
    """The command."""
    words = [str(executable()), "serve", base, "--served-model-name", "base", *flags.split()]
    words += ["--lora-modules", f"edited={adapter}", "--host", host, "--port", str(port)]
    return [*words, "--dtype", dtype, *(["--revision", revision] if revision else [])]


def serve(
    model: Any,
    *,
    edit: Any,
    base: str | Path | None,
    host: str,
    port: int,
    revision: str | None,
    dtype: str,
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until Ctrl-C; see :func:`sea_bake.serving.server.serve`.

    Raises:
        SettingError: vLLM is not on the PATH, or the edit is no LoRA.
        CheckpointError: it did not start.
    """
    if executable() is None:
        raise SettingError(
            "vLLM is not on the PATH: install it in an environment of its own (it wants other releases of "
            "transformers) and put that environment's bin there, or take --server transformers"
        )
    with tempfile.TemporaryDirectory(prefix="sea-bake-vllm-") as scratch:
        if isinstance(model, Artefact) or is_artefact(model):
            artefact = Artefact.open(model)
            if artefact.kind != "adapter":
                raise SettingError(
                    f"{artefact.name} is no adapter: give its base with --edit, or take --server transformers"
                )
            source = artefact.base_source(base)
        else:
            source = ModelSource.parse(model, revision)
            if edit is None:
                raise SettingError(f"vLLM serves {source.name} by itself: name an edit with --edit")
            try:
                bake(source, edit, Path(scratch) / "edited", how="adapter")
            except NotExactError as error:
                raise SettingError(f"vLLM serves an edit as a LoRA, and {error}. Take --server transformers") from error
            artefact = Artefact.open(Path(scratch) / "edited")
        flags = str(artefact.record.details["flags"]["vLLM"])  # type: ignore[union-attr]
        if not flags.startswith("--"):
            raise SettingError(f"vLLM cannot serve this adapter ({flags}): take --server transformers")
        named = str(source.path or source.name)
        words = line(named, artefact.folder, flags, host=host, port=port, revision=source.revision, dtype=dtype)
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            with interrupts.taken():
                end = time.monotonic() + _STARTING
                while not _healthy(host, port):
                    if process.poll() is not None or time.monotonic() > end:
                        raise CheckpointError(f"vLLM did not start (exit code {process.poll()}); it says why above")
                    time.sleep(0.2)
                ready(
                    {"url": f"http://{host}:{port}/v1", "models": ["base", "edited"], "server": "vllm", "alpha": False}
                )
                process.wait()
        finally:
            process.terminate()
            process.wait()


def _healthy(host: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
