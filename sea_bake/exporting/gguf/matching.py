"""Is this GGUF the model that the edit was fitted on? Its architecture, its sizes, and its weights, up to what their
types have rounded away.

A fine-tune that differs from the model by less than the quantisation does cannot be told apart from it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence

from sea_bake.errors import CheckpointError, WrongModelError
from sea_bake.exporting.gguf.header import GgufFile, GgufTensor
from sea_bake.exporting.gguf.names import ARCHITECTURES, writers_of
from sea_bake.model.anatomy import Family, Site
from sea_bake.model.fingerprint import BaseModel
from sea_bake.model.samples import sample_places

_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
}
# Error of 16 samples, root mean square, as a share of the root mean square of their rows. Floats: their unit roundoff,
# twice. Quantised types with b bits per weight: normal weights, quantised by gguf, come out at 2 · 2^-b (measured:
# Q8_0 0.0054, Q5_0 0.043, Q4_0 0.086); three times that, for rows with outliers and few samples. Of unrelated weights
# the share is about 1.4, so never more than 0.8.
_FLOATS = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
_DTYPES = {"float64": 0.0, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_LEAST_SHARE = 0.8
# There are many more of them, of which any may have its outliers just where it is sampled; and what is another model in
# one layer is that in most.
_ELSEWHERE = 2
_EMBEDDINGS = {"embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"}


def check_base(file: GgufFile, row: Family, known: Sequence[tuple[BaseModel, Collection[int]]]) -> int:
    """Hold a GGUF against the fingerprint of each edit.

    Args:
        known: of each edit the model that it was fitted on, and the layers that it edits.

    Returns:
        The number of weights that could be compared; 0 where the edits were fitted on a quantised model.

    Raises:
        WrongModelError: it is another model; the message says where.
    """
    compared = 0
    for base, layers in known:
        name = base.name
        expected = ARCHITECTURES[row.model_type]
        if file.architecture != expected or base.model_type != row.model_type:
            raise WrongModelError(
                f"the edit was fitted on '{name}', a {base.model_type}, which is '{expected}' in a GGUF; "
                f"{file.path.name} is '{file.architecture}'. Projectors belong to one model: give that model's GGUF."
            )
        for key, theirs in _KEYS.items():
            ours, found = base.config.get(key), file.keys.get(f"{expected}.{theirs}")
            if ours is not None and found is not None and ours != found:
                raise WrongModelError(
                    f"the edit was fitted on '{name}' with {key} = {ours}; {file.path.name} has {expected}.{theirs} = "
                    f"{found}. Projectors belong to one model: give that model's GGUF."
                )
        compared += _check_weights(file, row, base, layers)
    return compared


def _check_weights(file: GgufFile, row: Family, base: BaseModel, edited: Collection[int]) -> int:
    """Every writer that was sampled, and the embeddings; those that are edited first. The number of the edited ones."""
    compared, paths = 0, {row.writer(site): site for site in (Site.ATTN, Site.MLP)}
    for key, ours in sorted(base.samples.items(), key=lambda one: int(one[0].partition(".")[0]) not in edited):
        layer, _, path = key.partition(".")
        if path not in paths:
            continue
        is_edited = int(layer) in edited
        with contextlib.nullcontext() if is_edited else contextlib.suppress(CheckpointError):
            tensor = writers_of(file, row, paths[path], int(layer), base.hidden_size)[0].tensor
            turned = path in row.input_first or (len(tensor.shape) == 3 and row.fused in row.input_first)
            _check_tensor(file, tensor, ours, base, turned=turned, factor=1 if is_edited else _ELSEWHERE)
            compared += is_edited
    rows = base.config.get("vocab_size")
    for key in _EMBEDDINGS & base.rest.keys():
        embeddings = file.tensors.get("token_embd.weight")
        if embeddings is not None and embeddings.shape == (rows, base.hidden_size):
            with contextlib.suppress(CheckpointError):
                _check_tensor(file, embeddings, base.rest[key], base, turned=False, factor=_ELSEWHERE)
    return compared


def _check_tensor(
    file: GgufFile, tensor: GgufTensor, ours: Sequence[float], base: BaseModel, *, turned: bool, factor: float
) -> None:
    share = _difference(file, tensor, ours, turned=turned)
    limit = min(_LEAST_SHARE, factor * (type_error(tensor) + _DTYPES.get(base.dtype, _LEAST_SHARE)))
    if not share <= limit:
        raise WrongModelError(
            f"{file.path.name} is built like '{base.name}', but its weights differ by more than quantisation "
            f"explains ({tensor.name}, {tensor.type.name}: {share:.2g} of their size; at most {limit:.2g} is "
            "expected): it is another model, a fine-tune or edited already. Give the GGUF of the edit's own base."
        )


def type_error(tensor: GgufTensor) -> float:
    """How far weights may be from what they were quantised from, as a share of their root mean square."""
    known = _FLOATS.get(tensor.type.name)
    if known is not None:
        return known
    bits = 8 * tensor.size / math.prod(tensor.shape)
    return float(3 * 2 ** (1 - bits))


def _difference(file: GgufFile, tensor: GgufTensor, ours: Sequence[float], *, turned: bool) -> float:
    """Root mean square of the samples' errors, by that of the rows they lie in."""
    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]) if turned else tensor.shape
    places = sample_places(shape)
    if len(ours) != len(places):
        return math.inf
    errors = squares = 0.0
    for value, place in zip(ours, places):
        row, column = (place[-1], place[-2]) if turned else place[-2:]
        values = file.rows(tensor, row, 1)[0].astype("float64")  # of the first expert, so rows count from 0
        errors += (float(values[column]) - value) ** 2
        squares += float((values**2).mean())
    return math.sqrt(errors / squares) if squares else math.inf
