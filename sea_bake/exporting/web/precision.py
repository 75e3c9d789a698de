"""What a graph of less precision does to the base, beside what the edit does: so that a reader of the page can tell."""

from __future__ import annotations

from dataclasses import dataclass

from sea_bake.exporting.web.models import KINDS, WebModel

# Per token in WebAssembly, beside float32: SmolLM2-135M-Instruct, tokens per second, in Chromium 156 on two busy cores
# of an AMD EPYC (scripts/RUNTIMES.md). Its kernels for packed weights are slow; elsewhere they are fast.
_SLOWER = {"int8": "a quarter", "int4": "a fifth"}
_MEASURED = "measured once, on SmolLM2-135M-Instruct in Chromium 156"


@dataclass(frozen=True)
class Rounding:
    """How far a precision moves the model, and the edit its base: mean KL per token, nats; None where nobody measured.

    Attributes:
        base: the base by the precision alone; where the edit cannot be led past (a fold), the edited model by it.
        edit: the base by the edit.
    """

    base: float | None
    edit: float | None

    @classmethod
    def of(cls, model: WebModel, graph: str) -> Rounding:
        """From what the export measured when it was made; where that is not all, from its verification."""
        distance = (model.record.variants.get(graph) or {}).get("distance") or {}
        base, edit = _number(distance.get("base_kl", distance.get("mean_kl"))), _number(distance.get("edit_kl"))
        report = model.artefact.verification
        if report is not None and report.passed and None in (base, edit):
            edit = report.effect.mean_kl if edit is None else edit
            base = report.variants[graph].equality.mean_kl if base is None and graph in report.variants else base
        return cls(base, edit)

    @property
    def drowns(self) -> bool:
        """Whether the precision moves the base as much as the edit does."""
        return self.base is not None and self.edit is not None and self.base >= self.edit


def words(model: WebModel, graph: str) -> dict[str, str]:
    """What the page says of a precision.

    Returns:
        "note": what it does beside the edit; "warning", where that is as much; "slow": how fast it is in WebAssembly,
        and how that is known. All empty for float32.
    """
    label, said = KINDS[graph][1], {"note": "", "warning": "", "slow": ""}
    if graph == "fp32":
        return said
    if graph in _SLOWER:
        said["slow"] = f"On a processor they write at {_SLOWER[graph]} of the speed of 32 bits ({_MEASURED})."
    found = Rounding.of(model, graph)
    if found.base is None or found.edit is None:
        said["note"] = f"How far {label} move the model, beside the edit, was not measured (sea-bake verify does it)."
    else:
        said["note"] = (
            f"KL per token from the base: by {label} alone {found.base:.2g} nats, by the edit {found.edit:.2g}."
        )
    if found.drowns:
        said["warning"] = (
            f"{label} change this model as much as the edit does: where the two answers differ, that may be the "
            "rounding's doing and not the edit's. 32 bits tell."
        )
    return said


def _number(value: object) -> float | None:
    """A record is a file that others may have written."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
