"""An edit, layer by layer, as a table."""

from __future__ import annotations

from sea_bake.edit import Edit


def by_layer(edit: Edit) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: ranks, leading singular values and signature; of another map, its parts and their sizes."""
    if not edit.is_sea:
        return ["layer", "parts, shapes and norms"], [[str(layer), _parts(edit, layer)] for layer in edit.layers]
    signatures = edit.recipe.get("signatures", {})
    rows = []
    for layer in edit.layers:
        leading = (" ".join(f"{x:.3g}" for x in spectrum[:3]) for spectrum in edit.spectra[layer].values())
        mark = signatures.get(str(layer))
        rows.append([str(layer), *map(str, edit.ranks[layer]), *leading, "" if mark is None else f"{mark:.4g}"])
    return ["layer", "k+", "k-", "σ+ (leading)", "σ- (leading)", "signature"], rows


def _parts(edit: Edit, layer: int) -> str:
    parts = edit.layer_arrays(layer).items()
    return ", ".join(f"{name} {part.shape} |{float((part.astype('d') ** 2).sum() ** 0.5):.3g}|" for name, part in parts)
