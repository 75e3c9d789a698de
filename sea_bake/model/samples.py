"""A few values of a model's tensors, by names that its files share with it in memory: what a fingerprint is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sea_bake.model.anatomy import Family, Site
from sea_bake.model.checkpoint.reader import LazyTensor
from sea_bake.model.placing import Offloaded

WRITER, REST = 16, 4  # values of an output projection, or of a tensor outside of the layers; and of any other one


def values(tensor: Any, count: int) -> list[float]:
    """Of a [n] tensor or along the diagonal of a [rows, columns] one (of the first of a stack), evenly spaced; readable
    from a lazy tensor without decoding it all.
    """
    places = sample_places(tensor.shape, count)
    if isinstance(tensor, LazyTensor):
        return [tensor.element(place) for place in places]
    if isinstance(tensor, Offloaded):
        return tensor.elements(places)
    return [float(x) for x in tensor.detach()[tuple(zip(*places))].tolist()]


def sample_places(shape: Sequence[int], count: int = WRITER) -> list[tuple[int, ...]]:
    """Where the samples of a weight [..., rows, columns] or [n] are taken, in their order: one full index each."""
    stack, ends = (0,) * (len(shape) - 2), shape[-2:]
    return [(*stack, *(i * (end - 1) // (count - 1) for end in ends)) for i in range(count)]


def form_of(tensor: Any) -> Any:
    """Its dtype; of a lazy tensor known without torch."""
    return tensor.form if isinstance(tensor, LazyTensor | Offloaded) else tensor.dtype


def is_comparable(tensor: Any) -> bool:
    """Whether its values are there and are those of the model: not quantised, not FP8 (which some devices dequantise on
    loading), not offloaded to where nobody can read them.
    """
    there = tensor.dim() > 0 and 0 not in tensor.shape and tensor.is_floating_point()
    lost = not isinstance(tensor, LazyTensor | Offloaded) and tensor.device.type == "meta"
    return bool(there and form_of(tensor).itemsize > 1 and not lost)


def of_writers(row: Family, depth: int, tensor: Callable[[int, str], Any]) -> dict[str, Any]:
    """ "<layer>.<writer>" -> the tensor, of attention and MLP in each layer that has one of comparable values.

    Args:
        tensor: layer, name inside of it -> the tensor, or a lazy one; None when there is none.
    """
    found = {}
    for layer in range(depth):
        for site in (Site.ATTN, Site.MLP):
            # The first expert's writer: alone on disk, the first of the fused tensor in memory.
            experts = [] if site is Site.ATTN else [row.fused, row.experts and row.experts.format(0)]
            written = {f"{place.writer}.weight": place.writer for place in row.places(site)}
            written |= dict.fromkeys(filter(None, experts), row.writer(site))
            path, one = next(((p, t) for p in written if (t := tensor(layer, p)) is not None), ("", None))
            if one is not None and is_comparable(one) and one.dim() in (2, 3):
                found[f"{layer}.{written[path]}"] = one
    return found


def of_rest(
    names: Iterable[str], stack: str, writers: Iterable[str], tensor: Callable[[str], Any]
) -> dict[str, tuple[Any, int]]:
    """Key -> tensor and how many values of it, of everything else but experts and other stacks (an encoder's, or those
    that look at images): "<layer>.<name>" inside the layers, the name inside the decoder beside them, else all of it.

    Args:
        names: of all tensors.
        stack: prefix of the decoder's layers, such as "model.layers".
        writers: the keys of ``of_writers``.
        tensor: name -> the tensor, or a lazy one.
    """
    decoder, known = stack.rpartition(".")[0], {f"{key}.weight" for key in writers}
    found = {}
    for name in names:
        if "experts" in name:
            continue
        key, inside = name, name.startswith(f"{stack}.")
        for prefix in (stack, decoder):
            if prefix and name.startswith(f"{prefix}."):
                key = name.removeprefix(f"{prefix}.")
                break
        if key in known or (not inside and re.search(r"(^|\.)\d+(\.|$)", key)):
            continue
        one = tensor(name)
        if one is not None and is_comparable(one):
            found[key] = one, REST if inside else WRITER
    return found
