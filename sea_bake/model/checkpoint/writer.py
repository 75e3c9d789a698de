"""Bring a checkpoint's files into a new folder: shards by hard link or copy, everything else byte for byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sea_bake.errors import CheckpointError
from sea_bake.io.files import json_text, read_json, write_json
from sea_bake.io.regular import SKIPPED_FOLDERS
from sea_bake.model.suffixes import CODE, WEIGHTS, ends

_INDICES = (".bin.index.json", ".safetensors.index.json")
# Configurations in which a base may be named by the folder that it lay in.
NAMED = ("config.json", "tokenizer_config.json")
NOT_CARRIED = {*SKIPPED_FOLDERS, "sea"}


def place(source: Path, target: Path, *, copy: bool = False) -> bool:
    """Hard-link a file (links resolved first), or copy it where that is asked for or needed. True when linked.

    Raises:
        CheckpointError: the target is there already: it may be a link to somebody's own file, and is not written to.
    """
    refuse_existing(target)
    source = source.resolve()
    if not copy:
        try:
            os.link(source, target)
            return True
        except OSError:
            pass  # another file system, or one without hard links
    shutil.copyfile(source, target)
    return False


def refuse_existing(target: Path) -> None:
    """Raise CheckpointError where a file of an output is there already: two of its parts claim one name."""
    if os.path.lexists(target):
        raise CheckpointError(f"{target.name} is listed twice, as two different files: nothing was written")


def linkable(source: Path, target_folder: Path) -> bool:
    """Whether files of ``source`` can probably be hard-linked into a folder: both lie on one file system."""
    existing = next(p for p in (target_folder, *target_folder.parents) if p.exists())
    return source.resolve().stat().st_dev == existing.stat().st_dev


def carry(source: Path, target: Path, *, written: Iterable[str], shards: Iterable[str]) -> list[str]:
    """Copy every other file of a checkpoint: tokenizer, generation config, templates, licence, card, sub-folders.

    Args:
        written: file names that the caller writes itself.
        shards: weight files that the caller has placed.

    Returns:
        Names that were left out on purpose: weights in other forms, code, and links to folders.
    """
    left_out: list[str] = []
    ours = {*written, *shards}
    for folder, folders, files in os.walk(source):
        left_out += [str((Path(folder) / f).relative_to(source)) for f in folders if (Path(folder) / f).is_symlink()]
        folders[:] = [f for f in folders if f not in NOT_CARRIED]
        for name in files:
            path = Path(folder) / name
            relative = path.relative_to(source)
            if str(relative) in ours:
                continue
            # Never code either: an artefact's only code is modeling_sea.py.
            if ends(name, WEIGHTS + CODE) or name.endswith(_INDICES):
                left_out.append(str(relative))
                continue
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            if str(relative) in NAMED:
                (target / relative).write_bytes(public_bytes(path))
            else:
                shutil.copyfile(path, target / relative)
    return sorted(left_out)


def public_bytes(path: Path, config: dict[str, Any] | None = None) -> bytes:
    """A configuration's bytes; where it says from which local folder it was loaded, without that.

    Args:
        config: what is to be kept of it. Default: all.

    Raises:
        CheckpointError: it cannot be read.
    """
    stands = read_json(path)
    kept = public(stands if config is None else config)
    return path.read_bytes() if kept == stands else json_text(kept).encode()


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the local paths that transformers and tokenizers note in it; a Hub id stays."""
    return {
        key: public(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not (key in ("_name_or_path", "name_or_path") and isinstance(value, str) and _is_path(value))
    }


def _is_path(name: str) -> bool:
    return name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1 or name[1:3] in (":/", ":")


def keep_tokenizer_class(stage: Path, model_type: str, *, known: Callable[[str], bool] | None = None) -> None:
    """Name the tokenizer's class. AutoTokenizer goes by model_type, which is another one now, when no class is named in
    tokenizer_config.json, and for families whose published names it distrusts (qwen2: many a fine-tune's is wrong).

    Args:
        model_type: the base's.
        known: whether a named class is known to be taken, without transformers.
    """
    path = stage / "tokenizer_config.json"
    has_tokenizer = any((stage / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    config = read_json(path) if path.is_file() else {}
    if not has_tokenizer or (known is not None and known(str(config.get("tokenizer_class") or ""))):
        return
    from transformers.models.auto import tokenization_auto

    name = tokenization_auto.TOKENIZER_MAPPING_NAMES.get(model_type)
    if isinstance(name, tuple):
        name = name[1] or name[0]
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    distrusted = model_type in getattr(tokenization_auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", ())
    if name and (not named or (distrusted and named != name.removesuffix("Fast"))):
        write_json(path, {**config, "tokenizer_class": name})
