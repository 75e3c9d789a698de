"""Which modules of a small layer can be edited, and the tensors that write their outputs: proved by turning them.

A tensor is turned by Q, a cyclic shift of the output dimension, doubled and with its sign changed, which mixes every
axis; a writer is what turns the module's output by the same Q. Tensors are sought inside the module alone, so no site
lies in another one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from sea_bake.model.small import TOKENS, Small, is_turned

_Group = tuple[str, list[str], int]  # name with {} for numbers, names, output axis


@dataclass(frozen=True)
class Writers:
    """The tensors that write a module's output, inside the layer.

    Attributes:
        plain: the linear, or beside experts the shared one.
        experts: on-disk name of one expert's writer, with {} for its number; where that is not ``fused``.
        fused: name of all experts' writers in one tensor.
        input_first: those whose output axis is the last.
    """

    plain: str | None = None
    experts: str | None = None
    fused: str | None = None
    input_first: tuple[str, ...] = ()

    @property
    def is_stacked(self) -> bool:
        return self.experts is not None or self.fused is not None

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.experts or self.fused, self.plain)))


def proved(small: Small) -> tuple[dict[str, Writers], dict[str, Writers]]:
    """The proved modules that mix tokens, and those that do not, outermost first; none lies in another.

    What looks at an image or an encoder alone is none. A module inside one that cannot be proved counts only where its
    output goes straight into that one's; and one linear by itself (OPT's fc2) only where it goes into the layer's.
    """
    mixers: dict[str, Writers] = {}
    mlps: dict[str, Writers] = {}
    mixing = {path: small.mixes(path) for path in _candidates(small)}
    beside = [path for path, mixes in mixing.items() if not mixes and small.looks_beside(path)]
    mixing = {path: mixes for path, mixes in mixing.items() if not any(f"{path}.".startswith(f"{b}.") for b in beside)}
    for path, mixes in sorted(mixing.items(), key=lambda item: item[0].count(".")):
        around = [other for other in mixing if path.startswith(f"{other}.")]
        if any(other in mixers or other in mlps for other in around):
            continue
        if not mixes and any(mixing[other] for other in around):
            if not all(small.is_added(path, other) for other in around):
                continue  # a projection inside of an attention; but not the last one, where that adds the residual
            mixes = True
        if not all(small.passes(path, other) for other in around):
            continue
        if not mixes and not all(_is_whole(small, path, other) for other in around):
            continue
        matrices = sum(p.dim() > 1 for p in small.block.get_submodule(path).parameters())
        if not mixes and matrices == 1 and not small.passes(path, ""):
            continue
        writers = _writers(small, path)
        if writers is not None:
            (mixers if mixes else mlps)[path] = writers
    return mixers, mlps


def _is_whole(small: Small, path: str, container: str) -> bool:
    """Whether all that a module around another one says comes from that one; experts beside shared ones are a part."""
    matrices = (name for name, p in small.block.get_submodule(container).named_parameters(container) if p.dim() > 1)
    return all(name.startswith(f"{path}.") for name in matrices) or small.adds_given(path, container)


def _candidates(small: Small) -> Iterator[str]:
    """Modules that are called once, hold a matrix and give [1, tokens, width]."""
    for path, calls in small.calls.items():
        output = calls[0][2]
        if len(calls) > 1 or not isinstance(output, Tensor):
            continue
        if not any(p.dim() > 1 for p in small.block.get_submodule(path).parameters()):
            continue
        if output.numel() == TOKENS * small.width == output.shape[-1] * TOKENS:
            yield path


def _groups(tensors: Mapping[str, Tensor], width: int) -> Iterator[_Group]:
    """The matrices that could write into ``width`` dimensions; numbered ones of one shape also together."""
    names: dict[tuple[str, torch.Size], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            names.setdefault((re.sub(r"\.\d+\.", ".{}.", name), tensor.shape), []).append(name)
    single = [(name, [name]) for members in names.values() for name in members]
    several = [(pattern, members) for (pattern, _), members in names.items() if len(members) > 1]
    for axis in (-2, -1):
        for pattern, members in (*single, *several):
            if all(tensors[name].shape[axis] == width for name in members):
                yield pattern, members, axis


def _chosen(groups: list[_Group], tensors: Mapping[str, Tensor]) -> Iterator[tuple[_Group, ...]]:
    """One writer; or experts and a shared one, which add up."""
    for group in groups:
        yield (group,)
    for pair in combinations(groups, 2):
        if any("{}" in pattern or tensors[names[0]].dim() == 3 for pattern, names, _ in pair):
            yield pair


def _turned(chosen: tuple[_Group, ...], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The chosen tensors times Q, and their biases."""
    found: dict[str, Tensor] = {}
    for _, members, axis in chosen:
        for name in members:
            found[name] = -2 * tensors[name].roll(1, dims=axis)
            bias = f"{name.removesuffix('.weight')}.bias" if name.endswith(".weight") else f"{name}_bias"
            if bias in tensors:
                found[bias] = -2 * tensors[bias].roll(1, dims=-1)
    return found


def _writers(small: Small, path: str) -> Writers | None:
    parameters = dict(small.block.named_parameters())
    inside = {n: p.data for n, p in parameters.items() if n.startswith(f"{path}.")}
    before = small.run(path)[0]

    def proves(chosen: tuple[_Group, ...]) -> bool:
        turned = _turned(chosen, inside)
        with _put(parameters, turned):
            return is_turned(before, small.run(path)[0])

    chosen = next(filter(proves, _chosen(list(_groups(inside, small.width)), inside)), None)
    return None if chosen is None else _named(small, path, chosen, before)


@contextlib.contextmanager
def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in parameters, for as long as the context lasts."""
    before = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in before.items():
            parameters[name].data = value


def _named(small: Small, path: str, chosen: tuple[_Group, ...], before: Tensor) -> Writers | None:
    """The proved tensors by their names on disk, which for experts may be others than in memory: proved once more."""
    state = small.on_disk
    prefix = small.prefix
    disk = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    memory = dict(small.block.named_parameters())
    kept = [group for group in chosen if all(n in disk and torch.equal(disk[n], memory[n]) for n in group[1])]
    moved = [group for group in chosen if group not in kept]
    if len(moved) > 1:
        return None
    found = tuple(kept)
    if moved:
        others = {name: t for name, t in disk.items() if name not in memory}

        def proves(group: _Group) -> bool:
            turned = _turned((*kept, group), disk)
            model = small.loaded(state | {prefix + name: t for name, t in turned.items()})
            return is_turned(before, small.run(path, model=model)[0])

        size = sum(memory[n].numel() for n in moved[0][1])
        groups = [g for g in _groups(others, small.width) if sum(others[n].numel() for n in g[1]) == size]
        group = next(filter(proves, groups), None)
        if group is None:
            return None
        found = (*kept, group)
    first = tuple(pattern.removesuffix(".weight") for pattern, _, axis in found if axis == -1)
    plain = [g[0] for g in found if "{}" not in g[0] and disk[g[1][0]].dim() == 2]
    experts = [g[0] for g in found if g[0] not in plain]
    if len(plain) > 1 or len(experts) > 1:
        return None
    stacked = next((g[0] for g in chosen if memory[g[1][0]].dim() == 3), None)
    one = experts[0] if experts and experts[0] != stacked else None
    return Writers(plain[0].removesuffix(".weight") if plain else None, one, stacked if experts else None, first)
