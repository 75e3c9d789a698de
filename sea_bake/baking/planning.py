"""What can be done with an edit on a base, said before any heavy work; ``bake`` obeys the same verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sea_bake.baking.exactness import Exactness, exactness, of_edit
from sea_bake.baking.granting import holder
from sea_bake.baking.llamas import why_not
from sea_bake.baking.open_base import OpenBase, check_edits, opened
from sea_bake.baking.writers import writers_of
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, NotExactError
from sea_bake.io.garbage import uncollected
from sea_bake.model.anatomy import Site
from sea_bake.model.checkpoint.leftovers import remark
from sea_bake.model.sites import planned_layers, ranges
from sea_bake.model.source import ModelSource
from sea_bake.model.travelling import MERGES

_MERGED = (
    "the base is a base with an adapter, so an adapter of the edit would belong to the two merged, which no server has"
)


@dataclass(frozen=True)
class Plan:
    """The verdicts on one base.

    Attributes:
        base, family, architecture: the model: its name, its model_type and its class.
        how: what ``bake --how auto`` does with the given edits ("fold" or "insert"); None without edits.
        why: the reason, for people.
        rank: rank that an adapter of the given edits has; None where there is none.
        rows: one verdict per edit, or per site and merge of a linear edit where no edit was given.
        constants: where no edit was given, per site: whether a constant folds, in which layers, and into what.
        kinds: one entry per kind of layers: its layers, and the module of each site that it has (None: it has none).
    """

    base: str
    family: str
    architecture: str
    how: str | None
    why: str
    rank: int | None
    rows: list[dict[str, Any]]
    constants: list[dict[str, Any]]
    kinds: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@uncollected()
def plan(model: str | Path | ModelSource, edits: Sequence[Edit] = (), *, revision: str | None = None) -> Plan:
    """Fold, adapter or insert only, and why; from the headers of the checkpoint, no weight is read.

    Args:
        model: the base: folder (or PEFT adapter that names its base) or Hub id.
        edits: the edits. Default: every site and merge is judged.
        revision: see :func:`sea_bake.model.loading.load_model`.

    Raises:
        SeaBakeError: the base cannot be edited at all, or an edit belongs to another model.
    """
    source = ModelSource.parse(model, revision)
    with opened(source, None) as base:
        if base.plain is None:  # or transformers cannot build it
            planned_layers(base.config, Site.MLP if base.row.streams else Site.BLOCK)
        check_edits(base, edits)
        names = ("merge", "feature", "parts", "alpha")
        settings = [
            {"site": edit.site.value, "map": _map(edit), **{name: getattr(edit, name) for name in names}}
            for edit in edits
        ]
        rows = [one | asdict(verdict(base, edit)) for one, edit in zip(settings, edits)]
        if not edits:
            for site in sites_of(base):
                layers = base.layers_with(site)
                biased = is_biased(base, site, layers)
                for merge in MERGES:
                    found = exactness(base.row, site, merge, biased=biased)
                    found = _on_disk(base, site, layers[0], found) if layers else found
                    kind = {"map": merge, "merge": merge, "feature": "identity"}
                    rows.append({"site": site.value, **kind, **asdict(found)})
            kind = {"map": "any", "merge": "any", "feature": "Φ"}
            rows.append({"site": "any", **kind, **asdict(exactness(base.row, Site.MLP, "sum", "Φ"))})
        how, why = choose(base, edits) if edits else (None, "")
        adapters = bool(edits) and all(row["adapter"] for row in rows)
        rank = _rank(edits) if adapters else None
        constants = [] if edits else [_constant(base, site) for site in sites_of(base)]
        return Plan(
            base.source.name,
            base.row.model_type,
            base.architecture,
            how,
            why,
            rank,
            rows,
            constants,
            _kinds(base),
        )


def sites_of(base: OpenBase) -> list[Site]:
    """What can be edited in some layer of a base, named modules behind the usual three."""
    return [site for site in base.row.sites if site in tuple(Site) or base.layers_with(site)]


def _map(edit: Edit) -> str:
    """SEA's merge; of another map, what it is made of."""
    low_rank = ["low rank"] if any(map(any, edit.ranks.values())) else []
    return edit.merge if edit.is_sea else " + ".join([*low_rank, *edit.extra])


def _rank(edits: Sequence[Edit]) -> int:
    """The largest rank of what all edits do to one writer."""
    found: dict[tuple[Site, int], int] = {}
    for edit in edits:
        for layer, (kept, dropped) in edit.ranks.items():
            key = (edit.site.written_by, layer)
            rank = {"both": kept + dropped, "positive": kept, "negative": dropped}[edit.parts]
            found[key] = found.get(key, 0) + rank
    return max(found.values())


def _constant(base: OpenBase, site: Site) -> dict[str, Any]:
    """Where a constant of a site folds."""
    found: dict[Exactness, list[int]] = {}
    for layer in base.layers_with(site):
        held = holder(base, site, [layer])
        one = exactness(
            base.row, site, "sum", holder=held, extra=("constant",), is_constant=True, is_llama=not why_not(base)
        )
        found.setdefault(_on_disk(base, site, layer, one), []).append(layer)
    best, layers = next(((one, layers) for one, layers in found.items() if one.fold), (None, []))
    why = "; ".join(dict.fromkeys(one.why for one in found)) or "no layer has this site"
    return {"site": site.value, "fold": best is not None, "layers": ranges(layers) if layers else "", "why": why}


