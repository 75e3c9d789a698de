"""The methods of ``fit``: one row each, and the settings that only some of them take."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sea_bake.demonstrations import MIN_TRIPLES
from sea_bake.errors import ActivationError, SettingError, need
from sea_bake.model.anatomy import Site
from sea_bake.model.travelling import FEATURES, MERGES, PARTS

if TYPE_CHECKING:
    from sea_bake.methods.collected import Fit

# Chosen on SmolLM2-135M-Instruct; scripts/ABLATIONS.md has what each other choice does there, at the same KL.
# The paper's setting (mlp, l2, no centring, K = 0.998, for 7B models) makes that model's text fall apart.
DEFAULT_METHOD = "sea"
DEFAULT_K = 0.95
DEFAULT_MERGE = "sum"
DEFAULT_CENTRE = True
DEFAULT_HEADS = 0.05  # the paper's 48 of LLaMA-7B's 1024
DEFAULT_RIDGE = 0.1
# Of ``fit``, taken by some methods only: name -> default. Where a method does not take one, it has to be left alone.
SETTINGS: dict[str, Any] = {
    "K": DEFAULT_K,
    "K_positive": None,
    "K_negative": None,
    "merge": DEFAULT_MERGE,
    "feature": "identity",
    "parts": "both",
    "centre": DEFAULT_CENTRE,
    "heads": DEFAULT_HEADS,
    "ridge": DEFAULT_RIDGE,
    "direction": None,
}
_SHARES = ("K", "K_positive", "K_negative")
_APPLIED = ("merge", "parts")  # how a projector is applied, not how it is found


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        function: of one layer: (neutral, positive, negative, **settings) -> its map.
        title: in words.
        help: what it does, in one line.
        paper: its arXiv id; "" where there is none.
        takes: which of ``SETTINGS``.
        site, layers, alpha: defaults of ``fit``.
        fewest: demonstrations.
        reads: the site whose activations are read, where that is not the edited one.
        only: the one site that can be edited; None: any.
        neutral: whether the neutral texts are read.
        extra: (extra of ours, module) that it needs.
        all_layers: its function is of all layers: (Collected, **settings) -> maps, and what a recipe records of them.
        erases: what it takes out is out at strength 1 alone, so no strength is searched for a KL.
    """

    function: str
    title: str
    help: str
    paper: str
    takes: tuple[str, ...] = ()
    site: Site = Site.ATTN
    layers: str = "last:0.66"
    alpha: float = 1.0
    fewest: int = 2
    reads: Site | None = None
    only: Site | None = None
    neutral: bool = False
    extra: tuple[str, str] | None = None
    all_layers: bool = False
    erases: bool = False

    @property
    def fit(self) -> Fit:
        """(Collected, **settings) -> maps, and what a recipe records of how they came about; imported now."""
        module, _, name = self.function.partition(":")
        found: Any = getattr(importlib.import_module(module), name)
        from sea_bake.methods.collected import each

        return found if self.all_layers else each(found)


METHODS: dict[str, Method] = {
    "sea": Method(
        "sea_bake.methods.sea:projector",
        "SEA",
        "keep what co-varies with the positive, drop what co-varies with the negative",
        "2405.09719",
        (*_SHARES, "merge", "feature", "parts", "centre"),
        layers="last:0.66",  # the paper edits the last 21 of LLaMA-2's 32 layers
        alpha=0.77,
        fewest=3,  # centring leaves of two one direction, which is both kept and dropped
        neutral=True,
    ),
    "mean-difference": Method(
        "sea_bake.methods.mean_difference:shift",
        "mean difference",
        "add the difference of the means (CAA, steering vectors)",
        "2312.06681",
        site=Site.BLOCK,
        layers="middle",
    ),
    "pca": Method(
        "sea_bake.methods.pca:shift",
        "principal direction",
        "add the principal direction of the differences (RepE, control vectors)",
        "2310.01405",
        ("centre",),
        site=Site.BLOCK,
        layers="middle",
        fewest=3,
    ),
    "iti": Method(
        "sea_bake.methods.iti:fit",
        "inference-time intervention",
        "add sigma theta in the attention heads that know best",
        "2306.03341",
        ("heads",),
        site=Site.HEADS,
        layers="all",
        alpha=6.0,  # the paper's 15 was tuned on LLaMA-7B; on SmolLM2 it costs 0.56 nats per token, and 6 costs 0.08
        fewest=10,  # two in each of its folds
        only=Site.HEADS,
        all_layers=True,
    ),
    "leace": Method(
        "sea_bake.methods.leace:eraser",
        "LEACE",
        "erase what a linear classifier could tell positive from negative by",
        "2306.03819",
        fewest=3,
        extra=("leace", "concept_erasure"),
        erases=True,
    ),
    "ablation": Method(
        "sea_bake.methods.ablation:fit",
        "directional ablation",
        "take one direction of the residual stream out of all that is written",
        "2406.11717",
        ("direction",),
        layers="all",
        reads=Site.BLOCK,
        all_layers=True,
        erases=True,
    ),
    "act": Method(
        "sea_bake.methods.act:transport",
        "Linear-AcT",
        "transport every unit from negative to positive, by a scale and a constant",
        "2410.23054",
        fewest=10,
    ),
    "contrastive": Method(
        "sea_bake.methods.contrastive:projector",
        "contrastive directions",
        "keep and drop what co-varies with one of the two and not with the other",
        "",
        (*_SHARES, "merge", "parts", "centre", "ridge"),
        alpha=0.77,
        fewest=3,  # centring leaves of two one direction, which is both kept and dropped
        neutral=True,
    ),
}


