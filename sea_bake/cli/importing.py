"""sea-bake import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sea_bake.cli.options import Call, command
from sea_bake.cli.printing import Dtype, Overwrite, Revision
from sea_bake.errors import EditError


@command()
def import_dense(
    call: Call,
    model: Annotated[str, typer.Argument(help="The model that the projections belong to: folder, .gguf or Hub id.")],
    positive: Annotated[Path, typer.Argument(help="uu_positive.pt")],
    negative: Annotated[Path, typer.Argument(help="uu_negative.pt")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Edit file to write.")] = Path("edit.safetensors"),
    layers: Annotated[str, typer.Option(help="Layers to edit; see sea-bake fit --help.")] = "last:21",
    site: Annotated[str, typer.Option(help="mlp (what the released code edits), attn or block.")] = "mlp",
    merge: Annotated[str, typer.Option(help="l2, sum or average.")] = "l2",
    revision: Revision = None,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Import the dense projections of the authors' released code (a d x d matrix per layer) as a thin edit."""
    import torch

    from sea_bake.edit import Edit
    from sea_bake.io.apart import check_apart
    from sea_bake.io.staging import check_output
    from sea_bake.model.loading import load_model
    from sea_bake.model.source import ModelSource
    from sea_bake.pages.edits import sentence

    place = check_output(output, overwrite=overwrite, folder=False)
    check_apart(place, [positive, negative, model], folder=False)
    dense = []
    for path in (positive, negative):
        try:
            tensor = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise EditError(f"{path} cannot be read as a plain tensor file: {error}") from error
        if not isinstance(tensor, torch.Tensor):
            raise EditError(f"{path} holds a {type(tensor).__name__}, not a [layers, d, d] tensor")
        dense.append(tensor)
    source = ModelSource.parse(model, revision)
    living = load_model(source, dtype=dtype, device="cpu")
    edit = Edit.from_dense(dense[0], dense[1], living, source=source, layers=layers, site=site, merge=merge)
    edit.save(place, overwrite=overwrite)
    call.emit({"output": str(output), **edit.describe()})
    call.console.print(sentence(edit), markup=False)
