"""sea-bake serve-web"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sea_bake.cli.printing import Json, Overwrite, Quiet, emit, prepare, size


def serve_web(
    export: Annotated[Path, typer.Argument(help="Folder written by sea-bake export onnx.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: the export's name + -web.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The base's own export (export onnx --unedited), for an export without --strength."),
    ] = None,
    graph: Annotated[
        list[str] | None,
        typer.Option("--graph", help="fp32, fp16, int8, int4: graphs that the page offers (repeatable). Default: one."),
    ] = None,
    model_url: Annotated[
        str | None,
        typer.Option(
            help="Where the export lies already (https://huggingface.co/me/model/resolve/main): no copy here."
        ),
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(help="A folder node_modules to copy the libraries from. Default: the CDN jsDelivr, by version."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: the base's name.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy weights instead of hard-linking them.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then show it at http://127.0.0.1:PORT/ until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="For --serve.")] = 8000,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a page that runs base and edited model side by side in the browser: no server code, any static host.

    An export with --strength gets a slider, and one download serves both sides. Weights are hard-linked where export
    and page lie on one file system (do not write into them), and copied elsewhere. The page runs on transformers.js
    and onnxruntime-web, 28 MB at pinned versions, each run only if its hash is the one written here: from a CDN, or
    with --offline from files beside the page, so that it needs nothing but its own host. Example:

      sea-bake export onnx smollm2-truthful -o smollm2-onnx --strength

      sea-bake serve-web smollm2-onnx -o smollm2-web --serve

    For a Hugging Face Space create one of the kind "static" and upload the folder: its README.md says the rest.
    """
    console = prepare(as_json=as_json, quiet=quiet)
    from sea_bake.exporting.web import serve_web as run

    target = output or export.with_name(f"{export.absolute().name}-web")
    report = run(
        export,
        target,
        base=base,
        graphs=graph,
        model_url=model_url,
        offline=offline,
        title=title,
        copy=copy,
        overwrite=overwrite,
    )
    emit(report.to_json(), as_json=as_json)
    shown = "base and edited" if len(report.sides) > 1 else "the edited model alone (give its base with --base)"
    told = ", ".join(f"{name} {size(count)}" for name, count in report.graphs.items())
    console.print(
        f"[bold]{escape(str(target))}[/]: {shown}{', with a strength slider' if report.strength else ''}; "
        f"a visitor downloads {told}"
    )
    if not serve:
        console.print(f"Next: python -m http.server -d {target}, or upload it to any static host", markup=False)
        return
    from threading import Event

    from sea_bake.exporting.web.local import hosted

    with hosted(report.output, port) as address:
        console.print(f"Open {address}  (Ctrl-C ends it)", markup=False)
        Event().wait()
