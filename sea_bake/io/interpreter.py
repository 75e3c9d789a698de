"""A new process of this Python that runs a line of code."""

from __future__ import annotations

import sys


def running(code: str) -> list[str]:
    """What runs code in a process of its own. Not a bare ``-c``, nor ``-m``, which look for modules in the folder that
    one works in first: a stranger's, maybe, with a ``sea_bake.py`` or a ``json.py`` in it.
    """
    ours = "import sys; sys.path[:] = filter(None, sys.path)"  # -c puts "" there
    return [sys.executable, "-c", f"{ours}; {code}"]
