"""Random edits of the same cost as an edit: what damage alone does to a measure.

``subspaces`` is the edit itself, turned at random: in every layer the same ranks, norms and angles between what is kept
and what is dropped, in directions that say nothing. ``constants`` adds one random vector per layer, as long as the
site's activations are there; ``elsewhere`` does so at another site. Each gets the strength at which its KL is the
edit's. What was drawn and measured is kept, and used again for the same model, edit and demonstrations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sea_bake.artefact.evaluation import edit_digest
from sea_bake.edit import Edit
from sea_bake.edit.measured import Controls, Estimate
from sea_bake.errors import SeaBakeError
from sea_bake.evaluation.strength import find
from sea_bake.io.staging import staged_file
from sea_bake.io.store import finite
from sea_bake.methods.affine import AffineMap
from sea_bake.methods.sea import Projector
from sea_bake.model.hooks import hooked
from sea_bake.model.placing import input_device
from sea_bake.model.processes import from_main, is_main_process
from sea_bake.model.sites import site_modules

_VERSION = 1
_CLOSE = 0.05  # of the KL that a draw is to have
_MORE = 3  # draws in the place of such as do not reach it, and as many again as were asked for
_IN_VAIN = 5  # first ones: then none will
_RESAMPLES = 4000


@dataclass(frozen=True)
class Draw:
    """A random edit's strength, its KL there, and its gain on each example."""

    alpha: float
    kl: float
    gains: tuple[float, ...]


def kinds_of(edit: Edit) -> tuple[str, ...]:
    """Which there are of an edit: turned, one that only adds constants is of the second kind itself."""
    return ("constants",) if edit.is_constant else ("subspaces", "constants")


def turned(edit: Edit, seed: int) -> Edit:
    """The same edit in directions drawn at random: each layer's map turned (its units exchanged, where it has a factor
    per unit); layers that share a map still do.
    """
    maps: dict[int, Projector | AffineMap] = {}
    for layer in edit.layers:
        one = edit.maps[layer]
        contents = b"".join(part.contiguous().numpy().tobytes() for part in one.parts.values())
        mark = hashlib.sha256(f"{seed} ".encode() + contents).digest()
        made = torch.Generator().manual_seed(int.from_bytes(mark[:7], "big"))
        maps[layer] = _turned(one, made)
    return replace(edit, maps=maps, recipe={}, origin=None, measured=None)


def _turned(one: Projector | AffineMap, made: torch.Generator) -> Projector | AffineMap:
    if isinstance(one, AffineMap) and one.scale is not None:
        order = torch.randperm(one.dim, generator=made)
        places = {"A": (slice(None), order), "B": (order,), "scale": (order,), "constant": (order,)}
        return AffineMap(**{n: t[places[n]].contiguous() if n in places else t for n, t in one.parts.items()})
    if isinstance(one, Projector):
        pieces = [one.positive.T, one.negative.T]
    else:
        pieces = [p for p in (None if one.A is None else one.A.T, one.B) if p is not None]
        pieces += [] if one.constant is None else [one.constant[:, None]]
    new = _rotated(torch.cat(pieces, 1).double(), made).float().split([p.shape[1] for p in pieces], 1)
    if isinstance(one, Projector):
        return replace(one, positive=new[0].T.contiguous(), negative=new[1].T.contiguous())
    parts = dict(one.parts)
    if one.A is not None:
        parts |= {"A": new[0].T.contiguous(), "B": new[1].contiguous()}
    if one.constant is not None:
        parts["constant"] = new[-1][:, 0].contiguous()
    return AffineMap(**parts)


def _rotated(columns: Tensor, made: torch.Generator) -> Tensor:
    """[d, m] -> R [d, m], by a random rotation R: lengths and angles between columns stay."""
    d, m = columns.shape
    width = min(d, m)
    drawn = torch.linalg.qr(torch.randn(d, width, generator=made, dtype=torch.float64))[0]
    if m >= d:
        return drawn @ columns
    return drawn @ torch.linalg.qr(columns)[1]


def constants(edit: Edit, lengths: dict[int, float], seed: int) -> Edit:
    """A random vector per edited layer, of these lengths, added to every token."""
    made = torch.Generator().manual_seed(seed)
    maps: dict[int, Projector | AffineMap] = {}
    for layer in edit.layers:
        drawn = torch.randn(edit.maps[layer].dim, generator=made, dtype=torch.float64)
        maps[layer] = AffineMap(constant=(drawn * lengths[layer] / drawn.norm()).float())
    return Edit(maps, edit.site, edit.base, merge="sum")


@torch.inference_mode()
def lengths_of(model: Any, edit: Edit, texts: Sequence[Sequence[int]]) -> dict[int, float]:
    """Edited layer -> mean length of the site's activations, over the tokens of these texts."""
    found: dict[int, list[float]] = {layer: [] for layer in edit.layers}

    def look(layer: int, activation: Tensor) -> None:
        found[layer].append(float(activation.float().flatten(0, -2).norm(dim=-1).mean()))

    device = input_device(model)
    with hooked(site_modules(model, edit.site, edit.layers), look, inputs=edit.site.is_input):
        for ids in texts:
            model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    return {layer: sum(sizes) / len(sizes) for layer, sizes in found.items()}


