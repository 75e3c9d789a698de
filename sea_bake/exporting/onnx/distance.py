"""How far a graph of less precision is from the float32 one: the same texts through both, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sea_bake.activations.prompts import encode
from sea_bake.demonstrations import builtin
from sea_bake.exporting.onnx.session import opened

TOKENS = 256


@dataclass(frozen=True)
class Distance:
    """A variant against the float32 graph.

    Attributes:
        tokens: number of positions of built-in texts that were compared.
        mean_kl: mean KL(float32 ‖ variant) per token, nats.
        top1: share of tokens at which both say the same.
    """

    tokens: int
    mean_kl: float
    top1: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    reference: Path, variants: Mapping[str, Path], tokenizer: Any, *, tokens: int = TOKENS
) -> dict[str, Distance]:
    """Kind -> its distance from ``reference``, over prompts and answers of the built-in demonstrations.

    One graph is open at a time. What becomes of the *edit* in a variant is another question, which ``verify`` answers.

    Args:
        reference: the float32 graph.
        variants: kind -> graph.
        tokenizer: the model's.
        tokens: minimum number of tokens, in whole texts.
    """
    texts = _texts(tokenizer, tokens)
    expected = answers(reference, texts, mapped=True)
    found = {}
    for kind, path in variants.items():
        kl = same = 0.0
        for ours, theirs in zip(answers(path, texts), expected):
            kl += float(divergence(theirs, ours).sum())
            same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count = sum(map(len, texts))
        found[kind] = Distance(count, kl / count, same / count)
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
    session, empty = opened(graph, mapped=mapped)
    names = {value.name for value in session.get_inputs()}
    found = []
    for ids in texts:
        tokens = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, len(ids)), dtype=np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        }
        feeds = empty | {name: value for name, value in tokens.items() if name in names}
        found.append(session.run(["logits"], feeds)[0][0].astype(np.float32))
    return found


def _texts(tokenizer: Any, tokens: int) -> list[tuple[int, ...]]:
    """Whole texts from all over the built-in set, ``tokens`` tokens or a few more."""
    found: list[tuple[int, ...]] = []
    triples = builtin()
    for i in range(len(triples)):
        if sum(map(len, found)) >= tokens:
            break
        triple = triples[i * 37 % len(triples)]  # 37 and 160 share no divisor: every triple once, and never neighbours
        found.append(encode(tokenizer, triple.prompt, triple.positive).ids)
    return found
