"""The tensors on disk that write a site's output: what a fold edits, none forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.quantised import ways_out
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError
from sea_bake.model.anatomy import Site
from sea_bake.model.checkpoint.dtypes import FLOATS

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Writer:
    """One tensor that writes a site's output: a weight, or its bias.

    Attributes:
        name: on disk.
        layer, site: whose output it writes.
        axis: -1 or -2: where the output dimension lies in each matrix of the tensor.
        is_bias: it is added to the output as it stands.
        bias: of a weight, the name of the bias that stands beside it on disk.
        holds: of a bias, whether a constant of the site goes into it: into the shared expert's alone where that has
            one, since it is added once, whatever the routing; else into that of every expert.
    """

    name: str
    layer: int
    site: Site
    axis: int
    is_bias: bool = False
    bias: str | None = None
    holds: bool = False


def find_writers(base: OpenBase, edits: Sequence[Edit]) -> list[Writer]:
    """Every writer of every edited site and layer.

    Raises:
        CheckpointError: one is missing, of an unexpected shape, quantised, or in a dtype that cannot be edited.
    """
    places = sorted({(layer, edit.site.written_by) for edit in edits for layer in edit.layers})
    return [writer for layer, site in places for writer in writers_of(base, site, layer)]


def writers_of(base: OpenBase, site: Site, layer: int) -> list[Writer]:
    """The writers of one site; see :func:`find_writers`."""
    if (site, layer) not in base.kept:
        base.kept[site, layer] = _writers_of(base, site, layer)
    found: list[Writer] = base.kept[site, layer]
    return found


def _writers_of(base: OpenBase, site: Site, layer: int) -> list[Writer]:
    row, parts = base.row, base.layer_parts(layer)
    experts = row.experts or ""
    weights = [f"{base.place(site, layer).writer}.weight"]
    if site is Site.MLP and row.fused and weights[0] not in parts:
        count = next((n for key in _EXPERT_COUNTS if isinstance(n := getattr(base.numbers, key, None), int)), 0)
        weights = (
            [row.fused] if row.fused in parts or not experts else [*dict.fromkeys(map(experts.format, range(count)))]
        )
        weights += [row.shared] if row.shared else []
    found: list[Writer] = []
    beside = {part: _bias(part) for part in weights if _bias(part) in parts}
    holding = [row.shared] if row.shared in beside else weights if len(beside) == len(weights) else []
    for part in weights:
        axis = -1 if part.removesuffix(".weight") in row.input_first else -2
        bias = f"{base.stem}.{layer}.{beside[part]}" if part in beside else None
        found.append(_checked(base, Writer(f"{base.stem}.{layer}.{part}", layer, site, axis, bias=bias)))
        if bias is not None:
            found.append(_checked(base, Writer(bias, layer, site, -1, is_bias=True, holds=part in holding)))
    return found


def holders_of(base: OpenBase, site: Site, layer: int) -> list[Writer]:
    """The biases that hold a constant of one site; see :func:`find_writers`."""
    return [writer for writer in writers_of(base, site, layer) if writer.holds]


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias" if weight.endswith(".weight") else f"{weight}_bias"


def _checked(base: OpenBase, writer: Writer) -> Writer:
    name, width = writer.name, base.numbers.hidden_size
    tensor = base.checkpoint.tensor(name)
    if base.is_quantised or (tensor is not None and tensor.form not in FLOATS):
        raise CheckpointError(ways_out(base.source.name, base.quantisation or str(tensor and tensor.form), name))
    if tensor is None:
        raise CheckpointError(
            f"{base.checkpoint.folder} lacks the tensor {name}: the checkpoint is incomplete, or a writer of "
            f"{base.row.model_type} is called otherwise than its row in sea_bake/model/anatomy.py says"
        )
    if tensor.dim() == 3 and tensor.shape[writer.axis] != width:  # Qwen3-VL's experts lie both ways on disk
        writer = replace(writer, axis=-3 - writer.axis)
    dims = (1, 2) if writer.is_bias else (2, 3)
    if tensor.dim() not in dims or tensor.shape[writer.axis] != width:
        raise CheckpointError(
            f"{name} has the unexpected shape {tuple(tensor.shape)}: its output dimension should be {width}"
        )
    return writer
