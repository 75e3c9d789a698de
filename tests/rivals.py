"""The other methods of ``fit`` a second time: dense, float64, numpy, straight from their papers, sharing no code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Affine:
    """y = M h + b, M [d, d]."""

    M: Array
    b: Array

    def __call__(self, h: Array) -> Array:
        return h @ self.M.T + self.b


def _shift(v: Array) -> Affine:
    return Affine(np.eye(len(v)), v)


def mean_difference(H: Array, H_pos: Array, H_neg: Array) -> Affine:
    """arXiv 2312.06681, equation 1: the average, over the pairs, of their difference."""
    return _shift(np.mean([p - q for p, q in zip(H_pos, H_neg)], axis=0))


def pca(H: Array, H_pos: Array, H_neg: Array, *, centre: bool) -> Affine:
    """arXiv 2310.01405, section 3.1: the first eigenvector of the [d, d] moments of the differences; the sign of repeng
    0.4.0 (``extract.py``: pairs whose positive lies further along it, or not); a typical length.
    """
    D = H_pos - H_neg
    moments = np.cov(D, rowvar=False, bias=True) if centre else D.T @ D / len(D)
    r = np.linalg.eigh(moments)[1][:, -1]
    smaller, larger = np.mean(H_pos @ r < H_neg @ r), np.mean(H_pos @ r > H_neg @ r)
    if smaller > larger or (smaller == larger and D.mean(0) @ r < 0):
        r = -r
    return _shift(np.sqrt(r @ (D.T @ D / len(D)) @ r) * r)


def iti(
    H: Array, H_pos: Array, H_neg: Array, *, heads: int, keep: int, folds: int = 5
) -> tuple[Affine, list[int], list[float]]:
    """arXiv 2306.03341, section 3: heads by a probe's accuracy; then sigma theta, mass mean shift."""
    d, n = H_pos.shape[1], len(H_pos)
    size = d // heads
    accuracy = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        right = 0
        for fold in range(folds):
            train = [i for i in range(n) if i % folds != fold]
            test = [i for i in range(n) if i % folds == fold]
            X = np.concatenate([H_pos[train, own], H_neg[train, own]])
            y = np.repeat([1.0, -1.0], len(train))
            mean = X.mean(0)
            ridge = 0.1 * np.mean(np.sum((X - mean) ** 2, axis=0))
            # Ridge regression as least squares with rows that say "be small".
            rows = np.concatenate([X - mean, np.sqrt(ridge) * np.eye(size)])
            w = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(size)]), rcond=None)[0]
            right += int(np.sum((H_pos[test, own] - mean) @ w > 0)) + int(np.sum((H_neg[test, own] - mean) @ w < 0))
        accuracy.append(right / (2 * n))
    best = sorted(range(heads), key=lambda head: (-accuracy[head], head))[:keep]
    v = np.zeros(d)
    for head in best:
        own = slice(head * size, (head + 1) * size)
        theta = H_pos[:, own].mean(0) - H_neg[:, own].mean(0)
        theta /= np.sqrt(np.sum(theta**2))
        v[own] = np.std(np.concatenate([H_pos[:, own], H_neg[:, own]]) @ theta) * theta
    return _shift(v), sorted(best), accuracy


def leace(H: Array, H_pos: Array, H_neg: Array, *, shrink: bool = True, keep_trace: bool = True) -> Affine:
    """arXiv 2306.03819, equation 1, all of it [d, d].

    Args:
        shrink: the covariance, as arXiv 1308.2608, with an isotropic target.
        keep_trace: mix with the orthogonal projection until the covariance's trace does not grow.
    """
    X, z = np.concatenate([H_pos, H_neg]), np.repeat([1.0, 0.0], len(H_pos))
    n, d = X.shape
    mean = X.mean(0)
    S = (X - mean).T @ (X - mean) / n
    if shrink:
        target = np.trace(S) / d * np.eye(d)
        norm = np.sum(target**2)
        weight = 1 - (np.trace(S) ** 2 * norm / n) / (np.sum(S**2) * norm - np.trace(S @ target) ** 2)
        S = weight * S + (1 - weight) * np.trace(S @ target) / norm * target
    else:
        S = S * n / (n - 1)
    values, V = np.linalg.eigh(S)
    good = values > values[-1] * d * np.finfo(float).eps
    root, inverse = (V[:, good] * f(values[good]) @ V[:, good].T for f in (np.sqrt, lambda v: 1 / np.sqrt(v)))
    u = inverse @ ((X - mean).T @ (z - z.mean()) / (n - 1))
    u = u / np.linalg.norm(u)
    P, Q = np.eye(d) - root @ np.outer(u, u) @ inverse, np.eye(d) - np.outer(u, u)

    def growth(share: float) -> float:
        M = share * P + (1 - share) * Q
        return float(np.trace(M @ S @ M.T) - np.trace(S))

    if keep_trace and growth(1.0) > 0:
        low, high = 0.0, 1.0
        for _ in range(200):  # by halving: the largest share that does not grow
            middle = (low + high) / 2
            low, high = (middle, high) if growth(middle) <= 0 else (low, middle)
        P = low * P + (1 - low) * Q
    return Affine(P, mean - P @ mean)


def ablation(blocks: dict[int, tuple[Array, Array, Array]], *, depth: int) -> tuple[Affine, int]:
    """arXiv 2406.11717, sections 2.3 and 2.4; the layer by distance over spread, among the first 80 %."""
    best, found = -1.0, (0, np.zeros(0))
    for layer, (_, H_pos, H_neg) in blocks.items():
        if layer / depth >= 0.8:
            continue
        apart = H_pos.mean(0) - H_neg.mean(0)
        spread = np.sqrt((np.trace(np.cov(H_pos.T, bias=True)) + np.trace(np.cov(H_neg.T, bias=True))) / 2)
        if np.linalg.norm(apart) / spread > best:
            best, found = np.linalg.norm(apart) / spread, (layer, apart / np.linalg.norm(apart))
    layer, r = found
    return Affine(np.eye(len(r)) - np.outer(r, r), np.zeros(len(r))), layer


def act(H: Array, H_pos: Array, H_neg: Array) -> Affine:
    """arXiv 2410.23054, section 3: unit by unit a line through sorted pairs."""
    lines = [np.polyfit(np.sort(H_neg[:, i]), np.sort(H_pos[:, i]), 1) for i in range(H_pos.shape[1])]
    w, b = np.array(lines).T
    return Affine(np.diag(w), b)


def contrastive(
    H: Array, H_pos: Array, H_neg: Array, *, k_pos: int, k_neg: int, ridge: float, centre: bool
) -> tuple[Array, Array, Array]:
    """P+, P- and log λ: generalised eigenvectors of Ω+ Ω+ᵀ against Ω- Ω-ᵀ, as those of a [d, d] quotient."""
    if centre:
        H, H_pos, H_neg = (X - X.mean(0) for X in (H, H_pos, H_neg))
    n, d = H.shape
    M = []
    for other in (H_pos, H_neg):
        omega = H.T @ other / n
        M.append(omega @ omega.T / np.trace(omega @ omega.T) + ridge / min(n, d) * np.eye(d))
    values, vectors = np.linalg.eig(np.linalg.inv(M[1]) @ M[0])
    order = np.argsort(values.real)
    logs, vectors = np.log(values.real[order]), vectors.real[:, order]
    kept = np.linalg.qr(vectors[:, ::-1][:, :k_pos])[0]
    dropped = np.linalg.qr(vectors[:, :k_neg])[0]
    return kept @ kept.T, np.eye(d) - dropped @ dropped.T, logs
