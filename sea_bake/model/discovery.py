"""Find the parts of a decoder that ``anatomy`` has no row for, and prove them: on one layer, with random weights.

What stands where is not guessed from names. A module that does the same to each token, in whatever order they stand,
is the MLP, one that does not is the attention; and a tensor on disk is the writer of a site when Q, a cyclic shift
doubled and with its sign turned, multiplied onto it, comes out of the site. What cannot be proved so is refused.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sea_bake.errors import FamilyError
from sea_bake.model.anatomy import SEA_PREFIX, Family, family
from sea_bake.model.hooks import first_of, hooked
from sea_bake.model.one_layer import load_state, one_layer_config

_TOKENS = 6
_ROOM = 1e-4  # float32: a few roundings; what must be noticed is of the size of the output itself


def family_of(text: Any) -> Family:
    """The row of a decoder's configuration: from ``anatomy``, or else discovered and proved.

    Raises:
        FamilyError: edited already; or unknown and not provable. The message says what was found.
    """
    try:
        return family(text.model_type)
    except FamilyError:
        if text.model_type.startswith(SEA_PREFIX):
            raise
        kind: Any = type(text)
        return _discovered(text.model_type, json.dumps(text.to_dict(), default=str), kind)


@functools.lru_cache(maxsize=16)
def _discovered(model_type: str, data: str, kind: Any) -> Family:
    text = kind.from_dict(json.loads(data))
    found: dict[str, str] = {}
    try:
        rows = [_discover(text, layer, found) for layer in sorted({0, text.num_hidden_layers - 1})]
    except FamilyError:
        raise
    except Exception as error:
        raise _refusal(model_type, found, f"a layer of it does not run by itself ({error})") from error
    parts = ("stem", "layers", "attn", "mlp", "attn_writer", "input_first", "norm_behind")
    if any(getattr(row, part) != getattr(rows[0], part) for row in rows for part in parts):
        raise _refusal(model_type, found, "its layers are not all built alike")
    dense = next((row for row in rows if row.experts is None and row.fused is None), rows[0])
    mixed = next((row for row in rows if row is not dense and (row.experts or row.fused)), dense)
    return replace(dense, experts=mixed.experts, fused=mixed.fused, shared=mixed.shared)


def _discover(text: Any, layer: int, found: dict[str, str]) -> Family:
    from transformers import AutoModelForCausalLM

    config = one_layer_config(text, layer)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)  # no bias stays 0 and no norm 1
    decoder = model.get_decoder()
    stem = next(name for name, module in model.named_modules() if module is decoder)
    stacks = [n for n, m in decoder.named_children() if isinstance(m, nn.ModuleList) and len(m) == 1]
    if len(stacks) != 1:
        raise _refusal(text.model_type, found, f"its decoder has {len(stacks)} stacks of layers, not 1")
    found["stack of layers"] = f"{stem}.{stacks[0]}"
    block = getattr(decoder, stacks[0])[0]
    on_disk = _on_disk(model, f"{stem}.{stacks[0]}.0.")
    width = config.hidden_size
    row = Family(text.model_type, stem, stacks[0])
    done: set[str] = set()
    taken: set[str] = set()  # writers: what lies inside or behind the attention is not the MLP
    norms = []
    for path, mixes in sorted(_candidates(model, block, width), key=lambda candidate: not candidate[1]):
        site = "attn" if mixes else "mlp"
        proved = None if site in done else _writers(model, block, path, on_disk, width)
        if proved is None or taken & {*proved[0]}:
            continue
        done.add(site)
        writers, input_first = proved
        taken |= {*writers}
        found[f"{site} module and writers"] = f"{path}: {', '.join(writers)}"
        row = replace(row, input_first=(*row.input_first, *input_first))
        row = replace(row, attn=path) if mixes else replace(row, mlp=path)
        row = _with_writers(row, site, writers, on_disk, model, f"{stem}.{stacks[0]}.0.")
        norms.append(_is_normed(model, block, path))
    if done != {"attn", "mlp"}:
        missing = " and ".join(sorted({"attn", "mlp"} - done))
        raise _refusal(text.model_type, found, f"no module could be proved to be its {missing}")
    return replace(row, norm_behind=all(norms))


def _refusal(model_type: str, found: Mapping[str, str], why: str) -> FamilyError:
    seen = "; ".join(f"{key}: {value}" for key, value in found.items()) or "nothing"
    return FamilyError(
        f"unknown model family '{model_type}', and discovering it failed: {why}. Found: {seen}. "
        "A decoder with the same parts needs one row in sea_bake/model/anatomy.py and a tiny config in "
        "tests/families.py ('Add a family' in sea_bake/README.md)."
    )


def _on_disk(model: Any, prefix: str) -> dict[str, Tensor]:
    """The layer's tensors by the names that they have in a checkpoint, relative to the layer."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="sea-bake-discovery-") as folder:
        model.save_pretrained(folder, max_shard_size="100GB")
        (file,) = Path(folder).glob("*.safetensors")
        return {n.removeprefix(prefix): t for n, t in load_file(file).items() if n.startswith(prefix)}