def named(method: str) -> Method:
    """The row of a method. Raises SettingError for an unknown one, with the nearest known one."""
    if method in METHODS:
        return METHODS[method]
    near = difflib.get_close_matches(str(method), METHODS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SettingError(f"unknown method {method!r}: {hint}use one of {', '.join(METHODS)}")


def check_settings(
    *,
    method: str = DEFAULT_METHOD,
    site: Site | str | None = None,
    K: float | int = DEFAULT_K,
    K_positive: float | int | None = None,
    K_negative: float | int | None = None,
    merge: str = DEFAULT_MERGE,
    feature: str = "identity",
    parts: str = "both",
    centre: bool = DEFAULT_CENTRE,
    heads: float | int = DEFAULT_HEADS,
    ridge: float = DEFAULT_RIDGE,
    direction: int | None = None,
) -> None:
    """Refuse, before any model is loaded, what no model and no activations could make right.

    Raises:
        SettingError: an unknown value, one that the method does not take, or a site that it cannot edit.
        MissingExtraError: the method needs a package that is not installed.
    """
    given = {name: value for name, value in locals().items() if name in SETTINGS}
    from sea_bake.methods import contrastive, iti, sea

    row = named(method)
    check_taken(method, [name for name, value in given.items() if value != SETTINGS[name]])
    if row.only is not None and site is not None and Site.parse(site) is not row.only:
        raise SettingError(f"{method} edits the site {row.only.value}, not {Site.parse(site).value}")
    K_pos, K_neg = (K if value is None else value for value in (K_positive, K_negative))
    sea.check_share(K_pos, "K_positive")
    sea.check_share(K_neg, "K_negative")
    if K_pos == K_neg == 0:
        raise SettingError("K = 0 is outside (0, 1], and as a rank it keeps no direction at all: nothing to edit with")
    for name, value, known in (
        ("merge", merge, MERGES),
        ("feature function", feature, FEATURES),
        ("parts", parts, PARTS),
    ):
        if value not in known:
            raise SettingError(f"unknown {name} {value!r}: use one of {', '.join(known)}")
    iti.check_heads(heads)
    contrastive.check_ridge(ridge)
    if direction is not None and direction < 0:
        raise SettingError(f"direction = {direction} is no layer: layers are counted from 0")
    if row.extra is not None:
        need(row.extra[0], row.title, row.extra[1])


def check_taken(method: str, names: list[str]) -> None:
    """Raise SettingError for the first of these settings that a method does not take."""
    for name in names:
        if name in SETTINGS and name not in named(method).takes:
            others = ", ".join(other for other, row in METHODS.items() if name in row.takes)
            said = name.replace("_", "-") if len(name) > 1 else name
            raise SettingError(f"{said} is no setting of {method} (but of {others}): drop it, or choose another method")


def check_searched(method: str) -> None:
    """Raise SettingError where a KL is asked of a method that erases at one strength alone."""
    if named(method).erases:
        others = ", ".join(name for name, row in METHODS.items() if not row.erases)
        raise SettingError(
            f"budget is no setting of {method}: at strength 1 it erases, and at no other, so none is searched. Drop it "
            f"(what it costs is measured), fix another strength with --alpha, or choose another method: {others}"
        )


def check_count(method: str, n: int) -> None:
    """Raise ActivationError where demonstrations are too few for a method."""
    fewest = named(method).fewest
    if n < fewest and fewest > MIN_TRIPLES:  # of fewer than that, no activations are collected
        others = ", ".join(name for name, row in METHODS.items() if row.fewest <= n)
        raise ActivationError(
            f"{n} usable triples: {method} needs at least {fewest}. Give more demonstrations (or a higher --limit), or "
            f"choose a method that takes so few (--method): {others}"
        )


def resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``site``, ``layers`` and ``alpha`` of settings of ``fit``; of None the method's own."""
    row = named(settings.get("method") or DEFAULT_METHOD)
    own = {"site": row.site, "layers": row.layers, "alpha": row.alpha}
    found: dict[str, Any] = {name: own[name] if settings.get(name) is None else settings[name] for name in own}
    return found | {"site": Site.parse(found["site"])}


def gathered(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is collected for settings of ``fit``: ``site`` and ``neutral``, not generated where it is not read."""
    row = named(settings.get("method") or DEFAULT_METHOD)
    site = row.reads or resolved(settings)["site"]
    return {"site": site, "neutral": settings["neutral"] if row.neutral else "prompt"}


def arguments_of(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of all settings of ``fit`` those that the method's own function takes."""
    taken = named(method).takes
    found = {name: settings[name] for name in taken if name not in (*_SHARES, *_APPLIED)}
    if "K" in taken:
        K = settings["K"]
        found |= {name: K if settings[name] is None else settings[name] for name in ("K_positive", "K_negative")}
    return found