def _kinds(base: OpenBase) -> list[dict[str, Any]]:
    kinds: dict[tuple[tuple[str, str | None], ...], list[int]] = {}
    sites = [site for site in sites_of(base) if site is not Site.BLOCK]
    for layer in range(base.numbers.num_hidden_layers):
        parts = base.layer_parts(layer)
        places = {site.value: base.row.place(site, parts) for site in sites}
        modules = {site: place.module if place else None for site, place in places.items()}
        key = tuple((site, module) for site, module in modules.items() if module or ":" not in site)
        kinds.setdefault(key, []).append(layer)
    return [{"layers": ranges(layers), **dict(key)} for key, layers in kinds.items()]


def by_settings(base: OpenBase, edit: Edit, *, as_llama: bool = True) -> Exactness:
    """The exactness of an edit on this base's family, biases included; however the writers are stored.

    Args:
        as_llama: name that way out, where the base can be rewritten.
    """
    where = base, edit.site, edit.layers
    held = holder(*where) if "constant" in edit.extra else None
    return of_edit(base.row, edit, biased=is_biased(*where), holder=held, is_llama=as_llama and not why_not(base))


def verdict(base: OpenBase, edit: Edit) -> Exactness:
    """The exactness of an edit on a base on disk."""
    return _on_disk(base, edit.site, edit.layers[0], by_settings(base, edit))


def choose(base: OpenBase, edits: Sequence[Edit]) -> tuple[str, str]:
    """("fold" or "insert", why): what ``--how auto`` does."""
    if clash := _clash(edits):
        return "insert", clash
    for edit in edits:
        found = verdict(base, edit)
        if not found.fold:
            return "insert", f"no exact fold at {edit.site.value}: {found.why}"
    return "fold", "; ".join(dict.fromkeys(verdict(base, edit).why for edit in edits))


def refuse_fold(base: OpenBase, edits: Sequence[Edit], what: str = "a fold") -> None:
    """Raise NotExactError unless every edit folds exactly."""
    if clash := _clash(edits):
        raise NotExactError(f"{what} of these edits would not be exact: {clash}. Bake them with --how insert.")
    for edit in edits:
        found = by_settings(base, edit, as_llama=what == "a fold")
        if not found.fold:
            none = edit.site is Site.BLOCK or "constant" in edit.extra
            stand_in = "" if none else ", or fold the best stand-in: --how fold --approximate"
            raise NotExactError(_refusal(what, base, edit, found.why, stand_in))


def _clash(edits: Sequence[Edit]) -> str:
    """What two edits are not together, though each is by itself: a length that is divided out may have a constant
    added before, but none behind.
    """
    for i, edit in enumerate(edits):
        for later in edits[i + 1 :] if edit.merge == "l2" and not edit.site.is_input else ():
            if later.site is edit.site and "constant" in later.extra and {*edit.layers} & {*later.layers}:
                return f"a constant is added at {edit.site.value} to what an l2 merge has rescaled, token by token"
    return ""


def refuse_adapter(base: OpenBase, edits: Sequence[Edit]) -> None:
    """Raise NotExactError unless a LoRA adapter carries every edit exactly."""
    refuse_fold(base, edits, "an adapter")
    for edit in edits:
        found = by_settings(base, edit)
        if not found.adapter:
            raise NotExactError(_refusal("an adapter", base, edit, found.why, ", or --how fold"))
    if left := base.checkpoint.left_over:
        raise CheckpointError(
            f"{base.source.name}: {remark(left)}. Who loads an adapter loads that base as it stands, and transformers "
            "believes the word: take quantization_config out of its config.json first, or bake with --how fold."
        )
    if base.source.is_adapter:
        raise CheckpointError(
            f"{base.source.name}: {_MERGED}. Bake with --how fold, which merges both; or merge the base's adapter "
            "once (PeftModel.merge_and_unload(), then save_pretrained) and bake an adapter of the merged model."
        )


def is_biased(base: OpenBase, site: Site, layers: Sequence[int]) -> bool:
    """Whether any writer of a site has a bias on disk; of ``block``, whether every layer has such a writer."""
    written_by = site.written_by
    if base.is_quantised or (site is Site.BLOCK and not {*layers} <= {*base.layers_with(written_by)}):
        return False
    biased = [any(writer.is_bias for writer in writers_of(base, written_by, layer)) for layer in layers]
    return all(biased) if site is Site.BLOCK else any(biased)


def _on_disk(base: OpenBase, site: Site, layer: int, found: Exactness) -> Exactness:
    """The verdict, given also how the writers are stored."""
    if not found.fold:
        return found
    try:
        writers_of(base, site.written_by, layer)
    except CheckpointError as error:
        return Exactness(False, False, str(error))
    if found.adapter and base.source.is_adapter:
        return Exactness(True, False, f"{found.why}; {_MERGED}")
    return found


def _refusal(what: str, base: OpenBase, edit: Edit, why: str, other: str) -> str:
    return (
        f"{what} of this edit would not be exact: site {edit.site.value}, merge {edit.merge}, feature {edit.feature}, "
        f"family {base.row.model_type}: {why}. Bake it with --how insert, which is exact for every edit{other}."
    )
