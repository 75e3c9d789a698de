"""Constants behind whole layers as a control vector: ``llama-cli --control-vector FILE``, beside any quantisation.

``direction.N`` is added to the output of decoder layer N, counted from 0, as llama.cpp applies it; layer 0 cannot be
expressed. The strength is in the vectors, so that 1 (the default of ``--control-vector``) is the edit.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sea_bake.artefact.gguf_record import GgufRecord, is_record, record_of
from sea_bake.edit import Edit
from sea_bake.errors import EditError, NotExactError, SettingError, need
from sea_bake.exporting.gguf.layout import parts_digest
from sea_bake.io.apart import check_apart
from sea_bake.io.files import file_digest
from sea_bake.io.pairs import staged_pair
from sea_bake.io.staging import check_output, need_space
from sea_bake.methods.affine import AffineMap
from sea_bake.model.anatomy import Site

ARCHITECTURE = "controlvector"
_OWN_BYTES = 1 << 20
_FOLD = "bake it instead (sea-bake bake MODEL EDIT -o OUT) and export what comes of that (sea-bake export gguf OUT)"


def export_control_vector(
    edit: Edit | str | Path | Sequence[Edit | str | Path], output: str | Path, *, overwrite: bool = False
) -> GgufRecord:
    """Write edits that add one vector behind each layer as a control vector for llama.cpp. No model is needed.

    Args:
        edit: edit files whose maps are constants at the site "block"; several add up.
        output: file to write, such as happy.gguf; it appears whole or not at all, and its record beside it.
        overwrite: replace an earlier output.

    Raises:
        NotExactError: an edit that does more than add a vector, or adds it elsewhere, or behind layer 0.
        EditError: a file that is no edit, one that changes nothing, or edits of different models.
        MissingExtraError: the extra "gguf" is not installed.
        OutputError: the output exists, or the disk is too small.
    """
    target = check_output(output, overwrite=overwrite, folder=False)
    if target.suffix != ".gguf":
        raise SettingError(f"{target.name} should end in .gguf: llama.cpp's tools look for that")
    orphan = not target.exists() and is_record(record_of(target))
    beside = check_output(record_of(target), overwrite=overwrite or orphan, folder=False)
    need("gguf", "Exporting to GGUF", "gguf")
    given = [edit] if isinstance(edit, Edit | str | Path) else list(edit)
    if not given:
        raise SettingError("there is nothing to export: name an edit file")
    for path in (target, beside):
        check_apart(path, given, folder=False)
    edits = [one if isinstance(one, Edit) else _loaded(one) for one in given]
    directions = _directions(edits)
    base = edits[0].base
    need_space(target.parent, sum(v.numel() * 4 for v in directions.values()) + _OWN_BYTES)
    with staged_pair(target, beside, overwrite=overwrite) as (stage, describe):
        _write(stage, base.model_type, directions)
        record = GgufRecord(
            output=target,
            base=base.name,
            gguf=None,
            route="control-vector",
            architecture=ARCHITECTURE,
            edits=[{"site": one.site.value, "merge": one.merge, "layers": list(one.layers)} for one in edits],
            changed={f"direction.{layer}": {"norm": float(v.norm())} for layer, v in directions.items()},
            types=dict(Counter({"F32": len(directions)})),
            bytes_written=stage.stat().st_size,
            sha256=file_digest(stage),
            parts_sha256=parts_digest(stage),
        )
        describe(record.content())
    return record


def _loaded(path: str | Path) -> Edit:
    if os.path.isdir(os.path.expanduser(path)):
        raise EditError(f"{path} is a folder: give the edit's own file (of an artefact, sea/edit-0.safetensors in it)")
    return Edit.load(path)


def _directions(edits: Sequence[Edit]) -> dict[int, Tensor]:
    """Decoder layer -> what is added behind it, float32: of all edits together, with their strengths."""
    found: dict[int, Tensor] = {}
    for edit in edits:
        edit.refuse_nothing("its control vector would be zero: take another one")
        edits[0].base.check(edit.base, edit.layers, what="another of these edits' model")
        if not edit.is_constant:
            raise NotExactError(
                f"a control vector adds one vector behind each layer, and this edit does more (merge {edit.merge}, "
                f"rank {max(map(sum, edit.ranks.values()))}, {', '.join(edit.extra) or 'nothing'} beside): {_FOLD}"
            )
        if edit.site is not Site.BLOCK:
            raise NotExactError(
                f"this edit adds its vectors at {edit.site.value}, and llama.cpp adds a control vector behind the "
                f"whole layer (the site block): {_FOLD}"
            )
        if 0 in edit.layers:
            raise NotExactError(
                "llama.cpp adds no control vector behind layer 0, and this edit does: leave that layer out where the "
                f"edit is made (--layers 1-{edit.base.num_layers - 1}), or {_FOLD}"
            )
        for layer in edit.layers:
            one = edit.maps[layer]
            assert isinstance(one, AffineMap)
            assert one.constant is not None
            moved = edit.alpha * one.constant.double()
            found[layer] = found[layer] + moved if layer in found else moved
    return {layer: moved.to(torch.float32) for layer, moved in sorted(found.items())}


def _write(target: Path, model_type: str, directions: dict[int, Tensor]) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(target), ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
    for layer, vector in directions.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
