"""Patterns of graph rewrites are compared only with nodes that they can begin at: a quarter of an export's time.

For a pattern with several outputs, onnxscript 0.7 goes through the whole graph at every node, so its time grows with
the square of the number of nodes, though at most one node in a hundred has the operator that the pattern begins with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quick_matching() -> Iterator[None]:
    """Meanwhile the answer of onnxscript's matcher is the same, and comes at once where the operator is another one.

    A release of onnxscript that keeps its matcher elsewhere is left as it is.
    """
    try:
        from onnxscript.rewriter._basics import MatchResult
        from onnxscript.rewriter._matcher import SimplePatternMatcher as Matcher
    except ImportError:
        yield
        return
    whole = Matcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if _begins_elsewhere(self.pattern, node):
            return MatchResult().fail("The operator is another one.", node)
        return whole(self, model, graph, node, **options)

    Matcher.match = match
    try:
        yield
    finally:
        Matcher.match = whole


def _begins_elsewhere(pattern: Any, node: Any) -> bool:
    """Whether the pattern's first output comes of one known operator, and the node is another one."""
    try:
        operator = pattern.output_nodes[0].op_identifier()
    except (AttributeError, IndexError):
        return False
    return operator is not None and operator[:2] != (node.domain, node.op_type)