def _inputs(model: Any) -> Tensor:
    width = model.config.get_text_config(decoder=True).hidden_size
    return torch.randn(1, _TOKENS, width, generator=torch.Generator().manual_seed(1))


def _candidates(model: Any, block: nn.Module, width: int) -> list[tuple[str, bool]]:
    """(path, whether it mixes tokens) of the modules that give [1, tokens, width], outermost first."""
    calls: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, args, kwargs, out, path=path: calls.setdefault(path, []).append((args, kwargs, _copy(out))),
            with_kwargs=True,
        )
        for path, module in block.named_modules()
        if path
    ]
    with torch.inference_mode():
        model.get_decoder()(inputs_embeds=_inputs(model), use_cache=False)
    for handle in handles:
        handle.remove()
    found = []
    for path, seen in calls.items():
        module, output = block.get_submodule(path), seen[0][2]
        if len(seen) > 1 or not isinstance(output, Tensor) or not any(p.dim() > 1 for p in module.parameters()):
            continue  # called more than once, or nothing that could hold a writer
        if output.numel() == _TOKENS * width == output.shape[-1] * _TOKENS:
            found.append((path, _mixes(module, *seen[0])))
    return sorted(found, key=lambda item: item[0].count("."))


def _copy(output: Any) -> Any:
    output = first_of(output)
    return output.clone() if isinstance(output, Tensor) else output  # some blocks add the residual in place


