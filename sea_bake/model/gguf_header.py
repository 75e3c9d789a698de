"""The header of a GGUF, as gguf reads it for transformers: once for all that is loaded of the file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from sea_bake.errors import need
from sea_bake.model.source import ModelSource


@contextlib.contextmanager
def header_read_once(source: ModelSource) -> Iterator[None]:
    """A GGUF's header is taken apart once for all that is loaded meanwhile, and its table of names is made once.
    transformers has gguf do the one for configuration, tokenizer and weights each, string by string of the vocabulary,
    and the other for every module: half of the time that a small model takes.
    """
    if not source.is_gguf:
        yield
        return
    need("gguf", "Reading a GGUF model", "gguf")
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    if hasattr(reader, "cache_info"):  # inside of another such block
        yield
        return
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
