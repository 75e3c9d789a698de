"""A small living model, and one of its layers called by itself, again and again, with the inputs that it had there."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sea_bake.model.hooks import first_of, hooked
from sea_bake.model.one_layer import load_state, quiet
from sea_bake.model.skeleton import BESIDE, built, feed, stack_of

TOKENS = 6
CLOSE = 1e-4  # float32: a few roundings; what must be noticed is of the size of the output itself


class Small:
    """A model with random weights, and one of its decoder layers under study.

    Attributes:
        model: it, in float32; no bias is 0 and no norm 1.
        layer: number of the layer.
        block: the layer.
        width: of the residual stream.
        calls: module path inside the layer -> (args, kwargs, output) of each of its calls.
    """

    def __init__(self, config: Any, layer: int) -> None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            self.model = built(config).eval()
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        self.layer, self.width = layer, config.hidden_size
        self.block = self._layer_of(self.model)
        self.calls: dict[str, list[tuple[Any, Any, Any]]] = {}
        handles = [
            module.register_forward_hook(
                lambda _m, args, kwargs, out, path=path: self.calls.setdefault(path, []).append(
                    (_copy(args), _copy(kwargs), _copy(first_of(out)))
                ),
                with_kwargs=True,
            )
            for path, module in self.block.named_modules()
            if path
        ]
        inputs: list[tuple[Any, Any]] = []
        handles.append(
            self.block.register_forward_pre_hook(
                lambda _m, args, kwargs: inputs.append((_copy(args), _copy(kwargs))), with_kwargs=True
            )
        )
        embedded = self.model.get_input_embeddings().weight.shape[-1]
        embeds = torch.randn(1, TOKENS, embedded, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            feed(self.model, embeds)
        for handle in handles:
            handle.remove()
        self._inputs = inputs[0]

    def _layer_of(self, model: Any) -> nn.Module:
        stack = stack_of(model, model.config.num_hidden_layers)
        assert stack is not None
        return stack[1][self.layer]

    def run(self, path: str, act: Any = None, model: Any = None) -> tuple[Tensor, Tensor]:
        """A module's output and the layer's, [tokens, width]; ``act`` may replace the module's."""
        block = self.block if model is None else self._layer_of(model)
        caught: dict[str, Tensor] = {}

        def look(_: int, output: Tensor) -> Tensor | None:
            caught["module"] = output.clone()
            return None if act is None else act(output)

        args, kwargs = _copy(self._inputs)
        with torch.inference_mode(), hooked({0: block.get_submodule(path)}, look):
            caught["layer"] = first_of(block(*args, **kwargs)).clone()
        return caught["module"].reshape(TOKENS, -1), caught["layer"].reshape(TOKENS, -1)

    @functools.cached_property
    def streams(self) -> bool:
        """Whether the layer gives several residual streams."""
        return self.run(next(iter(self.calls)))[1].shape[1] != self.width

    def passes(self, path: str, container: str) -> bool:
        """Whether a module's output goes straight into that of a module around it ("": the layer): added, perhaps
        scaled, or behind a norm.
        """
        outputs: list[Tensor] = []
        generator = torch.Generator().manual_seed(2)
        step = torch.randn(TOKENS, self.width, generator=generator) * self.run(path)[0].abs().mean()
        for times in (0, 1, 2):
            outputs.append(self._outer(container, path, lambda out, t=times: out + t * step.reshape(out.shape)))
        once, twice = outputs[1] - outputs[0], outputs[2] - outputs[0]
        return _near(twice, 2 * once, once) or self.is_normed(path, container) or self.is_added(path, container)

    def is_added(self, path: str, container: str = "") -> bool:
        """Whether a module's output is added, as it is, to something else: in the output of the layer, or of a module
        in it; or in what a module there is given, as a norm behind the sum is.
        """
        step = torch.randn(TOKENS, self.width, generator=torch.Generator().manual_seed(2))
        inside = {p: m for p, m in self.block.named_modules() if not container or p.startswith(f"{container}.")}
        before, after = (self._sums(path, container, inside, times * step) for times in (0, 1))
        own = self.run(path)[0]
        return any(
            value.shape == step.shape == after[key].shape
            and _near(after[key] - value, step, step)
            and not torch.allclose(value, own, rtol=0, atol=CLOSE * float(own.abs().max()))
            for key, value in before.items()
        )

    def adds_given(self, path: str, container: str) -> bool:
        """Whether a module around another one says what that one says, and adds what it was given itself."""
        args, kwargs, output = self.calls[container][0]
        given = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.numel() == output.numel())
        own = self.calls[path][0][2]
        return any(_near(output.flatten() - own.flatten(), value.flatten(), output) for value in given)

    def _sums(self, path: str, container: str, inside: Mapping[str, nn.Module], step: Tensor) -> dict[str, Tensor]:
        """What modules are given, and the output of the container, where a step is added to a module's output."""
        caught: dict[str, Tensor] = {}

        def look(key: str, value: Any) -> None:
            if isinstance(value, Tensor) and value.numel() == step.numel():
                caught[key] = value.detach().clone().reshape(TOKENS, -1)

        handles = [
            m.register_forward_pre_hook(lambda _m, a, p=p: look(p, a[0]) if a else None) for p, m in inside.items()
        ]
        try:
            caught["."] = self._outer(container, path, lambda out: out + step.reshape(out.shape))
        finally:
            for handle in handles:
                handle.remove()
        return caught

    def is_normed(self, path: str, container: str = "") -> bool:
        """Whether the output of the layer, or of a module in it, does not depend on the length of an inner one's."""
        stretch = torch.linspace(0.5, 2, TOKENS)[:, None]
        before = self._outer(container, path, lambda out: out)
        after = self._outer(container, path, lambda out: (out.reshape(TOKENS, -1) * stretch).reshape(out.shape))
        return torch.allclose(before, after, rtol=0, atol=CLOSE * float(before.abs().max()))

    def _outer(self, container: str, path: str, act: Any) -> Tensor:
        if not container:
            return self.run(path, act)[1]
        caught: list[Tensor] = []
        with hooked({0: self.block.get_submodule(container)}, lambda _, output: caught.append(output.clone())):
            self.run(path, act)
        return caught[0].reshape(TOKENS, -1)

    def looks_beside(self, path: str) -> bool:
        """Whether a module is given what stands beside the text: an attention to an image, or to an encoder."""
        args, kwargs, _ = self.calls[path][0]
        given = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() == 3)
        return any(v.shape[1] == BESIDE for v in given)

    def mixes(self, path: str) -> bool:
        """Whether other tokens' outputs depend on the first one: the same call, with that one's input changed."""

        def spoilt(value: Any) -> Any:
            is_tokens = isinstance(value, Tensor) and value.dim() in (2, 3) and value.shape[-2] == TOKENS
            if is_tokens and value.is_floating_point():
                value[..., 0, :] = value[..., 0, :].flip(-1) + 1
            return value

        args, kwargs, output = self.calls[path][0]
        with torch.inference_mode():
            args, kwargs = [spoilt(a) for a in _copy(args)], {k: spoilt(v) for k, v in _copy(kwargs).items()}
            again = first_of(self.block.get_submodule(path)(*args, **kwargs))
        before, after = (t.reshape(TOKENS, -1)[1:] for t in (output, again))
        return not torch.allclose(before, after, rtol=0, atol=1e-5 * float(output.abs().max()))

    @functools.cached_property
    def on_disk(self) -> dict[str, Tensor]:
        """All tensors of the model by the names that they have in a checkpoint."""
        from safetensors.torch import load_file

        with quiet(), tempfile.TemporaryDirectory(prefix="sea-bake-discovery-") as folder:
            self.model.save_pretrained(folder, max_shard_size="100GB")
            (file,) = Path(folder).glob("*.safetensors")
            found: dict[str, Tensor] = load_file(file)
            return found

    def loaded(self, state: Mapping[str, Tensor]) -> Any:
        """The same model from other tensors, through transformers' own loader and its conversions."""
        return load_state(type(self.model), self.model.config, state)[0]

    @functools.cached_property
    def prefix(self) -> str:
        """Prefix of the layer's names on disk: ``"model.layers.3."``; there the backbone may be called otherwise."""
        path = next(name for name, module in self.model.named_modules() if module is self.block)
        tail = ".".join(path.split(".")[-2:]) + "."
        heads = {name.partition(tail)[0] for name in self.on_disk if tail in name}
        return (heads.pop() if len(heads) == 1 else path.removesuffix(tail[:-1])) + tail

    @property
    def stem(self) -> str:
        """Prefix of the backbone's names on disk."""
        return self.prefix.removesuffix(".").rpartition(".")[0].rpartition(".")[0]


def is_turned(before: Tensor, after: Tensor) -> bool:
    """Whether an output is Q times what it was."""
    expected = -2 * before.roll(1, dims=-1)
    return bool(_near(after, expected, expected))


def _near(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    size = float(scale.abs().max())
    return size > 0 and float((a - b).abs().max()) <= CLOSE * size


def _copy(value: Any) -> Any:
    """Tensors cloned, also inside tuples and dictionaries: some layers add the residual in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(_copy, value))
    return {k: _copy(v) for k, v in value.items()} if type(value) is dict else value
