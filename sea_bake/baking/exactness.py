"""When may an edit vanish into the weights? The one place that plan, fold and adapter all obey.

The site's output is its writer's output, ``W x + c``, summed with weights over the experts of a MoE. A linear edit M
commutes with all of that: M (Σ g (W x + c)) = Σ g (M W x + M c). So it folds exactly, unless something is in the way.
A constant b needs a bias to go into: M (W x + c) + b = (M W) x + (M c + b). The heads are their writer's input:
W (M x + b) + c = (W M) x + (W b + c). Behind the whole layer only a constant folds: the stream that the writer adds to
bypasses every weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from sea_bake.edit import Edit
from sea_bake.model.anatomy import Family, Site


@dataclass(frozen=True)
class Exactness:
    """What can be done with one edit on one family.

    Attributes:
        fold: the edit folds into the writers exactly.
        adapter: the fold is also a low-rank update, so a LoRA adapter can carry it.
        why: the reason, for people.
    """

    fold: bool
    adapter: bool
    why: str


def exactness(
    row: Family,
    site: Site,
    merge: str = "l2",
    feature: str = "identity",
    parts: str = "both",
    alpha: float = 1.0,
    *,
    biased: bool = False,
    holder: str | None = None,
    extra: tuple[str, ...] = (),
    is_constant: bool = False,
    is_llama: bool = False,
) -> Exactness:
    """Decide from the family's row and the edit's settings alone.

    Args:
        biased: the site's writer has a bias; at ``block``, the writer of that layer's MLP.
        holder: what a constant goes into: "" for biases that are there, or the key of the configuration that grants
            them; None where nothing holds one.
        extra: what an affine map has besides A and B: of "scale", "constant" and "gate".
        is_constant: it has a constant alone.
        is_llama: the base can be rewritten as a Llama, which grants biases: named as a way out.
    """

    def no(why: str) -> Exactness:
        return Exactness(False, False, why)

    if "gate" in extra:
        return no("a gate (relu) is not linear")
    if feature != "identity":
        return no(f"Φ-SEA ({feature}) is not linear")
    if site is Site.BLOCK:
        return _of_block(row, is_constant=is_constant, holder=holder, is_llama=is_llama)
    if merge == "l2":
        if site is Site.HEADS or not row.norm_behind:
            return no("the l2 merge rescales each token, which no weight can do")
        if alpha != 1.0:
            return no("with alpha other than 1 the l2 merge adds two vectors of one length, which is not linear")
        why = "linear up to the token's length, which the RMSNorm behind the site divides out (up to its epsilon)"
    elif site is Site.HEADS:
        why = "affine, and the site is a linear's input" if extra else "linear, and the site is a linear's input"
    else:
        why = "affine, and the site's output is a linear's output" if extra else LINEAR
    if "constant" in extra:
        if holder is None:
            return no(_unheld(row, site.written_by, is_llama))
        return Exactness(True, False, f"{why}; the constant goes into {into(holder)}, which no adapter carries")
    if "scale" in extra or identity(merge, parts, alpha) != 1.0:
        return Exactness(True, False, f"{why}; the change has full rank, so no adapter can carry it")
    if biased and site is not Site.HEADS:
        return Exactness(True, False, f"{why}; the writer's bias changes too, which no portable adapter can carry")
    return Exactness(True, True, why)


LINEAR = "linear, and the site's output is a linear's output"
AS_LLAMA = ("qwen2", "mistral")  # families that are a Llama exactly, but for what their configurations know


def into(holder: str, whose: str = "the writer") -> str:
    """Where a constant goes, in words."""
    return f"a bias that {holder} grants" if holder else f"{whose}'s bias"


def _unheld(row: Family, site: Site, is_llama: bool) -> str:
    why = f"a constant goes into a bias: the writer of {site.value} has none, and no key of {row.model_type} grants one"
    return why + " (it folds as the Llama that it is: --how fold --as llama)" * is_llama


def _of_block(row: Family, *, is_constant: bool, holder: str | None, is_llama: bool) -> Exactness:
    if not is_constant:
        return Exactness(False, False, "the residual stream bypasses the weights of the layer")
    if row.norm_behind:
        return Exactness(False, False, "a norm stands between the MLP and the residual stream")
    if row.scaled:
        return Exactness(False, False, "a factor stands between the MLP and the residual stream")
    if holder is None:
        return Exactness(False, False, _unheld(row, Site.MLP, is_llama))
    why = f"a constant, added to the residual stream by {into(holder, 'the MLP writer of that layer')}"
    return Exactness(True, False, f"{why}, which no adapter carries")


def of_edit(row: Family, edit: Edit, *, biased: bool, holder: str | None, is_llama: bool = False) -> Exactness:
    """:func:`exactness` of an Edit."""
    return exactness(
        row,
        edit.site,
        edit.merge,
        edit.feature,
        edit.parts,
        edit.alpha,
        biased=biased,
        holder=holder,
        extra=edit.extra,
        is_constant=edit.is_constant,
        is_llama=is_llama,
    )


def identity(merge: str, parts: str, alpha: float) -> float:
    """The factor of the identity in SEA's M: 1 where the edit is h plus something of low rank."""
    factor = 0.0 if parts == "positive" else 1.0
    if merge == "average" and parts == "both":
        factor /= 2
    return 1.0 + alpha * (factor - 1.0)
