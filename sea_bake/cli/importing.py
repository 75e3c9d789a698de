"""sea-bake import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.options import Call, command, spelt
from sea_bake.cli.printing import Overwrite
from sea_bake.errors import EditError


@command(
    "sea_bake.model.loading:load_model",
    "sea_bake.edit:Edit.from_dense",
    without="source device trust_remote_code",
    model=spelt(hint=str, help="The model that the projections belong to: folder, .gguf file or Hub id."),
    positive=spelt(hint=Path, help="the file uu_positive.pt"),
    negative=spelt(hint=Path, help="the file uu_negative.pt"),
)
def import_dense(
    call: Call,
    output: Annotated[Path, typer.Option("--output", "-o", help="Edit file to write.")] = Path("edit.safetensors"),
    overwrite: Overwrite = False,
) -> None:
    """Import the dense projections of the authors' released code (a d x d matrix per layer) as a thin edit."""
    from sea_bake.io.apart import check_apart
    from sea_bake.io.staging import check_output
    from sea_bake.model.source import ModelSource

    place = check_output(output, overwrite=overwrite, folder=False)
    check_apart(place, [call["positive"], call["negative"], call["model"]], folder=False)
    import torch  # for which no refusal above has to wait

    from sea_bake.model.loading import load_model
    from sea_bake.pages.edits import sentence

    dense = []
    for path in (call["positive"], call["negative"]):
        try:
            tensor = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise EditError(f"{path} cannot be read as a plain tensor file: {error}") from error
        if not isinstance(tensor, torch.Tensor):
            raise EditError(f"{path} holds a {type(tensor).__name__}, not a [layers, d, d] tensor")
        dense.append(tensor)
    source = ModelSource.parse(call["model"], call["revision"])
    living = load_model(source, dtype=call["dtype"], device="cpu")
    edit = call(*dense, living, source=source)
    edit.save(place, overwrite=overwrite)
    call.emit({"output": str(output), **edit.describe()})
    call.console.print(sentence(edit), markup=False)
