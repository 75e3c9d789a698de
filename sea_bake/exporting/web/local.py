"""A static host for a look at a page, on this machine alone: what any other host does, and the headers for threads."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

from sea_bake.errors import SettingError


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012  (the base class's own)
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def send_head(self) -> Any:
        """A file of the site, and nothing else: no listing, no hidden file, nothing that a link leads to.

        Nor an answer to another host's name: a page elsewhere can make its own name mean this machine (DNS rebinding).
        """
        port = cast(_Server, self.server).server_port
        if self.headers.get("Host") not in {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        site = Path(self.directory)
        hidden = any(part.startswith(".") for part in path.relative_to(site).parts)
        if hidden or path.resolve() != site.resolve() / path.relative_to(site) or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        # Only a page that shares its process with no other may use several threads in WebAssembly.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "credentialless")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a browser that went away


@contextmanager
def hosted(site: str | Path, port: int = 0) -> Iterator[str]:
    """Serve a folder on 127.0.0.1 while the block runs; gives the page's address.

    Args:
        site: a folder written by ``serve_web``.
        port: 0 takes any free one.

    Raises:
        SettingError: the port is taken.
    """
    if port:
        with socket.socket() as probe:  # ThreadingHTTPServer would share it with another server of this kind
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise SettingError(f"port {port} is taken: choose another with --port")
    try:
        server = _Server(("127.0.0.1", port), functools.partial(_Handler, directory=os.path.abspath(site)))
    except (OSError, OverflowError) as error:
        raise SettingError(f"port {port} cannot be opened: choose another with --port ({error})") from error
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
