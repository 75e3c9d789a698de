"""Exactness is also measured: on the real weights of one layer of each kind, before anything is written.

The writers are multiplied by Q, a cyclic shift doubled and with its sign turned. Q mixes every axis and rounds nothing,
so in any dtype the site's output must be Q times what it was. That fails where a writer was overlooked, where something
stands between writer and output, and where a bias is added behind. The heads are an input: multiplied by Q there, or in
the writer's own input axis, they must give the same. And one added to the writers' biases must add one to the output:
that fails where experts' weights do not sum to one and, at the residual stream, where a norm or a factor is behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sea_bake.baking.open_base import OpenBase
from sea_bake.baking.writers import Writer, holders_of, writers_of
from sea_bake.edit import Edit
from sea_bake.errors import NotExactError, reason_of
from sea_bake.model.anatomy import FAMILIES, Site
from sea_bake.model.hooks import hooked
from sea_bake.model.one_layer import Shifted, alone, decoder_depth, load_state
from sea_bake.model.skeleton import decoder_class, feed, stack_of, with_little

_TOKENS = 8
# A few roundings of the largest entry; what must be noticed (a lost writer, a norm) changes it by the size of itself.
_ROOM = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def measure(base: OpenBase, edits: Sequence[Edit], *, folds: bool = True) -> list[dict[str, Any]]:
    """Prove for each kind of edited layer that its writers write the site's output, and nothing else does.

    For the l2 merge also that the layer's output does not depend on the length of the site's; for a constant, that
    their biases move the output by as much as themselves.

    Args:
        folds: measure also what only a fold needs: lengths and constants.

    Returns:
        One entry per kind: site, layer, relative difference found.

    Raises:
        NotExactError: a surprise; the message says where.
    """
    found = []
    seen: set[Any] = set()
    for edit in edits:
        for layer in edit.layers:
            shapes = {p: base.checkpoint.tensor(f"{base.stem}.{layer}.{p}").shape for p in base.layer_parts(layer)}  # type: ignore[union-attr]
            lengths, constants = folds and edit.merge == "l2", folds and "constant" in edit.extra
            kind = (edit.site, lengths, constants, tuple(sorted(shapes.items())))
            if kind not in seen:
                seen.add(kind)
                error = _measure_heads(base, layer) if edit.site.is_input else 0.0
                if edit.site.written_by is edit.site:
                    error = _measure(base, edit.site, layer, lengths=lengths)
                if constants and not edit.site.is_input:  # behind a linear's own input, its bias is all there is
                    error = max(error, _measure_constant(base, edit.site, layer))
                found.append({"site": edit.site.value, "layer": layer, "relative_difference": error})
    return found


def _cure(base: OpenBase) -> str:
    """An insert trusts the row of a known family; of a discovered one it has to pass this very test too."""
    if base.row.model_type in FAMILIES:
        return "Bake with --how insert."
    return (
        f"{base.row.model_type} has no row in sea_bake/model/anatomy.py, and what was discovered of it does not hold "
        'here: fit the edit at another site (--site), or add a row (sea_bake/README.md, "Add a family").'
    )


def _measure(base: OpenBase, site: Site, layer: int, *, lengths: bool) -> float:
    writers = writers_of(base, site, layer)
    before, output = _run(base, site, layer, [])
    shifted, _ = _run(base, site, layer, writers)
    expected = -2 * before.roll(1, dims=-1)
    scale = float(expected.abs().max())
    error = float((shifted - expected).abs().max()) / scale if scale else float("inf")
    room = _ROOM[before.dtype]
    if not error <= room:
        raise NotExactError(
            f"the {site.value} output of layer {layer} is not what {', '.join(w.name for w in writers)} write: "
            f"measured on the real weights, it differs by {error:.2g} of its size. {_cure(base)}"
        )
    if lengths:
        _, rescaled = _run(base, site, layer, [], rescale=True)
        change = float((rescaled - output).abs().max() / output.abs().max())
        if not change <= room:
            raise NotExactError(
                f"the l2 merge does not fold into layer {layer}: measured on the real weights, the layer's output "
                f"depends on the length of the {site.value} output ({change:.2g}). Bake with --how insert."
            )
        error = max(error, change)
    return error


def _measure_heads(base: OpenBase, layer: int) -> float:
    weights = [writer for writer in writers_of(base, Site.ATTN, layer) if not writer.is_bias]
    turned = [replace(writer, axis=-3 - writer.axis) for writer in weights]
    expected, _ = _run(base, Site.HEADS, layer, [], shift=True)
    output, _ = _run(base, Site.HEADS, layer, turned)
    error = float((output - expected).abs().max() / expected.abs().max())
    if not error <= _ROOM[output.dtype]:
        raise NotExactError(
            f"the heads of layer {layer} are not what {', '.join(w.name for w in weights)} reads: measured on the real "
            f"weights, its output differs by {error:.2g} of its size. {_cure(base)}"
        )
    return error


def _measure_constant(base: OpenBase, site: Site, layer: int) -> float:
    """One is added to the biases: how far is the output from moving by one, as a share of it."""
    biases = holders_of(base, site.written_by, layer)
    which = 1 if site is Site.BLOCK else 0
    before = _run(base, site.written_by, layer, [])[which]
    moved = _run(base, site.written_by, layer, [], raised=biases)[which]
    error = float((moved.double() - before.double() - 1).abs().max() / max(1.0, float(moved.abs().max())))
    if not error <= _ROOM[before.dtype]:
        raise NotExactError(
            f"a constant does not fold into layer {layer}: measured on the real weights, one added to "
            f"{', '.join(w.name for w in biases)} moves the {site.value} output by something else ({error:.2g} off). "
            f"{_cure(base)}"
        )
    return error


def layer_output(base: OpenBase, layer: int) -> Tensor:
    """What a layer gives for random inputs that are always the same, [tokens, d]."""
    return _run(base, Site.MLP, layer, [])[1]


@torch.inference_mode()
def _run(
    base: OpenBase,
    site: Site,
    layer: int,
    writers: Sequence[Writer],
    *,
    raised: Sequence[Writer] = (),
    rescale: bool = False,
    shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """The output of the site's module and the layer's, for random inputs.

    Args:
        writers: are multiplied by Q first.
        raised: biases that one is added to first.
        rescale: tokens of the output are given other lengths.
        shift: the module's input is multiplied by Q transposed: what a weight does whose input axis was multiplied.
    """
    width, module = base.text.hidden_size, base.place(site, layer).module
    for tuples in (0, 3, 2):
        caught: dict[str, Tensor] = {}

        def look(_: int, output: Tensor, caught: dict[str, Tensor] = caught) -> Tensor | None:
            caught["site"] = output.clone()
            return output * torch.linspace(0.5, 2, _TOKENS).to(output.dtype)[:, None] if rescale else None

        def see(_: int, output: Tensor, caught: dict[str, Tensor] = caught) -> None:
            caught["layer"] = output.clone()

        def turn(_: int, given: Tensor) -> Tensor:
            return -2 * given.roll(-1, dims=-1)

        model, block = one_layer(base, layer, writers, raised=raised, site=site, tuples=tuples)
        embedded = model.get_input_embeddings().weight.shape[-1]  # OPT-350m's is projected to the width
        inputs = torch.randn(1, _TOKENS, embedded, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        own = {0: block.get_submodule(module)}
        with hooked(own, look), hooked({0: block}, see), hooked(own if shift else {}, turn, inputs=True):
            try:
                feed(model, inputs)
            except Exception as error:
                failure = error
        _let_go(model)
        if caught.keys() == {"site", "layer"} and caught["layer"].numel() % (width * _TOKENS) == 0:
            return caught["site"].reshape(-1, width), caught["layer"].reshape(-1, width)
    reason = reason_of(failure)
    raise NotExactError(f"layer {layer} of {base.source.name} cannot be measured: {reason}. {_cure(base)}")


def _let_go(model: Any) -> None:
    """Of its weights: the model hangs together in circles, and looking for those takes longer than it ran."""
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()


def one_layer(
    base: OpenBase,
    layer: int,
    shifted: Sequence[Writer],
    *,
    raised: Sequence[Writer] = (),
    site: Site = Site.BLOCK,
    tuples: int = 0,
) -> tuple[Any, Any]:
    """A living model of one decoder layer, with the real weights of ``layer`` in their own dtype, ``shifted`` by Q, and
    one added to those ``raised``.

    transformers itself loads it, with all its conversions of checkpoints (fused experts and the like). For a site
    outside of them, a layer's experts are few and random.

    Returns:
        The model, and its layer.

    Raises:
        NotExactError: its tensors are not those that transformers expects of such a layer.
    """
    cls = decoder_class(base.text)
    axes = {writer.name: writer.axis for writer in shifted}
    higher = {writer.name for writer in raised}
    prefix, stem = f"{base.stem}.{layer}.", f"{base.row.stem}.{base.row.layers}.{layer}.".lstrip(".")
    experts = _experts(base, layer) if site.written_by.value.startswith("attn") else ()
    state: dict[str, Any] = {}
    for part in sorted(base.layer_parts(layer)):
        if not part.startswith(experts):
            name = prefix + part
            state[stem + part] = Shifted(base.checkpoint.tensor(name), axes.get(name), raised=name in higher)
    dtype = next(t.dtype for one in state.values() if (t := one.tensor).is_floating_point())
    config = with_little(base.text, experts=bool(experts))
    try:
        model, info = load_state(alone(cls, layer, tuples=tuples), config, state, dtype)
    except RuntimeError as error:  # shapes that transformers does not expect
        raise NotExactError(
            f"layer {layer} of {base.source.name} cannot be measured: {reason_of(error)}. {_cure(base)}"
        ) from error
    block = stack_of(model, decoder_depth(config))[1][layer]  # type: ignore[index]
    path = next(name for name, module in model.named_modules() if module is block)
    spared = tuple(f"{path}.{place.module}." for place in base.row.places(Site.MLP)) if experts else ()
    wrong = [k for k in info["missing_keys"] if k.startswith(f"{path}.") and not k.startswith(spared)]
    wrong += [*info["unexpected_keys"], *map(str, info["mismatched_keys"])]
    if wrong:
        raise NotExactError(
            f"layer {layer} of {base.source.name} cannot be measured: transformers misses or does not expect "
            f"{wrong[0]} in it. {_cure(base)}"
        )
    return model, block


def _experts(base: OpenBase, layer: int) -> tuple[str, ...]:
    """What the tensors of a module with experts begin with, in memory or on disk, where the layer has one."""
    stacks = [path for path in (base.row.experts, base.row.fused) if path]
    if not any(part.startswith(path.partition("{}")[0]) for path in stacks for part in base.layer_parts(layer)):
        return ()
    return tuple(f"{path.partition('.')[0]}." for path in stacks)
