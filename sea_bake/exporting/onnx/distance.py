"""How far a graph of less precision is from the float32 one: the same texts through both, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sea_bake.activations.prompts import encode
from sea_bake.activations.rendering import usable
from sea_bake.demonstrations import builtin
from sea_bake.verification.onnx_answers import Decoder, forced

TOKENS = 256


def measure(reference: Path, variants: Mapping[str, Path], tokenizer: Any) -> dict[str, dict[str, Any]]:
    """How far variants are from the float32 graph, over prompts and answers of the built-in demonstrations.

    One graph is open at a time. What becomes of the *edit* in a variant is another question, which ``verify`` answers.

    Args:
        reference: the float32 graph.
        variants: kind -> graph.
        tokenizer: the model's.

    Returns:
        Kind -> "tokens" (number of positions that were compared), "mean_kl" (mean KL(float32 ‖ variant) per token,
        nats) and "top1" (share of tokens at which both say the same).
    """
    texts = _texts(tokenizer)
    count = sum(map(len, texts))
    expected = answers(reference, texts, mapped=True)
    found = {}
    for kind, path in variants.items():
        kl = same = 0.0
        for ours, theirs in zip(answers(path, texts), expected):
            kl += float(divergence(theirs, ours).sum())
            same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        found[kind] = {"tokens": count, "mean_kl": kl / count, "top1": same / count}
    return found


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) of two rows of logits [..., vocabulary], in nats, in float64."""
    a, b = (x - x.max(-1, keepdims=True) for x in (p.astype(np.float64), q.astype(np.float64)))
    a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
    return np.asarray((np.exp(a) * (a - b)).sum(-1))


def answers(graph: Path, texts: Sequence[Sequence[int]], *, mapped: bool = False) -> list[np.ndarray]:
    """Logits [length, vocabulary] float32 of each text, each on an empty cache.

    Args:
        mapped: leave the weights where they lie on disk, instead of a copy in the order that the kernels like best.
    """
    decoder = Decoder({"graph": str(graph), "mapped": mapped})
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
