"""Where things are kept that are only faster to have: the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "SEA_BAKE_CACHE"  # environment: the folder of all that is kept; empty: nothing is


def cache_folder(name: str) -> Path | None:
    """Folder for one kind of things, in $SEA_BAKE_CACHE or the user's cache; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() / name if named else None
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "sea_bake" / name if os.path.isabs(root) else None
