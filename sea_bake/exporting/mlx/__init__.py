"""MLX: an adapter in the folder that mlx-lm reads (``--adapter-path``). A fold needs no export: it is read as it is."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sea_bake.artefact import Artefact
from sea_bake.artefact.mlx_record import MlxRecord
from sea_bake.artefact.output import check_folder, staged
from sea_bake.baking.stored_pairs import stored_pairs
from sea_bake.errors import CheckpointError, FamilyError
from sea_bake.io.apart import check_apart
from sea_bake.io.files import write_json
from sea_bake.io.staging import need_space

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
# Those whose modules mlx-lm calls as transformers does. scripts/check_mlx holds a tiny model of each against PEFT.
MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "granite", "stablelm", "mixtral", "qwen2_moe",
    "qwen3_moe",
)  # fmt: skip
_FOLD = "Bake it with --how fold instead: mlx-lm reads a fold as it is, with no export."
_INSERT = (
    "mlx-lm runs no code of a model's own. Where sea-bake plan says that the edit folds, bake it with --how fold "
    "(mlx-lm reads that as it is) or --how adapter (export that)."
)
_ROOM = 1 << 20


def export_mlx(artefact: str | Path | Artefact, output: str | Path, *, overwrite: bool = False) -> MlxRecord:
    """Write an adapter artefact as mlx-lm reads adapters: adapters.safetensors and adapter_config.json.

    mlx-lm computes ``y + scale (x a) b``, so ``a`` [in, rank] and ``b`` [rank, d] are PEFT's A and B transposed, and
    the scale is 1. It puts LoRA modules into its last ``num_layers`` layers; what it makes there of modules that the
    edit leaves alone adds zero. Neither mlx nor the base is needed.

    Args:
        artefact: folder written by sea-bake bake --how adapter.
        output: folder to write; it appears whole or not at all.
        overwrite: replace an earlier output.

    Raises:
        CheckpointError: no artefact; an insert, a fold or an export; fused experts; or a damaged adapter.
        FamilyError: a family whose modules mlx-lm does not have, or calls otherwise.
        OutputError: the output exists, or the disk is too small.
    """
    target = check_folder(output, overwrite=overwrite)
    opened = Artefact.open(artefact)
    _refuse(opened)
    check_apart(target, [opened.folder])
    pairs = stored_pairs(opened.folder, experts=_FOLD)
    base = opened.edits[0].base
    if base.model_type not in MODEL_TYPES:
        raise FamilyError(
            f"mlx-lm does not have {base.model_type}, or calls its modules otherwise; adapters are exported for "
            f"{', '.join(MODEL_TYPES)}. Where mlx-lm runs the base itself, bake the edit with --how fold: it reads a "
            "fold as it reads the base."
        )
    found = [re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path) for path in pairs]
    for path, match in zip(pairs, found):
        if match is None or int(match[1]) >= base.num_layers:
            raise CheckpointError(f"{opened.folder} adapts {path}, which mlx-lm's {base.model_type} lacks. {_FOLD}")
    places = [(int(match[1]), match[2]) for match in found if match]
    tensors = _turned(pairs)
    need_space(target.parent, sum(t.numel() * t.element_size() for t in tensors.values()) + _ROOM)
    rank = len(next(iter(pairs.values()))[0])
    record = MlxRecord(
        output=target,
        base=opened.base_name,
        revision=opened.revision,
        model_type=base.model_type,
        rank=rank,
        num_layers=base.num_layers - min(layer for layer, _ in places),
        modules=list(pairs),
        edits=[{"site": edit.site.value, "merge": edit.merge, "layers": list(edit.layers)} for edit in opened.edits],
    )
    parameters = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted({part for _, part in places})}
    config = {"fine_tune_type": "lora", "num_layers": record.num_layers, "lora_parameters": parameters}
    with staged(target, overwrite=overwrite) as stage:
        save_file(tensors, str(stage / WEIGHTS), metadata={"format": "mlx"})
        write_json(stage / CONFIG, config | {"model": record.base})
        record.files.update({name: (stage / name).stat().st_size for name in (WEIGHTS, CONFIG)})
        record.write(stage)
    return record


def _refuse(opened: Artefact) -> None:
    """Raise CheckpointError for what is no adapter, with the cure."""
    if opened.kind == "adapter":
        return
    what, cure = {
        "insert": ("has inserted layers", _INSERT),
        "fold": (
            "is a fold, which needs no export",
            f'mlx-lm reads it as it reads its base: mlx_lm.load("{opened.folder}"). To swap the edit per request, '
            "bake it with --how adapter and export that.",
        ),
    }.get(opened.kind, ("is an export already", "Give the adapter that it was made from (bake --how adapter)."))
    raise CheckpointError(f"{opened.file or opened.folder} {what}. {cure}")


def _turned(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The tensors by mlx-lm's names: lora_a [in, rank] and lora_b [rank, d]."""
    found = {}
    for path, (A, B) in pairs.items():
        if not bool(torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise CheckpointError(f"the adapter's pair for {path} is not finite: bake the edit once more")
        found[f"{path}.lora_a"], found[f"{path}.lora_b"] = A.T.contiguous(), B.T.contiguous()
    return found
