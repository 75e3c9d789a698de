"""What ``modeling_sea.py`` says, read off its text: to import it takes torch and transformers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "modeling_sea.py"


def _constants() -> dict[str, Any]:
    """Its names of plain values; of a dictionary that holds more than those, its keys."""
    found: dict[str, Any] = {}
    for node in ast.parse(FILE.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            keys = node.value.keys if isinstance(node.value, ast.Dict) else None
            value = ast.Tuple(keys) if keys is not None else node.value  # type: ignore[arg-type]
            found[node.targets[0].id] = ast.literal_eval(value)
    return found


_SAID = _constants()
MERGES: tuple[str, ...] = _SAID["MERGES"]
FEATURES: tuple[str, ...] = _SAID["FEATURES"]
PARTS: tuple[str, ...] = _SAID["PARTS"]
EXTRA: tuple[str, ...] = _SAID["EXTRA"]
CONFIGURED: str = _SAID["CONFIGURED"]
_GUARD: str = _SAID["GUARD"]


def guarded(config: Mapping[str, Any], guard: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the warning in the place of the guard's values: ``put`` with ``GUARD``."""
    made = {k: guarded(config.get(k) or {}, v) if isinstance(v, dict) else _GUARD.format(v) for k, v in guard.items()}
    return {**config, **made}
