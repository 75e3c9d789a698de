"""A page that people can open: base and edited model side by side in the browser, from any static host."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sea_bake.activations.prompts import PLAIN_TEMPLATE
from sea_bake.artefact.output import check_folder, staged
from sea_bake.artefact.web_record import WebRecord
from sea_bake.errors import SettingError
from sea_bake.exporting.web import libraries, pages, precision
from sea_bake.exporting.web.models import KINDS, STRENGTH, WebModel, open_model, place_model
from sea_bake.io.addresses import https_address
from sea_bake.io.apart import check_apart
from sea_bake.io.files import write_json
from sea_bake.io.staging import need_space

__all__ = ["WebSite", "serve_web"]
_ROOM = 64 << 20  # page and libraries


@dataclass(frozen=True)
class WebSite:
    """What was written.

    Attributes:
        output: the site's folder: put it on a static host as it is.
        sides: "base" and "edited", or "edited" alone.
        strength: whether the page has a slider for it.
        graphs: "fp32", ... -> bytes that a browser downloads.
        libraries: library -> its address, on a CDN or beside the page.
        models: side -> address of its files.
    """

    output: Path
    sides: list[str]
    strength: bool
    graphs: dict[str, int]
    libraries: dict[str, str]
    models: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def serve_web(
    export: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    graphs: Sequence[str] | None = None,
    model_url: str | None = None,
    offline: str | Path | None = None,
    title: str | None = None,
    copy: bool = False,
    overwrite: bool = False,
) -> WebSite:
    """Write a static page that runs an export in the browser, with transformers.js on onnxruntime-web.

    With an export of a variable strength one download serves both sides: its strength 0 is the base.

    Args:
        export: folder written by sea-bake export onnx.
        output: folder to write; it appears whole or not at all.
        base: the base's own export (sea-bake export onnx --unedited), for an export without --strength.
        graphs: a graph that the page offers: "fp32", "fp16", "int8", "int4". Default: the main one. In WebAssembly fp32
            is fastest, as measured, and the page begins with it; the others are smaller.
        model_url: where the export lies already (https://huggingface.co/me/model/resolve/main): no copy here.
        offline: a folder node_modules to copy the libraries from. Default: the CDN jsDelivr, by version.
        title: title of the page. Default: the base's name.
        copy: copy weights instead of hard-linking them.
        overwrite: replace an earlier output.

    Raises:
        CheckpointError: no ONNX export of ours, or an incomplete one; libraries that are missing.
        SettingError: a graph that is not there; two models that do not belong together; no such address.
        MissingExtraError: a strength with a default, and ``onnx`` is not installed.
        OutputError: the output exists, or the disk is too small.
    """
    target = check_folder(output, overwrite=overwrite)
    check_apart(target, [export, base, offline])
    edited = open_model(export, graphs)
    record = edited.record
    models: dict[str, WebModel] = {}
    if base is not None:
        models["base"] = _checked_base(edited, open_model(base, edited.graphs))
    models["edited"] = edited
    if record.how == "unedited":
        raise SettingError(
            f"{edited.folder} is the export of an unedited model: give the edited one, and this as --base"
        )
    sides = ["base", "edited"] if record.strength or base is not None else ["edited"]
    addresses = {side: f"models/{side}" for side in models}
    if model_url is not None:
        addresses["edited"] = _checked_url(model_url, edited)
    local = {side: model for side, model in models.items() if addresses[side] == f"models/{side}"}
    files = None if offline is None else libraries.installed(Path(os.path.expanduser(offline)).absolute())
    size = sum((model.folder / name).stat().st_size for model in local.values() for name in model.carried())
    need_space(target.parent, (size if copy else 0) + _ROOM)
    title = title or f"{record.base.rpartition('/')[2]}, edited"
    totals = {graph: sum(model.bytes(graph) for model in models.values()) for graph in edited.graphs}
    with staged(target, overwrite=overwrite) as stage:
        for side, model in local.items():
            place_model(model, stage / "models" / side, copy=copy)
        placed = libraries.on_cdn() if files is None else libraries.vendored(stage, files)
        for name in pages.STATIC:
            (stage / name).write_text(pages.asset(name), "utf-8")
        page = pages.html(edited, title=title, sides=sides, bytes_first=totals[edited.graphs[0]])
        (stage / pages.TEMPLATE).write_text(page, "utf-8")
        (stage / "README.md").write_text(pages.card(edited, title=title), "utf-8")
        site = {
            "sides": sides,
            "strength": STRENGTH if record.strength else None,
            "base": f"Base: {record.base}",
            "graphs": [
                {"name": name, "dtype": KINDS[name][0], "label": KINDS[name][1], **precision.words(edited, name)}
                for name in edited.graphs
            ],
            "models": {
                side: {"url": addresses[side], "bytes": {graph: model.bytes(graph) for graph in edited.graphs}}
                for side, model in models.items()
            },
            "libraries": placed,
            "plain": PLAIN_TEMPLATE,
            "cache": ["sea-bake", _digest(models)],
        }
        write_json(stage / "site.json", site)
        WebRecord(record.base, sides, record.revision).write(stage)
    urls = {name: file["url"] for name, file in placed.items()}
    return WebSite(target, sides, bool(record.strength), totals, urls, addresses)


def _checked_base(edited: WebModel, base: WebModel) -> WebModel:
    if edited.record.strength:
        raise SettingError("this export has a variable strength, whose 0 is the base: drop --base")
    if base.record.how != "unedited" or base.record.base != edited.record.base:
        raise SettingError(
            f"{base.folder} is not the unedited export of {edited.record.base}: make it with "
            "sea-bake export onnx BASE -o DIR --unedited"
        )
    return base


def _checked_url(url: str, edited: WebModel) -> str:
    address = https_address(url, "--model-url")
    if edited.record.strength == "optional":
        raise SettingError(
            "browsers cannot set a strength that has a default in the graph: export with "
            'export_onnx(..., strength="required"), or drop --model-url, and a graph without a default is written'
        )
    return address


def _digest(models: dict[str, WebModel]) -> str:
    """Another model, another name of the browser's cache."""
    told = json.dumps({side: model.artefact.seal() for side, model in models.items()}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