def _mixes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> bool:
    """Whether a token's output depends on the others: the same call, with the tokens in reverse order."""

    def reverse(value: Any) -> Any:
        is_tokens = isinstance(value, Tensor) and value.dim() in (2, 3) and value.shape[-2] == _TOKENS
        return value.flip(-2) if is_tokens and value.is_floating_point() else value

    expected = output.flip(-2)
    with torch.inference_mode():
        again = first_of(module(*map(reverse, args), **{k: reverse(v) for k, v in kwargs.items()}))
    return not torch.allclose(again, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _groups(on_disk: Mapping[str, Tensor], width: int) -> Iterator[tuple[str, list[str], int]]:
    """(name with {} for numbers, names, axis) of the matrices that could write into ``width`` dimensions."""
    names: dict[str, list[str]] = {}
    for name, tensor in on_disk.items():
        if tensor.dim() > 1:
            names.setdefault(re.sub(r"\.\d+\.", ".{}.", name), []).append(name)
    for axis in (-2, -1):
        for pattern, members in names.items():
            if all(on_disk[name].shape[axis] == width for name in members):
                yield pattern, members, axis


def _writers(
    model: Any, block: nn.Module, path: str, on_disk: Mapping[str, Tensor], width: int
) -> tuple[list[str], tuple[str, ...]] | None:
    """Patterns of the tensors that write a module's output, and which are stored input first; None if unproved."""
    before = _output(model, block.get_submodule(path), {})
    expected = -2 * before.roll(1, dims=-1)
    groups = list(_groups(on_disk, width))
    for size in (1, 2):
        for chosen in combinations(groups, size):
            if size == 2 and not any("{}" in pattern or on_disk[names[0]].dim() == 3 for pattern, names, _ in chosen):
                continue  # two that add up to an output: only experts and the shared one do
            shifted: dict[str, Tensor] = {}
            for _, members, axis in chosen:
                for name in members:
                    shifted[name] = -2 * on_disk[name].roll(1, dims=axis)
                    bias = f"{name.removesuffix('.weight')}.bias" if name.endswith(".weight") else f"{name}_bias"
                    if bias in on_disk:
                        shifted[bias] = -2 * on_disk[bias].roll(1, dims=-1)
            after = _output(model, block.get_submodule(path), {**on_disk, **shifted})
            if float((after - expected).abs().max()) <= _ROOM * float(expected.abs().max()):
                first = tuple(pattern.removesuffix(".weight") for pattern, _, axis in chosen if axis == -1)
                return [pattern for pattern, _, _ in chosen], first
    return None


def _output(model: Any, module: nn.Module, layer: Mapping[str, Tensor]) -> Tensor:
    """A module's output, with the layer's tensors loaded from their on-disk names (none: as it stands)."""
    caught: list[Tensor] = []
    if layer:
        decoder = model.get_decoder()
        names = {m: n for n, m in model.named_modules()}
        stem = names[next(m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) == 1)]
        state = {f"{stem}.0.{name}": tensor for name, tensor in layer.items()}
        outside = {n: p for n, p in model.state_dict().items() if not n.startswith(f"{stem}.0.")}
        path = names[module]
        model = load_state(type(model), model.config, {**outside, **state})[0]
        module = model.get_submodule(path)
    with hooked({0: module}, lambda _, output: caught.append(output.clone())), torch.inference_mode():
        model.get_decoder()(inputs_embeds=_inputs(model), use_cache=False)
    return caught[0].reshape(_TOKENS, -1)


def _is_normed(model: Any, block: nn.Module, path: str) -> bool:
    """Whether the layer's output does not depend on the length of the module's."""
    outputs: list[Tensor] = []
    stretches: tuple[Any, ...] = (1.0, torch.linspace(0.5, 2, _TOKENS)[:, None])
    for stretch in stretches:

        def rescale(_: int, output: Tensor, by: Any = stretch) -> Tensor:
            return output * by

        with (
            torch.inference_mode(),
            hooked({0: block.get_submodule(path)}, rescale),
            hooked({0: block}, lambda _, output: outputs.append(output.clone())),
        ):
            model.get_decoder()(inputs_embeds=_inputs(model), use_cache=False)
    return torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-4 * float(outputs[0].abs().max()))


def _with_writers(
    row: Family, site: str, writers: list[str], on_disk: Mapping[str, Tensor], model: Any, prefix: str
) -> Family:
    """The row with a site's writers: a dense one, or experts (fused, or each by itself) and a shared one."""
    plain = [w for w in writers if "{}" not in w and on_disk[w].dim() == 2]
    experts = [w for w in writers if w not in plain]
    if not experts:
        if len(plain) != 1:
            raise _refusal(row.model_type, {site: ", ".join(writers)}, f"its {site} has {len(plain)} writers")
        writer = plain[0].removesuffix(".weight")
        return replace(row, attn_writer=writer) if site == "attn" else replace(row, mlp_writer=writer)
    if site == "attn" or len(experts) != 1:
        raise _refusal(row.model_type, {site: ", ".join(writers)}, f"its {site} is written by several stacks")
    size = sum(on_disk[n].numel() for n in on_disk if re.sub(r"\.\d+\.", ".{}.", n) == experts[0])
    tail = experts[0].removesuffix(".weight").rpartition(".")[2]
    stacked = [n for n, p in model.named_parameters() if n.startswith(prefix) and p.dim() == 3 and p.numel() == size]
    named = [n for n in stacked if n.endswith(tail)] or stacked
    fused = named[-1].removeprefix(prefix) if named else None
    shared = plain[0] if plain else None
    return replace(row, experts=experts[0] if experts[0] != fused else None, fused=fused, shared=shared)
