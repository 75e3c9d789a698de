"""How far a graph of less precision is from the float32 one: the same texts through both, in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sea_bake.activations.prompts import encode
from sea_bake.activations.rendering import usable
from sea_bake.demonstrations import builtin
from sea_bake.verification.bypass import bypass
from sea_bake.verification.onnx_answers import Decoder, forced

TOKENS = 256


def measure(
    reference: Path, variants: Mapping[str, Path], tokenizer: Any, sea_nodes: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """How far variants are from the float32 graph, over prompts and answers of the built-in demonstrations.

    One graph is open at a time. What becomes of the *edit* in a variant is another question, which ``verify`` answers.

    Args:
        reference: the float32 graph.
        variants: kind -> graph.
        tokenizer: the model's.
        sea_nodes: names of the edit's own nodes, which all these graphs have: without them each is its base.

    Returns:
        Kind -> "tokens" (number of positions that were compared), "mean_kl" (mean KL(float32 ‖ variant) per token,
        nats) and "top1" (share of tokens at which both say the same); with ``sea_nodes`` also "base_kl" (the same KL
        of both without the edit: what the precision does to the base) and "edit_kl" (mean KL(base ‖ edited), in
        float32: what the edit does to it).
    """
    texts = _texts(tokenizer)
    count = sum(map(len, texts))
    expected = answers(reference, texts, mapped=True)
    base = _unedited(reference, texts, sea_nodes, mapped=True)
    edit_kl = _mean_kl(base, expected) if base else None
    found: dict[str, dict[str, Any]] = {}
    for kind, path in variants.items():
        ours = answers(path, texts)
        same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(expected, ours))
        found[kind] = {"tokens": count, "mean_kl": _mean_kl(expected, ours), "top1": same / count}
        if base:
            found[kind] |= {"base_kl": _mean_kl(base, _unedited(path, texts, sea_nodes)), "edit_kl": edit_kl}
    return found


def _mean_kl(p: Sequence[np.ndarray], q: Sequence[np.ndarray]) -> float:
    """Mean KL(p ‖ q) per token of answers to the same texts, nats."""
    return sum(float(divergence(a, b).sum()) for a, b in zip(p, q)) / sum(map(len, p))


def _unedited(
    graph: Path, texts: Sequence[Sequence[int]], sea_nodes: Sequence[str], *, mapped: bool = False
) -> list[np.ndarray]:
    """``answers`` of a graph led past its edit; none at all without nodes to lead past (a fold has none)."""
    if not sea_nodes:
        return []
    with tempfile.TemporaryDirectory(prefix="sea-bake-export-") as folder:
        bare = Path(folder) / graph.name
        bare.write_bytes(bypass(graph, sea_nodes))
        return answers(bare, texts, mapped=mapped, weights=graph.parent)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) of two rows of logits [..., vocabulary], in nats, in float64."""
    a, b = (x - x.max(-1, keepdims=True) for x in (p.astype(np.float64), q.astype(np.float64)))
    a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
    return np.asarray((np.exp(a) * (a - b)).sum(-1))


def answers(
    graph: Path, texts: Sequence[Sequence[int]], *, mapped: bool = False, weights: Path | None = None
) -> list[np.ndarray]:
    """Logits [length, vocabulary] float32 of each text, each on an empty cache.

    Args:
        mapped: leave the weights where they lie on disk, instead of a copy in the order that the kernels like best.
        weights: the folder of its weights, where that is not its own.
    """
    decoder = Decoder({"graph": str(graph), "mapped": mapped, "weights": weights and str(weights)})
    return [forced(decoder, ids, len(ids)) for ids in texts]


def _texts(tokenizer: Any) -> list[tuple[int, ...]]:
    """Whole texts from all over the built-in set, ``TOKENS`` tokens or a few more."""
    found: list[tuple[int, ...]] = []
    triples, form = builtin(), usable(tokenizer)
    for i in range(len(triples)):
        if sum(map(len, found)) >= TOKENS:
            break
        triple = triples[i * 37 % len(triples)]  # 37 and 160 share no divisor: every triple once, and never neighbours
        found.append(encode(tokenizer, triple.prompt, triple.positive, form).ids)
    return found
