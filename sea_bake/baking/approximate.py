"""Approximate fold: on request only, the best linear stand-in for edits that no weight can carry exactly.

Where the edited output y is not a linear function of the site's own output h (a per-token length, Φ-SEA), M = s I + B A
is fitted by least squares (``regression``) on calibration texts, with all edits live, and folded like an exact edit: it
acts on the writer's output, so one M serves a weight, its bias and all experts alike. This is the one way of baking
that loads the model. Its error, on held-out texts, stands in the artefact, which is never called equal to the edit.

All layers are fitted in one pass, each on what it sees in the truly edited model. Measured on SmolLM2-135M (mlp, l2, 20
layers; mean KL from the true edit per held-out token, the base's own: 0.0504): one pass 0.0013; one after the other,
each on its own edit behind the stand-ins below it, 0.0013; the same towards the truly edited output, 0.0023. And the
matrix of the sum merge, folded as it stands: 0.0490. So one pass, which is also the cheapest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from sea_bake import demonstrations as demos
from sea_bake.activations.prompt_format import PromptFormat
from sea_bake.artefact.output import staged
from sea_bake.artefact.record import BakeRecord
from sea_bake.baking.calibration import HELD_OUT, Distance, Place, Reference, Text, moments, texts
from sea_bake.baking.exactness import Exactness
from sea_bake.baking.fold import fold, write_folded
from sea_bake.baking.linear import LinearEdit, changes
from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.planning import by_settings
from sea_bake.baking.regression import best_ridge, solve
from sea_bake.baking.shift_test import measure
from sea_bake.baking.writers import find_writers
from sea_bake.demonstrations import Demonstration
from sea_bake.edit import Edit
from sea_bake.errors import DemonstrationError, NotExactError, SettingError
from sea_bake.io import progress
from sea_bake.io.staging import scratch_folder
from sea_bake.model.anatomy import Site
from sea_bake.model.loading import load_model, load_tokenizer

_RANK = 8  # the least that a stand-in gets: an edit of rank 1 is no rank-1 map once it is rescaled per token
_DEMONSTRATIONS = 512  # used of a calibration file, at most: the first ones
_MEMORY = 4 << 30  # bytes of moments at a time, 48 d² per layer; beyond it the texts are run once per group of layers


def approximate(
    base: OpenBase,
    edits: Sequence[Edit],
    target: Path,
    *,
    calibration: str | Path | Sequence[Demonstration] | None = None,
    rank: int | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> BakeRecord:
    """Fold the edits, each exactly where that can be, and as a linear stand-in elsewhere.

    Args:
        calibration: demonstrations, or the file of some, whose prompts with both answers are run; None takes the
            built-in ones. Every second prompt is held out, and the errors are measured on those.
        rank: of each stand-in; None takes twice the edits' own k+ + k-, and at least 8.

    Raises:
        NotExactError: an edit of the residual stream, or one that the stand-in does not keep; with the numbers.
        DemonstrationError: unreadable calibration texts, or too few for the rank.
    """
    verdicts = [by_settings(base, edit) for edit in edits]
    if all(verdict.fold for verdict in verdicts):
        return fold(
            base, edits, target, why=f"exact, so no stand-in: {verdicts[0].why}", overwrite=overwrite, copy=copy
        )
    ranks = _check(base, edits, verdicts, rank)
    source = "builtin" if calibration is None else calibration
    given = demos.load(source) if isinstance(source, str | Path) else list(source)
    given = given[:_DEMONSTRATIONS]
    find_writers(base, edits)
    linear = [edit if verdict.fold else edit.with_settings(merge="sum") for edit, verdict in zip(edits, verdicts)]
    details: dict[str, Any] = {"measured": measure(base, linear)}  # the length test belongs to an exact l2 fold

    folder = base.checkpoint.folder
    model = load_model(folder)
    found = texts(model, load_tokenizer(folder), given, PromptFormat.shared([edit.recipe for edit in edits]))
    stand_ins, layers = _stand_ins(model, edits, ranks, [text for text in found if text.part != HELD_OUT])
    reference = Reference(model, edits, [text for text in found if text.part == HELD_OUT], stand_ins)
    del model
    for entry in layers:
        fit = reference.fits[Site(entry["site"]), entry["layer"]]
        entry |= {"share": fit.share, "r2": fit.r2}
    approximation: dict[str, Any] = {
        "calibration": {
            "source": Path(source).name if isinstance(source, str | Path) else "given",
            "demonstrations": len(given),
            "sha256": demos.digest(given),
            "tokens": sum(text.count for text in found if text.part != HELD_OUT),
            "held_out_tokens": sum(text.count for text in found if text.part == HELD_OUT),
        },
        "layers": layers,
    }
    _refuse_empty(layers)
    why = "the best linear stand-in, as asked for: " + next(v.why for v in verdicts if not v.fold)
    with scratch_folder(target) as scratch:
        trial = scratch / target.name
        record = write_folded(
            base, edits, changes(edits, stand_ins), trial, why=why, details=details, overwrite=False, copy=copy
        )
        approximation["end_to_end"] = _end_to_end(reference.distance(load_model(trial)), reference.base)
        details["approximation"] = approximation
        with staged(target, overwrite=overwrite) as stage:
            for path in trial.iterdir():
                os.rename(path, stage / path.name)
            record = replace(record, output=target, details=details)
            record.write(stage, edits)
    return record


def _check(base: OpenBase, edits: Sequence[Edit], verdicts: Sequence[Exactness], rank: int | None) -> dict[Place, int]:
    """Place -> rank of its stand-in, for all places of edits that do not fold exactly."""
    width = min(one.dim for edit in edits for one in edit.maps.values())
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= width):
        raise SettingError(f"rank = {rank!r}: a stand-in has a rank from 1 to the model's width, {width}")
    for edit, verdict in zip(edits, verdicts):
        what = "of site block" if edit.site is Site.BLOCK else "with a constant" if "constant" in edit.extra else ""
        if what and not verdict.fold:
            raise NotExactError(
                f"an edit {what} has no linear stand-in: {verdict.why}. "
                "Bake it with --how insert, which is exact for every edit."
            )
    places = sorted({(e.site, layer) for e, verdict in zip(edits, verdicts) if not verdict.fold for layer in e.layers})
    own = {
        (site, layer): sum(sum(e.ranks[layer]) for e in edits if e.site is site and layer in e.layers)
        for site, layer in places
    }
    return {place: rank or min(width, max(_RANK, 2 * own[place])) for place in places}


def _stand_ins(
    model: Any, edits: Sequence[Edit], ranks: dict[Place, int], calibration: Sequence[Text]
) -> tuple[dict[Place, LinearEdit], list[dict[str, Any]]]:
    """M of each place, and what is to be said of it."""
    fewest = min(sum(text.count for text in calibration if text.part == part) for part in (0, 1))
    if fewest < max(ranks.values()):
        raise DemonstrationError(
            f"too few calibration texts: {fewest} distinct tokens in each fold do not determine a map of rank "
            f"{max(ranks.values())}. Give more with --calibration, or a lower --rank."
        )
    places, changes, layers = list(ranks), {}, []
    width = max(one.dim for edit in edits for one in edit.maps.values())
    group = max(1, _MEMORY // (48 * width**2))
    for i in range(0, len(places), group):
        found = moments(model, edits, places[i : i + group], calibration)
        with progress.bar("least squares", len(found), "layer") as advance:
            for place, (one, other, repeated) in found.items():
                ridge = best_ridge((one, other), ranks[place])  # on tokens that the two do not share
                M = changes[place] = solve(one + other + repeated, ranks[place], ridge)
                layers.append(
                    {"site": place[0].value, "layer": place[1], "rank": M.rank, "scale": M.scale, "ridge": ridge}
                )
                advance(1)
    return changes, layers


def _refuse_empty(layers: Sequence[dict[str, Any]]) -> None:
    shares = [entry["share"] for entry in layers]
    lost = sum(not share > 0 for share in shares)
    if 2 * lost > len(shares):
        raise NotExactError(
            f"no linear stand-in keeps this edit: on held-out texts it explains nothing of the edit's change at {lost} "
            f"of {len(shares)} layers (median share {median(shares):.3g}). Bake it with --how insert, which is exact."
        )


def _end_to_end(found: Distance, base: Distance) -> dict[str, Any]:
    """The numbers that the artefact promises, or a refusal."""
    if not found.kl < base.kl:
        raise NotExactError(
            f"the linear stand-in is no nearer to the edit than the unedited base: on held-out texts "
            f"KL(edit ‖ stand-in) is {found.kl:.3g} per token, KL(edit ‖ base) {base.kl:.3g}; top-1 agreement "
            f"{found.top1:.1%} and {base.top1:.1%}. Bake it with --how insert, which is exact."
        )
    return {
        "tokens": found.tokens,
        "kl": found.kl,
        "top1": found.top1,
        "base_kl": base.kl,
        "base_top1": base.top1,
        "kl_of_all_tokens": found.all_kl,  # what ``verify`` can see again: with those that calibration texts share
    }
