"""The families as llama.cpp calls them, and the tensors of a GGUF that write a site's output: none forgotten.

llama.cpp's converter keeps these tensors as they are (only query and key are permuted), and turns GPT-2's and gpt-oss's
round, so each is [..., d, in] here: one product serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, FamilyError, WrongModelError
from sea_bake.exporting.gguf.header import GgufFile, GgufTensor, new_tensor
from sea_bake.model.anatomy import FAMILIES, Family, Site, family

# Families whose sites' outputs are the same in llama.cpp's graph. Not there: OPT (llama.cpp has none), T5 (its decoder
# has names of its own, and is not tested).
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "granite": "granite",
    "cohere2": "cohere2",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "falcon": "falcon",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
}
# In llama.cpp's source (src/models) these load blk.N.attn_output.bias and blk.N.ffn_down.bias where a file has them.
BIASED = ("llama", "granite")
CONVERTER_CURE = "Bake a fold of it and let llama.cpp convert that folder: --converter PATH, without --base"


@dataclass(frozen=True)
class GgufWriter:
    """One tensor of a GGUF that writes a site's output: a weight [d, in] or [experts, d, in], or its bias.

    Attributes:
        tensor: on disk.
        layer, site: whose output it writes.
        is_bias: it is added to the output as it stands: [d] or [experts, d].
        weight: of a bias, the weight that it stands beside.
        is_new: a bias that the file lacks, and llama.cpp reads where there is one.
    """

    tensor: GgufTensor
    layer: int
    site: Site
    is_bias: bool = False
    weight: GgufTensor | None = None
    is_new: bool = False


def known_family(model_type: str) -> Family:
    """The row of a family that this package can find again in a GGUF.

    Raises:
        FamilyError: there is none.
    """
    if model_type not in ARCHITECTURES or model_type not in FAMILIES:
        raise FamilyError(
            f"which tensors of a GGUF are those of the family '{model_type}' is not known here; known: "
            f"{', '.join(sorted(ARCHITECTURES))}. {CONVERTER_CURE}."
        )
    return family(model_type)


def tensor_name(site: Site, layer: int, *, experts: bool = False, shared: bool = False) -> str:
    """Name of a writer in a GGUF, without ".weight": "blk.3.ffn_down"."""
    from gguf import MODEL_TENSOR, TENSOR_NAMES

    if site is Site.ATTN:
        kind = MODEL_TENSOR.ATTN_OUT
    elif experts:
        kind = MODEL_TENSOR.FFN_DOWN_EXP
    else:
        kind = MODEL_TENSOR.FFN_DOWN_SHEXP if shared else MODEL_TENSOR.FFN_DOWN
    return str(TENSOR_NAMES[kind].format(bid=layer))


def find_writers(file: GgufFile, row: Family, edits: Sequence[Edit], width: int) -> list[GgufWriter]:
    """Every writer of every edited site and layer.

    Args:
        width: d.

    Raises:
        CheckpointError: one is missing, of an unexpected shape, or accompanied by what is not understood.
        WrongModelError: experts where the edit's model has none.
    """
    places = sorted({(layer, edit.site.written_by) for edit in edits for layer in edit.layers})
    found = [writer for layer, site in places for writer in writers_of(file, row, site, layer, width)]
    constant = [edit for edit in edits if "constant" in edit.extra]
    constants = {(layer, edit.site.written_by) for edit in constant for layer in edit.layers}
    return found + [new for layer, site in sorted(constants) for new in _new_biases(file, found, site, layer)]


def _new_biases(file: GgufFile, found: Sequence[GgufWriter], site: Site, layer: int) -> list[GgufWriter]:
    """The bias that a constant needs, where a file of an architecture that reads one lacks it."""
    own = [writer for writer in found if (writer.layer, writer.site) == (layer, site)]
    if file.architecture not in BIASED or len(own) != 1 or len(own[0].tensor.shape) != 2:
        return []
    weight = own[0].tensor
    bias = new_tensor(f"{weight.name.removesuffix('weight')}bias", weight.shape[0])
    return [GgufWriter(bias, layer, site, is_bias=True, weight=weight, is_new=True)]


def writers_of(file: GgufFile, row: Family, site: Site, layer: int, width: int) -> list[GgufWriter]:
    """The writers of one site; see :func:`find_writers`."""
    stems = [tensor_name(site, layer)]
    experts, shared = tensor_name(site, layer, experts=True), tensor_name(site, layer, shared=True)
    _refuse_company(file, [*stems, experts, shared])
    if site is Site.MLP and f"{experts}.weight" in file.tensors:
        if not row.fused:
            raise WrongModelError(f"{file.path.name} has experts in layer {layer}, and {row.model_type} has none")
        stems = [experts, *([shared] if row.shared else [])]
    found: list[GgufWriter] = []
    for stem in stems:
        weight = file.tensors.get(f"{stem}.weight")
        if weight is None:
            raise CheckpointError(
                f"{file.path.name} lacks the tensor {stem}.weight: it is no whole {row.model_type}, or an old GGUF. "
                "Convert the model again with a recent llama.cpp."
            )
        found.append(_checked(file, GgufWriter(weight, layer, site), width))
        bias = file.tensors.get(f"{stem}.bias")
        if bias is not None:
            found.append(_checked(file, GgufWriter(bias, layer, site, is_bias=True, weight=weight), width))
    return found


def _refuse_company(file: GgufFile, stems: Sequence[str]) -> None:
    """Scales, or experts each in a tensor of its own: whoever edits the weight alone, edits something else."""
    for stem in stems:
        odd = [n for n in file.tensors if n.startswith(f"{stem}.") and n not in (f"{stem}.weight", f"{stem}.bias")]
        if odd:
            raise CheckpointError(
                f"{file.path.name} holds {odd[0]} beside {stem}.weight, which is not understood here. Convert the "
                "model again with a recent llama.cpp, to a type without separate scales."
            )


def _checked(file: GgufFile, writer: GgufWriter, width: int) -> GgufWriter:
    shape = writer.tensor.shape
    dims, axis = ((1, 2), -1) if writer.is_bias else ((2, 3), -2)
    if len(shape) not in dims or shape[axis] != width:
        raise CheckpointError(
            f"{writer.tensor.name} of {file.path.name} has the unexpected shape {shape}: its output dimension "
            f"should be {width}"
        )
    return writer
