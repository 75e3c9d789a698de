"""A model of one decoder layer: small enough to be run on the side, whatever the size of the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def one_layer_config(text: Any, layer: int) -> Any:
    """A decoder's configuration, cut to the kind of one of its layers, with hardly any vocabulary."""
    known = {*text.to_dict(), *text.attribute_map}
    data = text.to_dict()
    for key, value in data.items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            data[key] = [value[layer]]  # layer_types, no_rope_layers, ...
    step = data.get("decoder_sparse_step") or 1
    dense = layer in (data.get("mlp_only_layers") or []) or (layer + 1) % step
    data |= {"mlp_only_layers": [0] if dense else [], "decoder_sparse_step": 1}
    if isinstance(data.get("first_k_dense_replace"), int):
        data["first_k_dense_replace"] = int(layer < data["first_k_dense_replace"])
    data |= {"num_hidden_layers": 1, "num_layers": 1, "num_decoder_layers": 1, "n_layer": 1, "vocab_size": 8}
    data = {key: value for key, value in data.items() if key in known}
    data |= {key: None for key in ("pad_token_id", "bos_token_id", "eos_token_id") if key in data}
    config = type(text).from_dict(data)
    config._attn_implementation = "eager"
    return config


def load_state(
    cls: Any, config: Any, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """A model from tensors under their on-disk names, through transformers' own loader and its conversions.

    Returns:
        The model in evaluation mode, and transformers' loading info. What ``state`` lacks is random, always the same.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, info = cls.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True
        )
    return model.eval(), info


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing said by transformers but errors, and no bars of it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
