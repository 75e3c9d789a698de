"""The starter recipe: every key, its default and what it is for."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

from sea_bake.artefact.names import RECIPE
from sea_bake.errors import RecipeError
from sea_bake.io.staging import staged_file

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def starter(model: str = MODEL, output: str | None = None, *, file: str = RECIPE) -> str:
    """A commented recipe that runs as it is.

    Args:
        model: the base: a folder, a .gguf file or a Hub id.
        output: folder of the edited model; None names it after the base: "smollm2-135m-instruct-sea".
        file: what the recipe's comments call it.

    Raises:
        RecipeError: a name that cannot stand on one line.
    """
    output = output or f"{Path(model).name.removesuffix('.gguf').lower()}-sea"
    text = resources.files(__package__ or "").joinpath("starter.yaml").read_text("utf-8")
    for name, value in {"MODEL": _scalar(model), "OUTPUT": output, "FILE": file}.items():
        if not value.isprintable():
            raise RecipeError(f"{value!r} cannot stand in a recipe: it is more than one line")
        text = text.replace(f"output: @{name}@", f"output: {_scalar(value)}").replace(f"@{name}@", value)
    return text


def write_starter(
    path: str | Path = RECIPE, *, model: str = MODEL, output: str | None = None, overwrite: bool = False
) -> Path:
    """Write the starter recipe.

    Args:
        path: recipe to write.
        model: the base: folder, .gguf file or Hub id.
        output: folder of the edited model. Default: the base's name and -sea.
        overwrite: replace an earlier output.

    Raises:
        OutputError: the file is there already, and ``overwrite`` is off.
    """
    path = Path(os.path.expanduser(path))
    text = starter(model, output, file=path.name)
    with staged_file(path, overwrite=overwrite) as stage:
        stage.write_text(text, "utf-8")
    return path


def _scalar(text: str) -> str:
    """As YAML reads it back: quoted where it would not be plain text."""
    import yaml

    plain = not set(text) & set(":#'\"\\ {}[],&*!|>%@`") and isinstance(yaml.safe_load(text), str)
    return text if plain else json.dumps(text, ensure_ascii=False)
