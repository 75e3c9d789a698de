"""What a user names, opened for questions: a base with edits, an artefact of any kind, an export, a GGUF."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact import Artefact, is_artefact
from sea_bake.artefact.gguf_record import GgufRecord, record_of
from sea_bake.artefact.opened import ONNX
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, SettingError, command
from sea_bake.evaluation.doors import BASE, Doors
from sea_bake.exporting.gguf.belonging import check_made_from, check_written
from sea_bake.io.edits import is_hub_edit
from sea_bake.model.loading import load_model, load_tokenizer, parse_dtype
from sea_bake.model.source import ModelSource
from sea_bake.serving import llama_cpp
from sea_bake.serving.living import Living, hooks, inserted, inserted_layers
from sea_bake.serving.pair import Pair
from sea_bake.serving.sampling import RUNTIMES, Runtime

Edits = Edit | str | Path | Sequence[Edit | str | Path] | None


def opened(
    model: str | Path | Artefact,
    *,
    edit: Edits = None,
    base: str | Path | None = None,
    runtime: Runtime = "auto",
    prompt_format: PromptFormat | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Pair:
    """Both sides of a model, loaded.

    Args:
        model: a base (folder, .gguf file or Hub id); an artefact that ``bake`` or ``export_onnx`` wrote; a GGUF.
        edit: an edit, or several, that act on a base.
        base: of an artefact or a GGUF, where its base is, if it is not where the record says.
        runtime: of a GGUF: "llama.cpp", "transformers", or "auto": the first of them that is installed.
        prompt_format: how prompts are rendered. Default: as the demonstrations of the edits were.
        revision: branch, tag or commit of a Hub id.
        dtype, device: see :func:`sea_bake.model.loading.load_model`.

    Raises:
        SettingError: an edit for what has its edits in it, a base for a base, a runtime that cannot do it.
        CheckpointError, EditError, WrongModelError: something cannot be read, or does not belong together.
        MissingExtraError: a runtime that is not installed.
    """
    if runtime not in RUNTIMES:
        raise SettingError(f"unknown runtime {runtime!r}: use one of {', '.join(RUNTIMES)}")
    parse_dtype(dtype)
    given = [] if edit is None else [edit] if isinstance(edit, Edit | str | Path) else list(edit)
    edits = [one if isinstance(one, Edit) else Edit.load(one) for one in given]
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    file = Path(os.path.expanduser(model)) if isinstance(model, str | Path) else model.file
    if not edits and file is not None and file.suffix == ".gguf" and file.is_file():
        return _of_gguf(file.absolute(), base, runtime, prompt_format, options)
    if runtime == "llama.cpp":
        raise SettingError(
            f"llama.cpp runs a GGUF by itself, and {model} {'with --edit' if edits else ''} is none: write one with "
            + command("sea-bake", "export", "gguf", "ARTEFACT", "--base", "BASE.gguf", "-o", "OUT.gguf")
        )
    artefact = _artefact(model, edits, revision)
    if artefact is None:
        if base is not None:
            raise SettingError(f"--base belongs to an artefact, and {model} is none: it is the base itself")
        return _of_base(ModelSource.parse(model, revision), edits, prompt_format, options)  # type: ignore[arg-type]
    if edits:
        raise SettingError(
            f"{artefact.name} is an artefact, with its edits in it: drop --edit, or give its base in its place"
        )
    form = prompt_format or PromptFormat.shared([one.recipe for one in artefact.edits])
    if artefact.kind == ONNX:
        from sea_bake.serving.graphs import Graph

        if runtime == "transformers" or dtype != "auto" or base is not None:
            raise SettingError(f"{artefact.name} is an ONNX export: drop --runtime, --dtype and --base, it has its own")
        return Graph(artefact, device=device, form=form)
    return _of_artefact(artefact, base, None if artefact.hub_id else revision, form, options)


def _artefact(model: str | Path | Artefact, edits: list[Edit], revision: str | None) -> Artefact | None:
    if isinstance(model, Artefact) or is_artefact(model):
        return Artefact.open(model)
    source = None if edits or is_hub_edit(model) else ModelSource.parse(model, revision)
    if source is None or source.path is not None or not is_artefact(source.folder()):
        return None
    return Artefact.open(model, revision=revision)


def _of_base(source: ModelSource, edits: list[Edit], form: PromptFormat | None, options: dict[str, Any]) -> Living:
    doors = Doors(source, edits, None, "live" if edits else None, **options)
    tokenizer, model = doors.tokenizer(), doors.load(BASE)
    for one in edits:
        one.check(model)
    form = form or PromptFormat.shared([one.recipe for one in edits])
    if not edits:
        lacking = f"{source.name} is a base, and no edit was given: name one with --edit"
        return Living(source.name, None, tokenizer, model, lacking=lacking, form=form)
    stored = [one.alpha for one in edits]
    return Living(source.name, "live", tokenizer, model, acting=hooks(edits), form=form, stored=stored)


def _of_artefact(
    artefact: Artefact,
    base: str | Path | None,
    revision: str | None,
    form: PromptFormat | None,
    options: dict[str, Any],
) -> Living:
    """The base of an insert is inside of it; that of a fold is looked for where its record says."""
    kind, lacking = artefact.kind, ""
    source: ModelSource | None = None
    if kind != "insert":
        try:
            source = artefact.base_source(base, revision)
        except CheckpointError as error:
            if base is not None or kind == "adapter":
                raise
            lacking = str(error)
    doors = Doors(source or ModelSource(artefact.base_name), [], artefact, kind, **options)
    tokenizer = load_tokenizer(artefact.folder) if kind != "adapter" else doors.tokenizer()
    edited = doors.load(kind)
    if kind == "insert":
        stored = [layer.alpha for layer in inserted_layers(edited)]
        return Living(artefact.name, kind, tokenizer, edited, acting=inserted, form=form, stored=stored)
    load_base: Callable[[], Any] | None = None if source is None else lambda: doors.load(BASE)
    return Living(artefact.name, kind, tokenizer, edited, load_base=load_base, lacking=lacking, form=form)


def _of_gguf(
    file: Path, base: str | Path | None, runtime: str, form: PromptFormat | None, options: dict[str, Any]
) -> Pair:
    record = GgufRecord.read(file) if record_of(file).is_file() else None
    if record is not None:
        check_written(file, record)
    if record is not None and record.route == "control-vector":
        raise SettingError(
            f"{file.name} is a control vector: llama.cpp applies it itself, "
            + command("llama-cli", "-m", "BASE.gguf", "--control-vector", file)
        )
    alone = f"{file.name} has no record of an edit beside it: it is asked as a base"
    if record is not None and not record.edits:
        alone = f"{file.name} is the export of an unedited model: there is no edit in it"
        record = None
    there = _base_of(file, record, base)
    if record is not None and there is not None:
        check_made_from(file, record, there)
    if form is None and record is not None and record.prompt_format is not None:
        form = PromptFormat.from_json(record.prompt_format)
    lora, edited = record is not None and record.route == "adapter", file if record is not None else None
    if lora and there is None:
        raise CheckpointError(
            f"{file.name} is an adapter, and its base {(record and record.gguf) or ''} is not beside it: say where "
            "that is with --base"
        )
    if record is not None:
        named = f", {record.gguf}," if record.gguf else ""
        alone = f"the base of {file.name}{named} is not beside it: say where it is with --base"
    lacking = alone if there is None else ""
    ready = llama_cpp.installed() is not None and importlib.util.find_spec("openai") is not None
    if lora or runtime == "llama.cpp" or (runtime == "auto" and ready):
        if runtime == "transformers":
            raise SettingError(f"{file.name} is an adapter for llama.cpp: drop --runtime transformers")
        if options["dtype"] != "auto" or options["device"] is not None:
            raise SettingError(
                "llama.cpp computes in the types of the file, where it was built for: drop --dtype and --device"
                + ("" if lora else ", or take --runtime transformers")
            )
        return llama_cpp.LlamaCpp(edited, there or (None if edited else file), lora=lora, form=form, lacking=lacking)
    source = ModelSource.parse(file)
    tokenizer, model = load_tokenizer(source), load_model(source, **options)
    if record is None:
        return Living(file.name, None, tokenizer, model, lacking=lacking, form=form)
    load_base: Callable[[], Any] | None = None if there is None else lambda: load_model(there, **options)
    return Living(file.name, "gguf", tokenizer, model, load_base=load_base, lacking=lacking, form=form)


def _base_of(file: Path, record: GgufRecord | None, base: str | Path | None) -> Path | None:
    """The base's GGUF: the one that was given, or the one beside the file that its record names."""
    if base is not None:
        given = Path(os.path.expanduser(base)).absolute()
        if record is None or given.suffix != ".gguf" or not given.is_file():
            what = "has no record of an edit beside it" if record is None else "wants the GGUF that it was made from"
            raise SettingError(f"--base {base}: {file.name} {what}")
        return given
    name = record.gguf if record is not None else None
    beside = file.parent / name if name and Path(name).name == name else None
    return beside if beside is not None and beside.is_file() and beside != file else None
