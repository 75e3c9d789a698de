"""What ``torch.export`` leaves of a model, in operators that ONNX has: written node by node, not traced once more.

``torch.onnx.export`` runs every traced model a second time, operator by operator, to take apart what ONNX does not
have: half of an export's time. A decoder holds few such operators: casts that may be none, views, checks, an ``&``.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

_aten = torch.ops.aten
# Of a graph in which nothing is written in place, these give what they are given.
_SAME = {
    _aten.detach_.default,
    _aten.detach.default,
    _aten.alias.default,
    _aten.lift_fresh_copy.default,
}
_CASTS = {_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.to.other}
_CHECKS = {
    _aten._assert_scalar.default,
    _aten._assert_tensor_metadata.default,
    _aten.sym_constrain_range_for_size.default,
}
_PLAIN = {_aten.linear.default, _aten.matmul.default}  # made of others, and never a view
_OTHER_NAMES = {_aten.__and__.Tensor: _aten.bitwise_and.Tensor}


@contextlib.contextmanager
def quick_lowering() -> Iterator[None]:
    """Meanwhile ``torch.onnx.export`` takes a model apart by :func:`lower`, and by itself where that knows no way.

    A release of torch that does it elsewhere is left as it is.
    """
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes

        passes: Any = _fx_passes
        whole, known = passes.decompose_with_registry, _decomp.get_onnx_implemented_overloads
    except (ImportError, AttributeError):
        yield
        return

    def quick(program: Any, registry: Any) -> Any:
        return program if lower(program, set(known(registry))) else whole(program, registry)

    passes.decompose_with_registry = quick
    try:
        yield
    finally:
        passes.decompose_with_registry = whole


def lower(program: Any, known: set[Any]) -> bool:
    """Rewrite an exported program in place, or leave it as it is and return False.

    Args:
        program: a ``torch.export.ExportedProgram``.
        known: operators that are written in ONNX as they are.
    """
    graph = program.graph_module.graph
    if any(module is not program.graph_module for module in program.graph_module.modules()):
        return False  # a part that runs under a condition, or under settings of its own
    ways = {}
    for node in graph.nodes:
        if node.op == "call_function":
            way = _way(node, known)
            if way is None:
                return False
            ways[node] = way
    for node, way in ways.items():
        way(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return True


def _way(node: Any, known: set[Any]) -> Callable[[Any], None] | None:
    """How a node becomes one that ONNX has; None where that is not known here."""
    target = node.target
    if target in _CHECKS:
        return _drop
    if target in _SAME or (target is _aten.dropout.default and node.args[2] is False):
        return _pass
    if target in _CASTS:
        before, after = node.args[0].meta["val"], node.meta["val"]
        real = not (before.is_complex() or after.is_complex())
        return _cast if real and before.device == after.device else None
    if target is _aten.chunk.default:
        return _split
    if target is _aten.contiguous.default:
        return _copy  # a view of it may be none of what it is given
    if target is _aten.reshape.default:
        return _reshape
    if target is _aten.flatten.using_ints:
        return _flatten
    if target in _OTHER_NAMES:
        return _rename
    if target is _aten.promote_types.default:
        return _keep  # of two types: nothing is left of it where casts name theirs
    if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
        return _write if _written_safely(node, known) else None
    return _keep if target in known else None


def _written_safely(node: Any, known: set[Any]) -> bool:
    """Whether a node may make a new tensor in the place of the one that it writes to: nothing else shows that one.

    That is so where it comes new out of an operator, and what read it before made no view of it.
    """
    written = node.args[0]
    source = written.args[0] if written.target is operator.getitem else written
    earlier = itertools.takewhile(lambda other: other is not node, node.graph.nodes)
    return _pure(node) in known and all(map(_new, [source, *(n for n in earlier if n in written.users)]))


def _new(node: Any) -> bool:
    """Whether a node gives tensors of its own, none that is or may be a view."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    # What is made of other operators says nothing of views: reshape is one or none.
    own = target in _PLAIN or not torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    )
    return own and all(result.alias_info is None for result in target._schema.returns)


def _pure(node: Any) -> Any:
    """The operator of the same name that writes to nothing, such as ``add`` for ``add_``; None where there is none."""
    name = node.target._schema.name.partition("::")[2].removesuffix("_")
    return getattr(getattr(_aten, name, None), node.target._overloadname, None)


def _write(node: Any) -> None:
    """Those that read what was written, behind it, read what is made instead."""
    written = node.args[0]
    later = {*itertools.dropwhile(lambda other: other is not node, node.graph.nodes)} - {node}
    written.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    node.target = _pure(node)


def _keep(node: Any) -> None:
    """It is in ONNX."""


def _drop(node: Any) -> None:
    node.graph.erase_node(node)


def _pass(node: Any) -> None:
    """A node that gives what it is given: its readers read that; an output of the graph keeps its name."""
    (given, *_) = node.args
    if any(user.op == "output" for user in node.users):
        _copy(node)
        return
    node.replace_all_uses_with(given)
    node.graph.erase_node(node)


def _copy(node: Any) -> None:
    node.target, node.args = _aten.clone.default, node.args[:1]
    node.kwargs = {"memory_format": torch.contiguous_format}


def _cast(node: Any) -> None:
    (given, *_), dtype = node.args, node.meta["val"].dtype
    if given.meta["val"].dtype == dtype:
        _pass(node)
    else:
        node.target, node.args, node.kwargs = _aten._to_copy.default, (given,), {"dtype": dtype}


def _reshape(node: Any) -> None:
    given, sizes = node.args
    known = node.meta["val"].shape
    sizes = [now if isinstance(now, int) else size for now, size in zip(known, sizes)]
    with node.graph.inserting_before(node):
        copy = node.graph.call_function(_aten.clone.default, (given,), {"memory_format": torch.contiguous_format})
    copy.meta = {**node.meta, "val": given.meta["val"]}
    node.target, node.args = _aten._unsafe_view.default, (copy, sizes)


def _flatten(node: Any) -> None:
    given, *ends = node.args
    shape = given.meta["val"].shape
    first, last = (end % len(shape) for end in (*ends, *(0, -1)[len(ends) :]))
    with node.graph.inserting_before(node):
        sizes = [_size(node.graph, given, i) for i in range(len(shape))]
    merged = node.meta["val"].shape[first]
    sizes[first : last + 1] = [merged if isinstance(merged, int) else -1]
    node.args = (given, sizes)
    _reshape(node)


def _size(graph: Any, given: Any, axis: int) -> Any:
    """A size of what goes into a node: a number, or the first node that gives the same."""
    size = given.meta["val"].shape[axis]
    if isinstance(size, int):
        return size
    for node in itertools.takewhile(lambda node: node is not given, graph.nodes):
        if node.target is _aten.sym_size.int and str(node.meta["val"]) == str(size):
            return node
    node = graph.call_function(_aten.sym_size.int, (given, axis))
    node.meta = {**given.meta, "val": size}
    return node


def _rename(node: Any) -> None:
    node.target = _OTHER_NAMES[node.target]


def _split(node: Any) -> None:
    """Parts of one size, the last one perhaps smaller."""
    given, _, *dim = node.args
    axis = dim[0] if dim else 0
    node.target, node.args = _aten.split.Tensor, (given, node.meta["val"][0].shape[axis], axis)
