"""Any affine map of one activation, thin: what every closed-form edit but SEA's own merges comes down to.

    y = s ⊙ h + B A h + b            with a gate: y = s ⊙ h + B relu(A h + c) + b

Mean difference, control vectors and ITI are a constant b; LEACE, ablation and Householder B A (and b); Linear-AcT s and
b. What is absent is not stored, and what is stored is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from sea_bake.errors import EditError
from sea_bake.model.travelling import EXTRA

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 1e12  # of any number in a map: products of two of them, and of an activation, are finite in float32


@dataclass(frozen=True)
class AffineMap:
    """One layer's map. Absent parts are None; at least one is there.

    Attributes:
        A: [k, d], what is read off the activation.
        B: [d, k], where it is written to; with A, or not at all.
        scale: s, [d].
        constant: b, [d], added to every token.
        gate: c, [k]: B A h becomes B relu(A h + c), which no weight can do.
    """

    is_sea: ClassVar[bool] = False
    spectra: ClassVar[None] = None

    A: Tensor | None = None
    B: Tensor | None = None
    scale: Tensor | None = None
    constant: Tensor | None = None
    gate: Tensor | None = None

    def __post_init__(self) -> None:
        check_parts(self.parts)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Name -> tensor, of those that are there."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def extra(self) -> tuple[str, ...]:
        """Names of the parts besides A and B."""
        return extra_of(self.parts)

    @property
    def dim(self) -> int:
        """d, the width of the activation."""
        return next(len(t) for t in (self.constant, self.B, self.scale) if t is not None)

    @property
    def rank(self) -> int:
        """k."""
        return 0 if self.A is None else len(self.A)

    @property
    def ranks(self) -> tuple[int, int]:
        """(k, 0), in the place of SEA's (k+, k-)."""
        return self.rank, 0

    @property
    def changes_nothing(self) -> bool:
        """Whether every activation comes out as it went in."""
        moves = any(t is not None and bool(t.any()) for t in (self.B, self.constant))
        return not moves and (self.scale is None or bool((self.scale == 1).all()))

    def float(self) -> AffineMap:
        """The same in float32 on the CPU, contiguous: what an Edit holds and saves."""
        return replace(self, **{name: t.detach().float().cpu().contiguous() for name, t in self.parts.items()})

    def __call__(self, h: Tensor) -> Tensor:
        """h [..., d] -> y, in the dtype of both: the definition, for people who work on activations without a model."""
        import torch

        y = h if self.scale is None else self.scale * h
        if self.A is not None and self.B is not None:
            read = h @ self.A.T
            y = y + (read if self.gate is None else torch.relu(read + self.gate)) @ self.B.T
        return y if self.constant is None else y + self.constant


def extra_of(parts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the parts besides A and B."""
    return tuple(name for name in parts if name in EXTRA)


def check_parts(parts: Mapping[str, Any]) -> None:
    """Raise EditError unless these are the parts of an affine map: name -> tensor, or array."""
    if ("A" in parts) != ("B" in parts) or ("gate" in parts and "A" not in parts):
        raise EditError("A and B go together, and a gate goes with both")
    if not parts:
        raise EditError("a map without any part changes nothing")
    k = len(parts["A"]) if "A" in parts else 0
    d = next(len(parts[name]) for name in ("constant", "B", "scale") if name in parts)
    shapes = {"A": (k, d), "B": (d, k), "scale": (d,), "constant": (d,), "gate": (k,)}
    for name, part in parts.items():
        if tuple(part.shape) != shapes[name]:
            raise EditError(f"{name} is {tuple(part.shape)}, not {shapes[name]}")
        if not bool((abs(part) < _LARGEST).all()):
            raise EditError(f"{name} holds NaN, infinity, or a number of {_LARGEST:g} and more")