@dataclass
class Drawing:
    """Draws random edits for one edit, and measures them.

    Attributes:
        edit: at the strength that is measured; its sign is that of the turned ones, too. Elsewhere: one at that site.
        goal: the KL that each is to have, by ``kl``; above 0.
        kl: edit -> KL.
        gains: edit -> its gain on each example.
        lengths: of the site's activations; called where constants are drawn.
        inputs: all else that decides what is measured, as plain data.
        cache: folder; None keeps nothing.
        where: site and layers, where they are not the measured edit's.
    """

    edit: Edit
    goal: float
    kl: Callable[[Edit], float]
    gains: Callable[[Edit], Sequence[float]]
    lengths: Callable[[], dict[int, float]]
    inputs: Any
    cache: Path | None
    where: str = ""
    _made: dict[tuple[str, int], Draw] = field(init=False, default_factory=dict)

    def draws(self, kind: str, count: int, advance: Callable[[int], None] = lambda n: None) -> list[Draw | None]:
        """So many, and as far as tries last another for each that no strength brings to the KL: None stands for it."""
        found: list[Draw | None] = []
        start = self.edit.alpha if self._turns(kind) else 0.1
        there = 0
        for seed in range(2 * count + _MORE):
            if there == count or (seed == _IN_VAIN and not there):
                break
            drawn = self._made.get((kind, seed)) or from_main(self._kept(kind, seed))
            if drawn is None:
                drawn = self._drawn(kind, seed, start)
                if is_main_process():
                    self._keep(kind, seed, drawn)
            self._made[kind, seed] = drawn
            found.append(drawn if drawn.gains else None)
            if drawn.gains:
                start = drawn.alpha  # the next one of the kind needs about as much
                there += 1
                advance(1)
        advance(count - there)
        return found

    def _turns(self, kind: str) -> bool:
        """Whether a kind is the edit itself, turned."""
        return kind == "subspaces" or (kind == "constants" and self.edit.is_constant)

    def _drawn(self, kind: str, seed: int, start: float) -> Draw:
        made = turned(self.edit, seed) if self._turns(kind) else constants(self.edit, self.lengths(), seed)
        try:
            best = find(lambda alpha: self.kl(replace(made, alpha=alpha)), self.goal, start=start, close=_CLOSE)
            return Draw(best.alpha, best.kl, tuple(self.gains(replace(made, alpha=best.alpha))))
        except SeaBakeError:  # no strength reaches it, or NaN logits on the way
            return Draw(0.0, 0.0, ())

    def _path(self, kind: str, seed: int) -> Path | None:
        if self.cache is None:
            return None
        base = self.edit.base
        told: list[Any] = [_VERSION, kind, seed, base.config, base.samples, base.rest, self.edit.site.value]
        told += [list(self.edit.layers), f"{self.goal:.3g}", self.inputs]
        if self.edit.alpha < 0 and self._turns(kind):
            told.append("turned round")  # its draws are, too
        if self._turns(kind):
            told.append(edit_digest(replace(self.edit, alpha=1.0)))
        return self.cache / f"{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:40]}.json"

    def _kept(self, kind: str, seed: int) -> Draw | None:
        path = self._path(kind, seed)
        try:
            if path is None or path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 20:
                return None
            data = json.loads(path.read_text("utf-8"))
            return Draw(finite(data["alpha"]), finite(data["kl"]), tuple(map(finite, data["gains"])))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, kind: str, seed: int, drawn: Draw) -> None:
        path = self._path(kind, seed)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(path, overwrite=True) as stage:
                stage.write_text(json.dumps({"alpha": drawn.alpha, "kl": drawn.kl, "gains": drawn.gains}), "utf-8")
        except (OSError, SeaBakeError):
            return  # a home that cannot be written to costs time, and nothing else


def compared(kind: str, gains: Sequence[float], drawn: Sequence[Draw | None], where: str = "") -> Controls | None:
    """An edit's gain among those of random edits of one kind; None where none of them counts. ``where``: at which site,
    if not the edit's own.

    Intervals from resamples of examples and, independently, of draws: they hold for other examples and other draws.
    """
    there = [one for one in drawn if one is not None]
    if not there:
        return None
    own, others = np.array(gains), np.array([one.gains for one in there])  # [n], [draws, n]
    rng = np.random.default_rng(0)
    items = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=_RESAMPLES) / len(own)
    some = rng.multinomial(len(there), np.full(len(there), 1 / len(there)), size=_RESAMPLES) / len(there)
    means = ((some @ others) * items).sum(1)
    differences = items @ own - means
    values = float(others.mean()), float(own.mean() - others.mean())
    mean, difference = (_estimate(v, d) for v, d in zip(values, (means, differences), strict=True))
    below = int((others.mean(1) < own.mean()).sum())
    return Controls(kind, len(there), below, mean, difference, len(drawn) - len(there), where)


def _estimate(value: float, drawn: Any) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
