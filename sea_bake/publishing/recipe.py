"""The recipe that a published artefact carries: made from its own records, runnable, and held by ``reproduce``."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sea_bake.artefact import Artefact, BakeRecord
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError
from sea_bake.io.edits import EDIT_FILE
from sea_bake.io.files import file_digest
from sea_bake.io.signatures import arguments
from sea_bake.methods.table import METHODS, resolved
from sea_bake.model.fingerprint import BaseModel
from sea_bake.publishing.hub_errors import check_repo_id
from sea_bake.publishing.tolerance import MEASURE, Tolerance

SCHEMA = 1
FORMAT = "sea_bake.activations.prompt_format:prompt_format"
_HEAD = """\
# How this model was made, and a recipe to make it again: https://arxiv.org/abs/2405.09719
#
#   pip install sea-bake=={version}
#   sea-bake reproduce REPO_OR_FOLDER       refit from this recipe, and compare
#   sea-bake run sea_bake.yaml              make the model anew
#
# Everything under `provenance` is a record, and no setting.
"""
_REASON = (
    "a relative change of the cross-covariance by `noise` turns a span by at most noise * s_1 / (s_k - s_k+1); "
    "`noise` is what another batch size was seen to do in this dtype, a hundred times in float32, three times in half "
    "precision; `largest` the cap"
)
_FLAGS = {"limit": "--limit", "K": "-K", "demonstrations": "-d"}
_OF_THE_RECIPE = (
    *("method", "K_positive", "K_negative", "layers", "centre", "heads", "ridge", "direction"),
    *("held_back", "position", "neutral", "max_new_tokens", "seed", "batch_size", "dtype"),
    *arguments(FORMAT),
)
_NO_OPTION = ("name", "split")  # the edit's own name; of the library alone
_NO_SETTING = ("source", "model", "tokenizer", "activations", "prompt_format", "save_activations", "overwrite")


def describe(artefact: str | Path | Artefact, *, model: str | None = None, output: str | None = None) -> dict[str, Any]:
    """The recipe of an artefact as a mapping: from ``sea/bake.json`` and the edits' own headers, and nothing else.

    Args:
        artefact: a folder written by ``bake``, or by an export that carries the edits.
        model: what to call the base, where the records name a local folder.
        output: what to call what the recipe makes; None: as the folder is called.

    Raises:
        CheckpointError: no artefact of ours, a damaged record, or an export without edits.
        EditError: a damaged edit.
    """
    opened = Artefact.open(artefact)
    folder, record = opened.folder, opened.record
    if not opened.edits:
        raise CheckpointError(f"{folder} carries no edits, so there is no recipe to make of it")
    base = model or record.base
    revision = record.revision if base == record.base else None
    origins = opened.bake.origins if opened.bake else {}
    copies = [
        _Copy(name, edit, file_digest(file), origins.get(name))
        for file, edit in zip(opened.edit_files, opened.edits)
        for name in (file.relative_to(folder).as_posix(),)
    ]
    return _described(copies, base, revision, output or folder.name, _bake_settings(opened.bake))


def describe_edit(edit: Edit, sha256: str, *, output: str) -> dict[str, Any]:
    """The same of an edit that is published by itself, as ``EDIT_FILE`` of this digest."""
    return _described([_Copy(EDIT_FILE, edit, sha256)], edit.base.name, edit.base.revision, output, {"how": "auto"})


def can_be_fitted_again(edit: Edit) -> bool:
    """Whether its recipe says what it was fitted on, and so can be followed."""
    return edit.method in METHODS and "imported" not in edit.recipe and bool(edit.recipe.get("demonstrations_sha256"))


@dataclass(frozen=True)
class _Copy:
    """An edit as it lies beside its recipe: its path there, its digest, and its "USER/REPO@COMMIT" if it has one."""

    path: str
    edit: Edit
    sha256: str
    origin: str | None = None

    @property
    def name(self) -> str:
        return Path(self.path).stem


def _described(
    copies: list[_Copy], base: str, revision: str | None, output: str, bake: dict[str, Any]
) -> dict[str, Any]:
    edits = [copy.edit for copy in copies]
    found: dict[str, Any] = {"model": base, "revision": revision, "output": output}
    if all(map(can_be_fitted_again, edits)):
        found["fit"] = [{"name": copy.name, **_fit_settings(copy.edit)} for copy in copies]
    else:
        found["edits"] = [copy.path for copy in copies]
    found |= {"bake": bake, "verify": {}}
    found["provenance"] = {
        "schema": SCHEMA,
        "versions": _plain(edits[0].recipe.get("versions")),
        "base": {
            "name": base,
            "revision": revision,
            "model_type": edits[0].base.model_type,
            "dtype": edits[0].base.dtype,
            "fingerprint_sha256": fingerprint(edits[0].base),
        },
        "edits": list(map(_edit_record, copies)),
        "commands": _commands(found, copies),
        "tolerance": {
            "measure": MEASURE,
            **asdict(Tolerance.of(str(edits[0].recipe.get("dtype")))),
            "reason": _REASON,
        },
    }
    return found


def dump(artefact: str | Path | Artefact, *, model: str | None = None, output: str | None = None) -> str:
    """:func:`describe` as YAML text, with a head that says what to do with it."""
    return _text(describe(artefact, model=model, output=output))


def dump_edit(edit: Edit, sha256: str, *, output: str) -> str:
    """:func:`describe_edit` as such a text."""
    return _text(describe_edit(edit, sha256, output=output))


def _text(described: dict[str, Any]) -> str:
    from importlib.metadata import version

    body = yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=100)
    return _HEAD.format(version=version("sea-bake")) + "\n" + str(body)


def fingerprint(base: BaseModel) -> str:
    """SHA-256 of what a base is known by: the numbers of its configuration, and the sampled weights."""
    data = {"config": base.config, "dtype": base.dtype, "samples": base.samples}
    data |= {"rest": base.rest} if base.rest else {}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def origin(edit: Edit) -> dict[str, Any]:
    """Where an edit's demonstrations are from, as it records it: "kind", "source", ...; empty where it does not."""
    found = edit.recipe.get("demonstrations_from")
    return found if isinstance(found, dict) else {}


