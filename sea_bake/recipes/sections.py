"""The table of what a recipe can ask for: section -> the functions whose arguments are its settings."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property

from sea_bake.artefact.names import PAGE, VERIFICATION
from sea_bake.errors import RecipeError, missing_extra
from sea_bake.io.signatures import Argument, exists
from sea_bake.recipes.settings import settings_of

LOAD, GATHER, FIT = "sea_bake.demonstrations:load", "sea_bake.fitting:gather", "sea_bake.fitting:fit"
FORMAT = "sea_bake.activations.prompt_format:prompt_format"


@dataclass(frozen=True)
class Section:
    """One row.

    Attributes:
        verb: "module:function" that does the step.
        given: its arguments that are not settings: the run gives them, or leaves them at their defaults.
        after: the steps whose outputs it reads.
        suffix: what its default output is called: the artefact's name and this.
        inside: the file that it writes into the artefact instead.
        checks: functions that refuse settings before any heavy work.
        extra: an extra of ours that it needs, and the packages that this means.
    """

    verb: str
    given: str
    after: tuple[str, ...] = ()
    suffix: str | None = None
    inside: str | None = None
    checks: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @cached_property
    def settings(self) -> dict[str, Argument]:
        own = settings_of(self.verb, self.given.split())
        if self.verb != FIT:
            return own
        loading = settings_of(LOAD, ["seed"])  # ``fit:`` says which demonstrations too; ``seed`` is that of the fit
        source = replace(loading.pop("source"), default="builtin")
        return {"demonstrations": source, **loading, **settings_of(FORMAT, []), **own}  # and how prompts are rendered

    def require(self, name: str, where: str) -> None:
        """Raises RecipeError where this version cannot do the step, MissingExtraError where this machine cannot."""
        if not exists(self.verb):
            raise RecipeError(f"{where}: the step '{name}' is not there in this version of sea_bake: take it out")
        for package in self.extra[1:]:
            if importlib.util.find_spec(package) is None:
                raise missing_extra(package, self.extra[0], f"The step '{name}'")


SECTIONS: dict[str, Section] = {
    "fit": Section(
        FIT,
        "model demonstrations tokenizer source activations prompt_format save_activations overwrite",
        checks=("sea_bake.methods.table:check_settings", "sea_bake.activations:check_settings", FORMAT),
    ),
    "bake": Section(
        "sea_bake.baking:bake",
        "model edit output revision overwrite",
        after=("fit",),
        checks=("sea_bake.baking:check_settings",),
    ),
    "verify": Section(
        "sea_bake.verification:verify",
        "artefact base revision edit write fresh quantised",
        after=("bake",),
        inside=VERIFICATION,
    ),
    "eval": Section(
        "sea_bake.evaluation:evaluate",
        "model edit base revision output overwrite write say",
        after=("bake",),
        suffix="-evaluation",
        extra=("eval", "lm_eval", "matplotlib"),
    ),
    "report": Section(
        "sea_bake.reporting:report",
        "subject activations evaluation demonstrations model output overwrite write",
        after=("bake", "verify", "eval"),
        inside=PAGE,
        checks=("sea_bake.reporting.projection:check_method",),
        extra=("report", "matplotlib"),
    ),
    "export.onnx": Section(
        "sea_bake.exporting.onnx:export_onnx",
        "artefact unedited overwrite",
        after=("bake",),
        suffix="-onnx",
        extra=("onnx", "onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    ),
    "export.gguf": Section(
        "sea_bake.exporting.gguf:export_gguf",
        "artefact unedited overwrite",
        after=("bake",),
        suffix=".gguf",
        extra=("gguf", "gguf"),
    ),
    "publish": Section(
        "sea_bake.publishing:publish",
        "artefact dry_run",
        after=("bake", "verify", "eval", "report", "export.onnx", "export.gguf"),
    ),
}
