"""Node and Chromium for the tests: where they are, and one call of a script in ``tests/web``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NODE = ROOT / ".venv" / "node"  # what scripts/setup installs
ALL = os.environ.get("SEA_BAKE_TEST_RUNTIMES") == "all"  # .ci/run: nothing may be missing

needs_node = pytest.mark.skipif(
    not ALL and (shutil.which("node") is None or not (NODE / "node_modules").is_dir()),
    reason="needs Node and what scripts/setup installs where there is npm",
)
needs_chromium = pytest.mark.skipif(
    not ALL and (shutil.which("chromium") is None or not (NODE / "node_modules").is_dir()),
    reason="needs Chromium (apt-get install chromium), Node, and what scripts/setup installs where there is npm",
)


def node(script: str, **request: Any) -> dict[str, Any]:
    """Run ``tests/web/SCRIPT`` on a request; what it prints."""
    told = json.dumps({"modules": str(NODE), "chromium": shutil.which("chromium"), **request})
    ran = subprocess.run(
        ["node", str(ROOT / "tests" / "web" / script), told], capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
