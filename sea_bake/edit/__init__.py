"""The frozen artefact of a fit: a thin map per layer, and all that is needed to apply, bake and trust them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_bake.edit.measured import Measured
from sea_bake.errors import EditError, SettingError, WrongModelError
from sea_bake.io import store
from sea_bake.io.edits import edit_file
from sea_bake.methods import storing
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.facts import MapFacts
from sea_bake.methods.layers import select_layers
from sea_bake.methods.storing import Array, seen
from sea_bake.model.anatomy import Site
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.source import ModelSource
from sea_bake.model.travelling import FEATURES, MERGES, PARTS

if TYPE_CHECKING:
    from torch import Tensor

    from sea_bake.methods.sea import Projector
    from sea_bake.modeling_sea import SEALayer

FORMAT = "sea_bake.edit"
VERSIONS = (1, 2)  # read; the last one is written. Version 1 holds SEA's projectors alone.


@dataclass(frozen=True)
class Edit(MapFacts):
    """A closed-form edit of one model.

    Attributes:
        maps: decoder layer -> SEA's Projector, or any AffineMap; float32 on the CPU, all of one kind.
        site: the activation that is edited.
        base: fingerprint of the model it was fitted on.
        merge: "l2" (per-token norm kept), "sum" or "average"; of an AffineMap "sum", as it stands.
        feature: "identity" (linear SEA) or a feature function of Φ-SEA.
        parts: "both" projections, or "positive"/"negative" alone (the paper's ablation).
        alpha: strength in h + alpha (y - h); 0 is the base model, 1 the map itself.
        recipe: how it was fitted: method, K, demonstrations, token position, signatures, versions.
        measured: what was measured of it, at this very strength; None where nothing was.
        origin: "USER/REPO@COMMIT" of one from the Hub; not in the file.
    """

    maps: Mapping[int, Projector | AffineMap]
    site: Site
    base: BaseModel
    merge: str = "l2"
    feature: str = "identity"
    parts: str = "both"
    alpha: float = 1.0
    recipe: dict[str, Any] = field(default_factory=dict)
    origin: str | None = field(default=None, compare=False)
    measured: Measured | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("merge", self.merge, MERGES),
            ("feature function", self.feature, FEATURES),
            ("parts", self.parts, PARTS),
        ):
            if value not in known:
                raise SettingError(f"unknown {name} {value!r}: use one of {', '.join(known)}")
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not abs(self.alpha) < 1e6:
            raise SettingError(
                f"alpha = {self.alpha!r} is no strength: use a number between -1e6 and 1e6; 1 is the map itself"
            )
        if not self.maps:
            raise SettingError("an edit needs at least one layer")
        kinds = {(one.is_sea, one.extra) for one in self.seen.values()}
        if len(kinds) > 1:
            raise EditError(
                "its layers hold maps of different kinds (some with a constant, a scale or a gate, and some "
                "without): make one edit of each kind"
            )
        settings = (self.merge, self.feature, self.parts)
        if not self.is_sea and settings != ("sum", "identity", "both"):
            raise SettingError("merge, feature function and parts are SEA's: an affine map has sum, identity and both")

    @property
    def method(self) -> str:
        """How it was found: a key of ``methods.METHODS``; "imported" or "affine" where that is not known."""
        default = "sea" if self.is_sea else "affine"
        return str(self.recipe.get("method") or default)

    def refuse_nothing(self, consequence: str) -> None:
        """Raise EditError where every activation comes out as it went in; ``consequence`` is what follows from that."""
        if self.changes_nothing:
            why = "its strength alpha is 0" if self.alpha == 0 else "it holds no direction in any layer"
            raise EditError(f"this edit changes nothing ({why}), so {consequence}")

    @property
    def changes_nothing(self) -> bool:
        """Whether every activation comes out as it went in."""
        if not self.is_sea:
            return self.alpha == 0 or all(one.changes_nothing for one in self.seen.values())  # type: ignore[union-attr]
        directions = {"both": sum, "positive": lambda ranks: ranks[0], "negative": lambda ranks: ranks[1]}[self.parts]
        halved = self.merge == "average" and self.parts == "both"
        scaled = self.parts == "positive" or halved or self.feature != "identity"
        return self.alpha == 0 or not (scaled or any(directions(ranks) for ranks in self.ranks.values()))

    def with_settings(self, **changes: Any) -> Edit:
        """A copy with another merge, alpha or parts. Raises SettingError for an unknown value."""
        refused = set(changes) - {"merge", "alpha", "parts"}
        if refused:
            raise SettingError(f"{', '.join(sorted(refused))} cannot be changed without fitting again")
        return replace(self, origin=None, measured=None, **changes)

    def layer(self, index: int) -> SEALayer:
        """The SEALayer of one decoder layer: the very module that a baked checkpoint carries."""
        from sea_bake.modeling_sea import SEALayer

        one = self.maps[index]
        built = SEALayer(one.dim, one.ranks, self.merge, self.feature, self.parts, self.alpha, one.extra)
        built.load_state_dict(self.layer_tensors(index))
        return built.requires_grad_(False)

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """{"A": [k, d], "B": [d, k]} and the rest of an affine map, float32, as ``SEALayer`` names them."""
        import torch

        one = self.maps[index]
        if isinstance(one, AffineMap):
            return {name: tensor.clone() for name, tensor in one.parts.items()}  # layers may share one; files may not
        up, un = one.positive, one.negative
        return {"A": torch.cat([up, un]), "B": torch.cat([up, -un]).T.contiguous()}

    def layer_arrays(self, index: int) -> dict[str, Array]:
        """:meth:`layer_tensors` in NumPy: of an edit from a file, without torch."""
        one = seen(self.maps, index)
        if isinstance(one, storing.StoredMap):
            return one.arrays()
        return {name: tensor.numpy() for name, tensor in self.layer_tensors(index).items()}

    def describe(self) -> dict[str, Any]:
        """All but the factors themselves, as plain data."""
        settings = {name: getattr(self, name) for name in ("merge", "feature", "parts", "alpha")}
        return {
            "base": self.base.name,
            "revision": self.base.revision,
            "origin": self.origin,
            "family": self.base.model_type,
            "method": self.method,
            "site": self.site.value,
            **settings,
            "extra": list(self.extra),
            "layers": list(self.layers),
            "ranks": {str(layer): list(ranks) for layer, ranks in self.ranks.items()},
            "spectra": {str(layer): dict(both) for layer, both in self.spectra.items()},
            "recipe": self.recipe,
            **({} if self.measured is None else {"measured": self.measured.to_json()}),
        }

    @contextlib.contextmanager
    def live(self, model: Any, *, check: bool = True) -> Iterator[Any]:
        """Edit a living model through hooks, for as long as the context lasts: the reference for every bake.

        The model itself is not changed, and the hooks are gone afterwards, also after an exception.

        Args:
            check: refuse a model whose fingerprint is not that of ``base``.

        Raises:
            WrongModelError: the edit belongs to another model.
        """
        from sea_bake.model.hooks import hooked
        from sea_bake.model.sites import site_modules

        if check:
            self.check(model)
        modules = site_modules(model, self.site, self.layers)
        layers: dict[int, SEALayer] = {}

        def apply(index: int, output: Tensor) -> Tensor:
            if index not in layers:
                layers[index] = self.layer(index).to(output.device)
                if output.shape[-1] != self.maps[index].dim:
                    raise WrongModelError(
                        f"the edit's map of layer {index} is {self.maps[index].dim} wide, and the {self.site.value} "
                        f"activation of this model {output.shape[-1]}: it belongs to another model"
                    )
            return layers[index](output)

        # First: what others record is then the edited output, as in an artefact.
        with hooked(modules, apply, first=True, inputs=self.site.is_input):
            yield model

    def check(self, model: Any) -> None:
        """Raise WrongModelError unless this living model is the one that the edit was fitted on."""
        self.base.check(BaseModel.of(model, ModelSource("this model")), self.layers)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """One safetensors file: thin factors, and a JSON header with everything else. Raises OutputError."""
        tensors, described = storing.stored(self.maps)
        header = {
            "base": self.base.to_json(),
            "family": self.base.model_type,
            "site": self.site.value,
            "layers": list(self.layers),
            "merge": self.merge,
            "feature": self.feature,
            "parts": self.parts,
            "alpha": self.alpha,
            "ranks": {str(layer): list(r) for layer, r in self.ranks.items()},
            **described,
            "recipe": self.recipe,
            **({} if self.measured is None else {"measured": self.measured.to_json()}),
        }
        return store.save(path, tensors, header, form=FORMAT, version=VERSIONS[-1], overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> Edit:
        """Read an edit: a file, or "USER/REPO[@REVISION]" on the Hub; with a living ``model``, check that it fits.

        Raises:
            EditError: the file is missing, truncated, of another format version, or does not hold valid maps.
            WrongModelError: it was fitted on another model than ``model``.
        """
        found = edit_file(path)
        tensors, header = store.load_arrays(found.path, form=FORMAT, version=VERSIONS, error=EditError)
        try:
            base, site = BaseModel.from_json(header["base"]), Site.parse(header["site"])
            width = None if site is Site.HEADS else base.hidden_size  # the heads' is not among a base's numbers
            maps = storing.restored(tensors, header, depth=base.num_layers, width=width)
            recipe = dict(header["recipe"])
            if "signatures" in recipe:  # the one part of it that is more than shown
                recipe["signatures"] = {str(int(k)): store.finite(v) for k, v in recipe["signatures"].items()}
            merge, feature, parts = (str(header[name]) for name in ("merge", "feature", "parts"))
            measured = Measured.from_json(header["measured"]) if "measured" in header else None
            edit = cls(maps, site, base, merge, feature, parts, header["alpha"], recipe, found.origin, measured)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError, SettingError) as error:
            raise EditError(f"{path}: the header lacks or garbles {error}") from error
        except EditError as error:
            raise EditError(f"{path}: {error}") from error
        if model is not None:
            edit.check(model)
        return edit

    @classmethod
    def from_dense(
        cls,
        positive: Tensor,
        negative: Tensor,
        model: Any,
        *,
        source: ModelSource | str,
        layers: str = "last:21",
        site: Site | str = Site.MLP,
        merge: str = "l2",
    ) -> Edit:
        """Import the authors' published dense projections.

        Args:
            positive, negative: ``uu_positive.pt`` and ``uu_negative.pt``: [L, d, d], one projector for every layer of
                the model (or for the selected layers only).
            model, source: the living model they belong to (their files do not say which), and its name to record.
            layers: the layers to edit, as of fit; the paper's LLaMA-2 run edits the last 21.
            site: "mlp" (what the released code edits), "attn" or "block".
            merge: "l2", "sum" or "average".

        Raises:
            ActivationError: a matrix that is not an orthogonal projector.
            SettingError: L is neither the model's number of layers nor the number of selected ones.
        """
        from sea_bake.methods import sea

        base = BaseModel.of(model, source)
        chosen = select_layers(layers, base.num_layers)
        projectors = sea.dense_projectors(
            positive, negative, layers=chosen, num_layers=base.num_layers, width=base.hidden_size
        )
        recipe = {"imported": "dense projections of the authors' released code"}
        return cls(projectors, Site.parse(site), base, merge=merge, recipe=recipe)


@contextlib.contextmanager
def live(edits: Sequence[Edit], model: Any, *, check: bool = True) -> Iterator[Any]:
    """Several edits on one living model, in this order: where two meet at one module, the first acts first.

    (Nested ``Edit.live`` contexts act the other way round: the inner one goes before all hooks that stand.)

    Raises:
        WrongModelError: one of them belongs to another model.
    """
    with contextlib.ExitStack() as stack:
        for edit in reversed(edits):
            stack.enter_context(edit.live(model, check=check))
        yield model
