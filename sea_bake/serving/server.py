"""An endpoint on loopback that speaks as OpenAI's does: models "base" and "edited", in a server that others wrote."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from sea_bake.errors import SettingError, command, need
from sea_bake.io import interrupts
from sea_bake.serving.sampling import check_there

if TYPE_CHECKING:
    from sea_bake.artefact import Artefact
    from sea_bake.edit import Edit

HERE = ("127.0.0.1", "localhost")
Server = Literal["auto", "transformers", "vllm"]
SERVERS = ("auto", "transformers", "vllm")


def serve(
    model: str | Path | Artefact,
    *,
    edit: Edit | str | Path | Sequence[Edit | str | Path] | None = None,
    base: str | Path | None = None,
    alpha: float = 1.0,
    server: Server = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: Sequence[str] = (),
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    ready: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> None:
    """Serve base and edited model side by side, until Ctrl-C.

    A request names "base" or "edited" as its model. Where the edit is live or inserted, and transformers' own server
    does the work, a request for "edited" may hold "alpha" as well.

    Args:
        model: see :func:`sea_bake.serving.asking.ask`.
        edit: see :func:`sea_bake.serving.asking.ask`.
        base: see :func:`sea_bake.serving.asking.ask`.
        alpha: see :func:`sea_bake.serving.asking.ask`.
        server: "vllm" (the edit as a LoRA, base and edited in one process), "transformers", or "auto": vLLM where it is
            on the PATH, the edit can be a LoRA and alpha is 1, else transformers' own server.
        host: address to listen on.
        port: port to listen on.
        allowed_hosts: a name under which the server may be called besides 127.0.0.1 and localhost: a page of another
            site could make its own name mean this machine.
        revision: branch, tag or commit of a model on the Hub.
        dtype: see :func:`sea_bake.model.loading.load_model`.
        device: see :func:`sea_bake.model.loading.load_model`.
        ready: is called once it listens, with "url", "models", "server" and "alpha" (whether a request may hold it).

    Raises:
        SettingError: a port that is taken, a host that others can reach without a name for it, an export.
        MissingExtraError: no server is installed.
        CheckpointError, EditError, WrongModelError: something cannot be read, or does not belong together.
    """
    if server not in SERVERS:
        raise SettingError(f"unknown server {server!r}: use one of {', '.join(SERVERS)}")
    if host not in HERE and not allowed_hosts:
        raise SettingError(f"others can reach {host}: say under which name they may call it, with --allow-host NAME")
    check_there(model, edit, revision)
    if edit is None:
        refuse_exports(model)
    from sea_bake.serving import vllm

    if server == "vllm" or (server == "auto" and alpha == 1 and vllm.suits(model, edit, revision)):
        vllm.serve(model, edit=edit, base=base, host=host, port=port, revision=revision, dtype=dtype, ready=ready)
        return
    need("serve", "Serving", "fastapi", "uvicorn", "openai")
    with listening(host, port) as place:
        from sea_bake.serving.living import Living
        from sea_bake.serving.opening import opened
        from sea_bake.serving.transformers_server import served

        pair = opened(model, edit=edit, base=base, revision=revision, dtype=dtype, device=device)
        assert isinstance(pair, Living)
        with interrupts.taken(), served(pair, place, alpha=alpha, hosts=(*HERE, *allowed_hosts)) as url:
            ready({"url": url, "models": list(pair.sides), "server": "transformers", "alpha": not pair.fixed})
            Event().wait()


def refuse_exports(model: str | Path | Artefact) -> None:
    """Raise SettingError for what another server serves, or none."""
    name = str(getattr(model, "file", None) or getattr(model, "folder", model))
    if name.endswith(".gguf"):
        raise SettingError(f"llama.cpp serves a GGUF itself: {command('llama-server', '-m', name)}")
    from sea_bake.artefact import Artefact, is_artefact
    from sea_bake.artefact.opened import ONNX

    if is_artefact(name) and Artefact.open(name).kind == ONNX:
        raise SettingError(
            f"{name} is an ONNX export, which no server here serves: serve the artefact it was made from"
        )


def listening(host: str, port: int) -> socket.socket:
    """A socket of this machine. Raises SettingError where the port is taken, or the host is none of its own."""
    try:
        if not 0 <= port < 65536:
            raise OSError("ports go from 1 to 65535")
        return socket.create_server((host, port))
    except OSError as error:
        reason = error.strerror or error
        raise SettingError(f"{host}:{port} cannot be opened ({reason}): choose another --port or --host") from error
