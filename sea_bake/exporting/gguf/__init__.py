"""GGUF, for llama.cpp and all that is built on it: the base's own file with its edited tensors rewritten; a LoRA
adapter; a control vector; or a whole folder through llama.cpp's own converter.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.gguf_record import GgufRecord, is_record, record_of
from sea_bake.baking.linear import changes
from sea_bake.errors import CheckpointError, SettingError, need
from sea_bake.exporting.gguf import adapter, converting, rewriting
from sea_bake.exporting.gguf.given import Exportable, Given, exportable, refuse_inexact
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.exporting.gguf.layout import parts_digest
from sea_bake.exporting.gguf.matching import check_base
from sea_bake.exporting.gguf.names import ARCHITECTURES, GgufWriter, find_writers, known_family
from sea_bake.io.apart import check_apart
from sea_bake.io.files import file_digest
from sea_bake.io.llama_cpp import find_converter
from sea_bake.io.pairs import staged_pair
from sea_bake.io.staging import check_output, need_space

_OWN_BYTES = 1 << 20  # header of an adapter
_COARSE = 0.1  # of the edit of one tensor


def export_gguf(
    artefact: Given | Sequence[Given],
    output: str | Path,
    *,
    base: str | Path | None = None,
    lora: bool = False,
    edited_type: str = "keep",
    converter: str | Path | None = None,
    outtype: str = "auto",
    unedited: bool = False,
    overwrite: bool = False,
) -> GgufRecord:
    """Write an edited model as GGUF, whole or as a LoRA adapter; the model is never loaded.

    Three routes. With ``base``, the edited tensors are rewritten inside the base's own GGUF, and every key, the
    tokenizer and all other bytes stay. With ``lora``, or of an artefact that is an adapter, a LoRA for ``llama-cli
    --lora`` is written: from the weights of ``base`` where that is given (then exact on that very file, whatever its
    types), else from the artefact's own factors. Without either, a folder goes through llama.cpp's own converter.

    Args:
        artefact: folder written by sea-bake bake (a fold or an adapter), or edit files that fold exactly, which act in
            the order given.
        output: file to write, such as model.gguf; it appears whole or not at all, and its record beside it, as
            model.gguf.sea.json.
        base: the base's own GGUF (one little-endian file): its edited tensors are rewritten, all else is kept.
        lora: write a LoRA adapter for llama-cli --lora. An adapter artefact always is.
        edited_type: type of rewritten weights: "keep" (the tensor's own where gguf can quantise it, else q8_0 or f16),
            "f32", "f16", "q8_0". Of an adapter: "keep" (f32), "f32" or "f16".
        converter: without ``base``: llama.cpp's convert_hf_to_gguf.py, or the folder it is in. Default: the folder in
            LLAMA_CPP, else the script on PATH.
        outtype: type of a converted file: "auto", "f32", "f16", "bf16", "q8_0".
        unedited: convert a plain checkpoint: the base, to compare with.
        overwrite: replace an earlier output.

    Raises:
        SettingError: an unknown type, routes that exclude each other, or no converter where one is needed.
        MissingExtraError: the extra "gguf" is not installed.
        NotExactError: an edit that no weight, or no low-rank update, carries exactly.
        WrongModelError: the GGUF is not the base that the edits were fitted on.
        FamilyError: a family whose tensors in a GGUF are not known here.
        CheckpointError: a damaged artefact or GGUF; or one of several parts, big-endian, with inserted layers.
        OutputError: the output exists, or the disk is too small.
    """
    _check_settings(edited_type, outtype, base=base, lora=lora, converter=converter, unedited=unedited)
    target = check_output(output, overwrite=overwrite, folder=False)
    if target.suffix != ".gguf":
        raise SettingError(f"{target.name} should end in .gguf: llama.cpp's tools look for that")
    orphan = not target.exists() and is_record(record_of(target))  # whose file never came, or was removed
    beside = check_output(record_of(target), overwrite=overwrite or orphan, folder=False)
    need("gguf", "Exporting to GGUF", "gguf")
    source = exportable(artefact, unedited=unedited)
    if base is not None and not os.path.exists(os.path.expanduser(base)):
        raise CheckpointError(f"no such GGUF: {base}")
    adapter_wanted = lora or source.how == "adapter"
    _check_route(edited_type, outtype, converter, base=base, adapter=adapter_wanted)
    for path in (target, beside):
        check_apart(path, [source.folder, base, converter], folder=False)
    with staged_pair(target, beside, overwrite=overwrite) as (stage, describe):
        if adapter_wanted:
            facts = _adapter(source, base, stage, edited_type)
        elif base is not None:
            facts = _rewritten(source, base, stage, edited_type)
        else:
            facts = _converted(source, converter, stage, outtype)
        record = GgufRecord(
            output=target,
            base=source.base,
            gguf=None if base is None else Path(base).name,
            edits=[
                {"site": edit.site.value, "merge": edit.merge, "layers": list(edit.layers)} for edit in source.edits
            ],
            bytes_written=stage.stat().st_size,
            sha256=file_digest(stage),
            parts_sha256=parts_digest(stage),
            gguf_parts_sha256="" if base is None else parts_digest(Path(os.path.expanduser(base))),
            fingerprint=source.edits[0].base.to_json() if source.edits and base is None else None,
            prompt_format=_format(source),
            **facts,
        )
        describe(record.content())
    return record


def _format(source: Exportable) -> dict[str, Any] | None:
    """How prompts are rendered wherever the file is asked; None where the edits do not say it, or differ."""
    found = PromptFormat.agreed([edit.recipe for edit in source.edits])
    return None if found is None else found.to_json()


def _check_settings(edited_type: str, outtype: str, *, base: Any, lora: bool, converter: Any, unedited: bool) -> None:
    if edited_type not in rewriting.EDITED_TYPES:
        raise SettingError(f"unknown type {edited_type!r} of edited tensors: use {', '.join(rewriting.EDITED_TYPES)}")
    if outtype not in converting.OUTTYPES:
        raise SettingError(f"unknown type {outtype!r} of a converted file: use {', '.join(converting.OUTTYPES)}")
    if base is not None and converter is not None:
        raise SettingError("a base's GGUF is rewritten, a folder is converted: give --base or --converter, not both")
    if unedited and (base is not None or lora):
        raise SettingError("--unedited is for a folder that llama.cpp's converter turns into GGUF")


def _check_route(edited_type: str, outtype: str, converter: Any, *, base: Any, adapter: bool) -> None:
    if adapter and (converter is not None or outtype != "auto"):
        raise SettingError("an adapter is written here, not by llama.cpp's converter: drop --converter and --outtype")
    if edited_type != "keep" and base is None and not adapter:
        raise SettingError("--edited-type is for tensors rewritten in the base's GGUF: give --base, or see --outtype")
    if outtype != "auto" and base is not None:
        raise SettingError("--outtype is for a folder that llama.cpp converts: with --base, see --edited-type")


def _opened(source: Exportable, base: str | Path, *, lora: bool) -> tuple[GgufFile, list[GgufWriter], dict[str, Any]]:
    """The base's GGUF, the writers of all edits in it, and what the record says of how it was recognised."""
    edits = source.edits
    row = known_family(edits[0].base.model_type)
    refuse_inexact(source, row, adapter=lora)
    file = GgufFile.open(base)
    compared = check_base(file, row, [(edit.base, edit.layers) for edit in edits])
    writers = find_writers(file, row, edits, edits[0].base.hidden_size)
    refuse_inexact(source, row, writers, adapter=lora)
    unseen = "the edit was fitted on a quantised model, so the weights of the GGUF could not be held against it"
    return file, writers, {"weights_compared": compared, "notes": [] if compared else [unseen]}


def _rewritten(source: Exportable, base: str | Path, stage: Path, wanted: str) -> dict[str, Any]:
    file, writers, facts = _opened(source, base, lora=False)
    by_writer = changes(source.edits)
    rewrites = {
        w.tensor.name: rewriting.Rewrite(
            change, rewriting.edited_type(w.tensor, wanted, is_bias=w.is_bias), w.is_bias, w.weight, w.is_new
        )
        for w in writers
        if (change := by_writer[w.site, w.layer]).moves(is_bias=w.is_bias)
    }
    need_space(stage.parent, rewriting.new_places(file, rewrites)[1])
    changed = rewriting.rewrite(file, rewrites, stage)
    kinds = {name: tensor.type for name, tensor in file.tensors.items()} | {n: new.type for n, new in rewrites.items()}
    types = Counter(kind.name for kind in kinds.values())
    return facts | {
        "route": "rewritten",
        "architecture": file.architecture,
        "changed": changed,
        "types": dict(types),
        "notes": [*(_unkept(changed) if wanted == "keep" else []), *_coarse(changed), *facts["notes"]],
    }


def _adapter(source: Exportable, base: str | Path | None, stage: Path, kind: str) -> dict[str, Any]:
    if kind not in adapter.ADAPTER_TYPES:
        raise SettingError(f"a LoRA is written as f32 or f16, not {kind}")
    row = known_family(source.edits[0].base.model_type)
    facts: dict[str, Any] = {}
    if base is not None:
        file, writers, facts = _opened(source, base, lora=True)
        pairs = adapter.of_gguf(file, writers, changes(source.edits))
    elif source.how == "adapter":
        assert source.folder is not None
        pairs = adapter.of_artefact(source.folder, row)
    else:
        raise SettingError(
            "a LoRA is made from the base's weights: give the base's GGUF (--base BASE.gguf), or an artefact baked "
            "with --how adapter"
        )
    need_space(stage.parent, sum(A.nbytes + B.nbytes for A, B in pairs.values()) + _OWN_BYTES)
    adapter.write(stage, ARCHITECTURES[row.model_type], pairs, kind)
    return facts | {
        "route": "adapter",
        "architecture": ARCHITECTURES[row.model_type],
        "changed": {name: {"lora_a": list(A.shape), "lora_b": list(B.shape)} for name, (A, B) in pairs.items()},
        "types": {"F16" if kind == "f16" else "F32": 2 * len(pairs)},
        "rank": adapter.rank_of(pairs),
    }


def _converted(source: Exportable, converter: str | Path | None, stage: Path, outtype: str) -> dict[str, Any]:
    if source.folder is None:
        raise SettingError(
            "an edit by itself holds no weights: give the base's GGUF (--base BASE.gguf) to rewrite its edited "
            "tensors, or bake a fold first and give its folder"
        )
    script = find_converter(converter)
    weights = sum(path.stat().st_size for path in source.folder.glob("*.safetensors"))
    need_space(stage.parent, weights * (2 if outtype == "f32" else 1))
    file = converting.convert(script, source.folder, stage, outtype)
    return {
        "route": "converted",
        "architecture": file.architecture,
        "changed": {},
        "types": dict(Counter(t.type.name for t in file.tensors.values())),
        "notes": [] if source.exact else ["a linear stand-in of the edit, as the artefact says"],
    }


def _unkept(changed: dict[str, dict[str, Any]]) -> list[str]:
    """Which types gave way to which, and why."""
    pairs = Counter((c["from"], c["type"]) for c in changed.values() if c["from"] != c["type"])
    return [
        f"{count} edited tensors of type {old} are {new} now: the package gguf cannot quantise to {old}"
        for (old, new), count in pairs.items()
    ]


def _coarse(changed: dict[str, dict[str, Any]]) -> list[str]:
    """Types of few bits round edited weights back to where they were."""
    coarse = [entry for entry in changed.values() if abs(entry["kept"] - 1) > _COARSE]
    if not coarse:
        return []
    types, shares = ", ".join(sorted({entry["type"] for entry in coarse})), [entry["kept"] for entry in coarse]
    return [
        f"{types} is too coarse for {len(coarse)} of {len(changed)} edited tensors: it leaves {min(shares):.0%} to "
        f"{max(shares):.0%} of the edit there. --edited-type q8_0 (or f16), or --lora, keeps all of it."
    ]
