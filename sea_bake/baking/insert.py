"""Insert: the base's own files, one small shard of SEA tensors, a patched configuration and ``modeling_sea.py``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sea_bake.artefact.names import CODE, ORIGINALS, SHARD
from sea_bake.artefact.output import staged
from sea_bake.artefact.record import BakeRecord
from sea_bake.baking.open_base import OpenBase
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, FamilyError
from sea_bake.io.files import write_json
from sea_bake.io.staging import need_space
from sea_bake.io.store import write_tensors
from sea_bake.methods.storing import Array
from sea_bake.model.anatomy import FAMILIES, SEA_PREFIX, Site
from sea_bake.model.checkpoint import Checkpoint, carry, place
from sea_bake.model.checkpoint.extended import index_with, renamed_shards
from sea_bake.model.checkpoint.reader import INDEX
from sea_bake.model.checkpoint.writer import NAMED, keep_tokenizer_class, linkable, public, public_bytes
from sea_bake.model.travelling import CONFIGURED, FILE, guarded

_MOVED_ALONG = ("bitsandbytes",)  # seen to put its linears in place through ``set_submodule``
_OWN_BYTES = 8 << 20  # configuration, code, tokenizer: room for what is neither a shard nor the edit


def insert(
    base: OpenBase, edits: Sequence[Edit], target: Path, *, why: str, overwrite: bool = False, copy: bool = False
) -> BakeRecord:
    """Write the base with an SEALayer behind each edited module; see :func:`sea_bake.baking.bake`."""
    checkpoint, folder = base.checkpoint, base.checkpoint.folder
    _refuse_lost(base, edits)
    if base.row.model_type not in FAMILIES and not base.is_quantised:  # discovered on random weights: now on the real
        from sea_bake.baking.shift_test import measure

        measure(base, [edit for edit in edits if edit.site is not Site.BLOCK], folds=False)
    tensors = sea_tensors(edits, base)
    edit_bytes = 2 * sum(array.nbytes for array in tensors.values())
    linked = not copy and linkable(folder, target.parent)
    need_space(target.parent, edit_bytes + _OWN_BYTES + (0 if linked else checkpoint.size()))
    shard_names = renamed_shards(checkpoint, SHARD)
    config = sea_config(base, edits)
    with staged(target, overwrite=overwrite) as stage:
        write_json(stage / "config.json", config)
        if base.plain is None:  # else it is known that the class finds all of its tensors
            from sea_bake.baking.loadable import check_inserted

            check_inserted(base, stage, tensors)
        linked_bytes = 0
        for old, new in shard_names.items():
            if place(folder / old, stage / new, copy=copy):
                linked_bytes += (stage / new).stat().st_size
        write_tensors(tensors, stage / SHARD, {"format": "pt"})
        write_json(stage / INDEX, index_with(checkpoint, shard_names, SHARD, tensors))
        shutil.copyfile(FILE, stage / CODE)
        left_out = carry(folder, stage, written=["config.json", INDEX, CODE], shards=checkpoint.shards)
        known = base.plain.takes_tokenizer if base.plain else None
        keep_tokenizer_class(stage, checkpoint.config["model_type"], known=known)
        patched = _keep_originals(checkpoint, stage)
        record = base.record(
            edits,
            target,
            how="insert",
            why=why,
            architecture=config["architectures"][0],
            left_out=left_out,
            shards=shard_names,
            patched=patched,
        )
        record.write(stage, edits)
        total = sum(f.stat().st_size for f in stage.rglob("*") if f.is_file())
    return replace(record, bytes_linked=linked_bytes, bytes_written=total - linked_bytes)


def _refuse_lost(base: OpenBase, edits: Sequence[Edit]) -> None:
    """An edit behind a bare linear (OPT's fc2) moves along only with quantisers that are known to let it."""
    for edit in edits:
        places = [] if edit.site is Site.BLOCK else [base.place(edit.site, layer) for layer in edit.layers]
        bare = next((place.module for place in places if place.module == place.writer), None)
        if bare and base.quantisation not in (None, *_MOVED_ALONG):
            raise CheckpointError(
                f"{base.source.name} is quantised ({base.quantisation}), and its {edit.site.value} site is the linear "
                f"{bare} itself, which that quantiser may replace together with the edit. "
                "Fit the edit at another site (--site attn or block)."
            )


def _keep_originals(base: Checkpoint, stage: Path) -> list[str]:
    """Names of the base's files that are other ones now, or new; what the base had of them is kept."""
    patched = []
    (stage / ORIGINALS).mkdir(parents=True)
    for name in ("config.json", INDEX, "tokenizer_config.json"):
        source, now = base.folder / name, stage / name
        if now.is_file() and not (source.is_file() and source.read_bytes() == now.read_bytes()):
            patched.append(name)
            if source.is_file() and (name != INDEX or base.index is not None):  # not one that nothing is loaded by
                original = public_bytes(source) if name in NAMED else source.read_bytes()
                (stage / ORIGINALS / name).write_bytes(original)
    return patched


def sea_tensors(edits: Sequence[Edit], base: OpenBase) -> dict[str, Array]:
    """Tensor name in the artefact -> SEA tensor, float32, in NumPy. Edits of one module are numbered as they act."""
    tensors: dict[str, Array] = {}
    taken: dict[str, int] = {}
    for edit in edits:
        for layer in edit.layers:
            module = base.place(edit.site, layer).module
            name = "sea_in" if edit.site.is_input else "sea"
            path = ".".join(part for part in (base.stem, str(layer), module, name) if part)
            number = taken.get(path, 0)
            taken[path] = number + 1
            tensors |= {f"{path}.{number}.{name}": t for name, t in edit.layer_arrays(layer).items()}
    return tensors


def sea_config(base: OpenBase, edits: Sequence[Edit]) -> dict[str, Any]:
    """The base's config.json with ours on top: every key keeps its value but the two that name it, and the guard.

    A class of transformers that is called by name (``LlamaForCausalLM.from_pretrained``) ignores tensors that it does
    not know and would give the unedited base. It cannot do without the number of attention heads, though, and insists
    that it is one: the guard makes that fail with a message that says what to do. Our own configuration class puts the
    true value back.
    """
    config, own = public(base.checkpoint.config), base.classes["AutoConfig"]
    guard = base.plain.guard if base.plain else _guard(base.config)
    names = {name: f"SEA{name}" if base.plain else class_name(name, own) for name in base.classes.values()}
    return {
        **guarded(config, guard),
        "architectures": [names[base.architecture]],
        "model_type": SEA_PREFIX + config["model_type"],
        "auto_map": {auto: f"{Path(CODE).stem}.{names[name]}" for auto, name in base.classes.items()},
        "sea": {
            "edits": [one for edit in edits for one in _config_of(base, edit)],
            "guard": guard,
        },
    }


def class_name(name: str, own: str) -> str:
    """Of our class for one of transformers; with the configuration's, where that class belongs to another by itself.

    Args:
        name: transformers' class.
        own: the base's configuration class.
    """
    import transformers

    theirs = getattr(getattr(transformers, name, None), "config_class", None)
    is_own = theirs is None or name == own or theirs.__name__ == own
    return f"SEA{name}" if is_own else f"SEA{name}{CONFIGURED}{own}"


def _config_of(base: OpenBase, edit: Edit) -> list[dict[str, Any]]:
    """One entry; or one for each module and width, where the site is another in layers of another kind."""
    kinds = {layer: (base.place(edit.site, layer).module, edit.widths[layer]) for layer in edit.layers}
    return [
        {
            "module": module,
            **({"input": True, "width": width} if edit.site.is_input else {}),
            "merge": edit.merge,
            "feature": edit.feature,
            "parts": edit.parts,
            "alpha": edit.alpha,
            **({"extra": list(edit.extra)} if edit.extra else {}),
            "ranks": {str(i): list(ranks) for i, ranks in edit.ranks.items() if kinds[i] == (module, width)},
        }
        for module, width in dict.fromkeys(kinds.values())
    ]


def _guard(config: Any) -> dict[str, Any]:
    """The decoder's number of attention heads, under its key and where it stands in config.json."""
    name = "num_attention_heads"
    text = config.get_text_config(decoder=True)
    part = next((key for key in config.sub_configs if getattr(config, key, None) is text), None)
    own = config if part is None else text
    key = own.attribute_map.get(name, name)
    if not hasattr(own, key):
        raise FamilyError(f"{type(own).__name__} has no {key}: an artefact could be loaded as the unedited base")
    guard = {key: getattr(own, key)}
    return guard if part is None else {part: guard}
