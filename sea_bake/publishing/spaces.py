"""Publish a page of ``serve-web`` as a static Space: base and edited model run in the browser of whoever opens it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sea_bake.artefact import Artefact
from sea_bake.artefact.names import CARD
from sea_bake.artefact.opened import ONNX
from sea_bake.artefact.seal import files
from sea_bake.errors import PublishError, command
from sea_bake.exporting.web import serve_web
from sea_bake.io.staging import scratch_folder
from sea_bake.pages.edits import worth
from sea_bake.publishing.contents import Item
from sea_bake.publishing.licence import Place, find
from sea_bake.publishing.publication import Publication, Target
from sea_bake.publishing.secrets import leak


def publish_space(export: Artefact, target: Target, license: str | None = None) -> Publication:
    """See :func:`sea_bake.publishing.publish`. The Space holds the graphs, and needs no other repository."""
    check_export(export)
    if export.hub_id is None:
        with scratch_folder(export.folder) as folder:
            return _publish(export, target, folder, license)
    with tempfile.TemporaryDirectory(prefix="sea-bake-publish-") as scratch:
        return _publish(export, target, Path(scratch), license)


def check_export(artefact: Artefact) -> None:
    """Raise PublishError for what no browser runs."""
    if artefact.kind != ONNX:
        again = command("sea-bake", "export", "onnx", artefact.hub_id or artefact.folder, "-o", "EXPORT", "--strength")
        raise PublishError(f"a page runs an ONNX export, and this is no such: {again}, then publish EXPORT --space")


def _publish(export: Artefact, target: Target, folder: Path, license: str | None) -> Publication:
    licence, _ = find(Place.of(export), license)
    site = serve_web(export.folder, folder / "site").output
    items = [Item.of(name, site / name) for name in files(site)]
    for item in items:
        what = leak(item.path, item.source, export)
        if what:
            raise PublishError(f"{item.path} holds {what}, which everybody could read: take it out of the export")
    return target.publish(
        items,
        card=(site / CARD).read_text("utf-8"),
        message=f"{export.base_name.rpartition('/')[2]} with and without an edit, in the browser ({export.verdict})",
        verdict=export.verdict,
        licence=licence,
        worth=worth(export.edits),
        kind="space",
    )
