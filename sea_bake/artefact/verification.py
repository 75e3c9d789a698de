"""The verdict on an artefact, as ``verify`` gives it and as it lies in the artefact: measured differences, and the
tolerance that each was held to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sea_bake.io.typed import build


@dataclass(frozen=True)
class Comparison:
    """Answers of one door against another's.

    Attributes:
        max_abs: largest |Δlogit|.
        relative: the same over the largest |logit| of the reference.
        mean_kl: mean KL(reference ‖ other) over all positions, nats.
        top1: share of positions with the same most likely token.
        padded_max_abs: largest |Δlogit| at the last position of the left-padded batch.
        greedy_equal, padded_equal: prompts whose continuation is the same, one by one and in a left-padded batch.
        prompts: how many there were.
        cached_max_abs: largest |Δlogit| where the other door read the same texts piece by piece through its cache;
            None where it did not.
    """

    max_abs: float
    relative: float
    mean_kl: float
    top1: float
    padded_max_abs: float
    greedy_equal: int
    padded_equal: int
    prompts: int
    cached_max_abs: float | None = None

    @property
    def largest(self) -> float:
        """Of all ways, the largest |Δlogit|."""
        return max(self.max_abs, self.padded_max_abs, self.cached_max_abs or 0.0)


@dataclass(frozen=True)
class Variant:
    """A graph of less precision, against the float32 model.

    Attributes:
        passed: whether the edit is in it; ``failures`` says why not.
        bits: of its weights.
        bytes: size of graph and weights on disk.
        equality: against the hook-edited base in float32. Its ``mean_kl`` is the price of the precision.
        effect: against the base in float32.
        effect_correlation: Pearson correlation, over all logits of all texts, of what the edit changes in this graph
            with what it changes in float32; None where this graph cannot be had without its edit (a fold).
    """

    passed: bool
    failures: list[str]
    bits: int
    bytes: int
    equality: Comparison
    effect: Comparison
    effect_correlation: float | None

    @property
    def verdict(self) -> str:
        """ "approximate" at best: another precision is another model."""
        return "approximate" if self.passed else "NOT verified"


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        passed: whether the artefact is the edited model; ``failures`` says why not.
        artefact, base: their names.
        how: how it was baked.
        dtype, device: in which the doors ran.
        tolerance: largest admissible |Δlogit|.
        equality: the artefact against the hook-edited base.
        effect: the artefact against the base.
        facts: class, missing and unexpected keys, versions, dtype, device, of the reloaded artefact.
        approximate: it is a stand-in, whose ``mean_kl`` has to be within ``kl_limit``, what its record promises.
        baseline: the base against the hook-edited base: how far off an artefact would be that kept nothing of the edit.
        variants: of an ONNX export, "fp16", "int8", "int4" -> what is left of the edit in that graph.
        files: path -> SHA-256, of the files that it was given on; in the file inside the artefact only.
    """

    passed: bool
    failures: list[str]
    artefact: str
    base: str
    how: str
    dtype: str
    device: str
    tolerance: float
    equality: Comparison
    effect: Comparison
    facts: dict[str, Any] = field(default_factory=dict)
    approximate: bool = False
    kl_limit: float | None = None
    baseline: Comparison | None = None
    variants: dict[str, Variant] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> str:
        """ "verified" (equal to the edit), "approximate" (near it, as promised), or "NOT verified"."""
        return "NOT verified" if not self.passed else "approximate" if self.approximate else "verified"

    def on(self, files: dict[str, str]) -> Verification:
        """The same, with the files that it was given on."""
        return replace(self, files=files)

    def to_json(self) -> dict[str, Any]:
        variants = {name: {**asdict(variant), "verdict": variant.verdict} for name, variant in self.variants.items()}
        data = {**asdict(self), "variants": variants, "verdict": self.verdict}
        return data if self.files else {key: value for key, value in data.items() if key != "files"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verification:
        """Raises ValueError for what ``verify`` would not write: lacking or garbled fields, a verdict of no numbers."""
        found = build(cls, data)
        build(_Shown, found.facts, "facts")
        if found.approximate and found.baseline is None:
            raise ValueError("baseline is missing, and the artefact is called approximate")
        if found.passed and not all(map(math.isfinite, found._numbers())):
            raise ValueError("it passed with a number that is not finite")
        return found

    def _numbers(self) -> Iterator[float]:
        yield from (self.tolerance, self.kl_limit or 0.0)
        for one in (self.equality, self.effect, self.baseline, *(v.equality for v in self.variants.values())):
            yield from () if one is None else (value for value in vars(one).values() if isinstance(value, float))


@dataclass(frozen=True)
class _Shown:
    """The facts that are shown, and not only kept."""

    unused_by_the_base: list[str] = field(default_factory=list)
    runtimes: list[str] | None = None
    strength_0: float | None = None
