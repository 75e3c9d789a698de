"""What an SEALayer asks of a device at each token: few kernels, one graph, no cache of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Workshop
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

from sea_bake.artefact.code import load_inserted
from sea_bake.modeling_sea import SEALayer

D = 24
VIEWS = {"promote_types", "view", "t", "transpose", "expand", "reshape", "_unsafe_view", "detach", "alias"}  # no kernel
# Settings -> kernels in the model's own precision, which is the layer's; of a narrower model two more: it is widened
# at the start, and narrowed at the end.
KERNELS: list[tuple[dict[str, Any], int]] = [
    ({"merge": "sum"}, 2),
    ({"merge": "sum", "alpha": 0.77}, 2),
    ({"merge": "l2"}, 7),
    ({"merge": "sum", "alpha": 0.5, "extra": ("constant",), "ranks": (0, 0)}, 1),
    ({"merge": "sum", "alpha": 0.5, "extra": ("constant",)}, 3),
    ({"merge": "sum", "alpha": 0.5, "extra": ("constant", "gate")}, 4),
    ({"merge": "sum", "alpha": 0.5, "extra": ("scale", "constant")}, 5),
]


class Kernels(TorchDispatchMode):
    """The operators inside of its block that a device would run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.partition(".")[0]
        if name not in VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def layer(ranks: tuple[int, int] = (3, 2), **settings: Any) -> SEALayer:
    made = SEALayer(D, ranks, **settings)
    draw = torch.Generator().manual_seed(7)
    made.load_state_dict({name: torch.randn(p.shape, generator=draw) / 4 for name, p in made.named_parameters()})
    return made


def plainly(made: SEALayer, h: torch.Tensor) -> torch.Tensor:
    """The docstring's formulas in float64, step by step."""
    x, tensors = h.double(), {name: tensor.detach().double() for name, tensor in made.named_parameters()}
    y = x * tensors.get("scale", torch.ones(D, dtype=torch.float64))
    if "A" in tensors:
        read = x @ tensors["A"].T
        y = y + (torch.relu(read + tensors["gate"]) if "gate" in tensors else read) @ tensors["B"].T
    y = y + tensors.get("constant", 0.0)
    if made.merge == "l2":
        y = y * x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    return x + made.alpha * (y - x)


@pytest.mark.parametrize(("settings", "kernels"), KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_takes_few_kernels(settings: dict[str, Any], kernels: int, dtype: torch.dtype) -> None:
    made, h = layer(**settings), torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad(), Kernels() as counted:
        y = made(h)
    assert len(counted.names) == kernels + 2 * (dtype != torch.float32), counted.names
    assert (y.shape, y.dtype) == (h.shape, dtype)
    # float32 sums of 24 terms, and the narrowing: half a unit in the last place.
    close = 1e-5 if dtype == torch.float32 else 2**-8 * float(y.abs().max())
    assert (plainly(made, h) - y.double()).abs().max() < close
    assert (h.double() - y.double()).abs().max() > 0.1  # the control
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.no_grad(),
    ):  # products in half precision, what they are added to not
        assert (plainly(made, h) - made(h).double()).abs().max() < 0.1
    made.alpha = 0.0
    assert torch.equal(made(h), h)


def test_shapes_of_any_kind_go_through() -> None:
    made = layer(merge="sum", alpha=0.5)
    for shape in ((D,), (0, D), (2, 0, D), (1, 2, 3, D)):
        h = torch.randn(shape)
        assert torch.allclose(made(h).double(), plainly(made, h), atol=1e-5)
    turned = torch.randn(D, 5).T  # not contiguous
    assert torch.allclose(made(turned).double(), plainly(made, turned), atol=1e-5)
    assert torch.equal(layer((0, 0), merge="sum")(turned), turned)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [("mlp", "sum", "identity"), ("attn", "l2", "identity"), ("block", "l2", "tanh"), ("mlp", "sum", "elu")]
)
def test_a_model_with_edits_is_one_graph_with_a_static_cache(workshop: Workshop, setting: tuple[str, str, str]) -> None:
    """Compiled without a break: what a break leaves out, no CUDA graph could hold. On a GPU it is one."""
    torch._dynamo.reset()  # it counts the models that it has seen
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_inserted(workshop.artefact("llama", *setting), dtype="auto").to(device)
    ids = torch.arange(5, 12, device=device)[None]

    def logits(run: Callable[..., Any], cached: bool) -> torch.Tensor:
        """Of a prompt, and of two tokens behind it."""
        if not cached:
            return torch.as_tensor(run(input_ids=ids, use_cache=False).logits)
        cache, found = StaticCache(config=model.config, max_cache_len=16), []
        for start, end in ((0, 5), (5, 6), (6, 7)):
            at = torch.arange(start, end, device=device)
            found.append(
                run(input_ids=ids[:, start:end], past_key_values=cache, position_ids=at[None], use_cache=True).logits
            )
        return torch.cat(found, 1)

    kind = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, **kind)
    with torch.no_grad():
        plain = logits(model, cached=False)
        assert torch.allclose(logits(compiled, cached=True), plain, atol=1e-4)
        lost = copy.deepcopy(model)
        for module in lost.modules():
            if type(module).__name__ == "SEALayer":
                module.alpha = 0.0
        assert not torch.allclose(logits(lost, cached=False), plain, atol=1e-2)  # the control


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are a GPU's")
@pytest.mark.parametrize("settings", [settings for settings, _ in KERNELS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_captured_in_a_cuda_graph(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Captured once, replayed on another activation: nothing in it waits for a value or takes memory of its own."""
    made = layer(**settings).cuda()
    first, second = torch.randn(2, 2, 3, D, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    read = first.clone()
    beside = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(beside):  # libraries take their workspaces before a capture
        made(read)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = made(read)
    for h in (first, second):
        read.copy_(h)
        graph.replay()
        with torch.no_grad():
            assert torch.equal(y, made(h))
    with torch.no_grad():
        assert not torch.equal(y, made(first))  # the control