def datasets_of(edits: Sequence[Edit]) -> list[str]:
    """Hub ids of the data sets that edits were fitted on, where they came from the Hub. Raises PublishError."""
    found = [one for one in map(origin, edits) if one.get("kind") == "hub"]
    names = [str(one.get("source")).partition(":")[0] for one in found]
    for name in names:
        check_repo_id(name, "the data set that the edit records")
    return names


def _fit_settings(edit: Edit) -> dict[str, Any]:
    """The settings of ``fit:``, in the section's own order; what the edit does not record is left out."""
    recipe, source = edit.recipe, origin(edit)
    known: dict[str, Any] = {
        **{key: recipe[key] for key in _OF_THE_RECIPE if key in recipe},
        **{key: source[key] for key in ("format", "limit", "shuffle_seed", "split") if key in source},
        **{key: getattr(edit, key) for key in ("merge", "feature", "parts") if edit.projectors},
        "alpha": edit.alpha,
        "demonstrations": source.get("source"),
        "site": edit.site.value,
    }
    if known.get("max_new_tokens") is None:  # of the prompt alone nothing is generated
        known.pop("max_new_tokens", None)
    known.setdefault("held_back", 0)  # which no edit of older versions was fitted with
    return {key: _plain(known[key]) for key in fit_defaults() if key in known}


def _bake_settings(record: BakeRecord | None) -> dict[str, Any]:
    if record is None or record.approximation is None:
        return {"how": record.how if record else "auto"}
    source = (record.approximation.get("calibration") or {}).get("source")
    return {"how": "fold", "approximate": True, "calibration": None if source in ("builtin", "given") else source}


def fit_defaults() -> dict[str, Any]:
    """The settings of a recipe's ``fit:`` with their defaults, in its order: those of three functions."""
    found = arguments("sea_bake.demonstrations:load") | arguments(FORMAT) | arguments("sea_bake.fitting:fit")
    return {"demonstrations": "builtin"} | {n: one.default for n, one in found.items() if n not in _NO_SETTING}


def _defaults_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, with those that the method of these settings has in the place of None."""
    own = resolved({"method": settings.get("method")})
    return fit_defaults() | own | {"site": own["site"].value}


def _edit_record(copy: _Copy) -> dict[str, Any]:
    edit, recipe, source = copy.edit, copy.edit.recipe, origin(copy.edit)
    return {
        "name": copy.name,
        "file": copy.path,
        "sha256": copy.sha256,
        **({"hub": copy.origin} if copy.origin else {}),
        "demonstrations": {
            **{key: source.get(key) for key in ("kind", "source", "file_sha256")},
            "sha256": recipe.get("demonstrations_sha256"),
            "count": recipe.get("demonstrations"),
        },
        "seeds": {"seed": recipe.get("seed"), "shuffle_seed": source.get("shuffle_seed"), "load": source.get("seed")},
        "neutral_sha256": recipe.get("neutral_sha256"),
        "device": recipe.get("device"),
        "ranks": {layer: list(ranks) for layer, ranks in edit.ranks.items()},
        "versions": _plain(recipe.get("versions")),
    }


def _commands(recipe: dict[str, Any], copies: list[_Copy]) -> list[str]:
    """The recipe of these edits as lines for a shell, with what differs from the defaults."""
    base, output = recipe["model"], recipe["output"]
    files = [f"{copy.name}.safetensors" if recipe.get("fit") else copy.origin or copy.path for copy in copies]
    at = ["--revision", str(recipe["revision"])] if recipe["revision"] else []
    lines = [
        ["sea-bake", "fit", base, *at, "-o", file, *_options(settings, _defaults_of(settings))]
        for file, settings in zip(files, recipe.get("fit", ()))
    ]
    lines.append(["sea-bake", "bake", base, *at, *files, "-o", output, *_options(recipe["bake"], {"how": "auto"})])
    lines.append(["sea-bake", "verify", output, *(["--base", base, *at] if "/" in base else [])])
    return [shlex.join(line) for line in lines]


def _options(settings: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    settings = dict(settings)
    if settings.get("K_positive") == settings.get("K_negative") is not None:
        settings["K"] = settings.pop("K_positive")
        del settings["K_negative"]
    words: list[str] = []
    for key, value in settings.items():
        if value is None or value == defaults.get(key) or key in _NO_OPTION:
            continue
        flag = _FLAGS.get(key, "--" + key.replace("_", "-"))
        if isinstance(value, bool):
            words += [flag if value else f"--no-{flag[2:]}"]
        else:
            words += [flag, _spelt(value)]
    return words


def _spelt(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "PRIMER.jsonl"  # a user's own question-answer pairs, which the recipe above holds
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    """JSON data only, whatever a header may hold: what YAML can say without tags."""
    return json.loads(json.dumps(value, default=str))
