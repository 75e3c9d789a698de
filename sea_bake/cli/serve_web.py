"""sea-bake serve-web"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sea_bake.cli.options import Call, command, spelt
from sea_bake.pages.text import size


@command(
    "sea_bake.exporting.web:serve_web",
    output=spelt(hint=Path, default=None, help="Folder to write. Default: the export's name and -web."),
)
def serve_web(
    call: Call,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then show it at http://127.0.0.1:PORT/ until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Write a page that runs base and edited model side by side in the browser: no server code, any static host.

    An export with --strength gets a slider, and one download serves both sides. Weights are hard-linked where export
    and page lie on one file system (do not write into them), and copied elsewhere. The page runs on transformers.js
    and onnxruntime-web, 28 MB at pinned versions, each run only if its hash is the one written here: from a CDN, or
    with --offline from files beside the page, so that it needs nothing but its own host. Example:

      sea-bake export onnx smollm2-truthful -o smollm2-onnx --strength

      sea-bake serve-web smollm2-onnx -o smollm2-web --serve

    For a Hugging Face Space, which shows it to everybody: sea-bake publish smollm2-onnx me/page --space
    """
    console, export = call.console, call["export"]
    target = call["output"] or export.with_name(f"{export.absolute().name}-web")
    report = call.run(output=target)
    shown = "base and edited" if len(report.sides) > 1 else "the edited model alone (give its base with --base)"
    told = ", ".join(f"{name} {size(count)}" for name, count in report.graphs.items())
    console.print(
        f"[bold]{escape(str(target))}[/]: {shown}{', with a strength slider' if report.strength else ''}; "
        f"a visitor downloads {told}"
    )
    if not serve:
        call.go_on("python", "-m", "http.server", "-d", target, done="Upload it to any static host. ")
        return
    from threading import Event

    from sea_bake.exporting.web.local import hosted

    with hosted(report.output, port) as address:
        console.print(f"Open {address}  (Ctrl-C ends it)", markup=False)
        Event().wait()
