"""A checkpoint folder through llama.cpp's own converter, where the user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sea_bake.errors import CheckpointError
from sea_bake.exporting.gguf.header import GgufFile

OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")


def convert(converter: Path, folder: Path, target: Path, outtype: str) -> GgufFile:
    """Run the converter on a checkpoint's folder, and look at what it wrote.

    Raises:
        CheckpointError: it failed, or wrote what is no GGUF; the message carries its last line, and names the folder
            and the converter, not the temporary place where the file was to grow.
    """
    command = [sys.executable, str(converter), str(folder), "--outtype", outtype, "--outfile", str(target)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=environment
    )
    if ran.returncode:
        lines = (ran.stderr.strip() or ran.stdout.strip() or "it said nothing").splitlines()
        lacking = "ModuleNotFoundError" in lines[-1]
        cure = f" Install what it needs beside sea_bake ({sys.executable} -m pip install ...)." if lacking else ""
        said = lines[-1].strip().replace(str(target), "its output")
        raise CheckpointError(f"llama.cpp's converter failed on {folder} (exit code {ran.returncode}): {said}{cure}")
    try:
        return GgufFile.open(target)
    except CheckpointError as error:
        said = str(error).replace(str(target), "what it wrote")
        raise CheckpointError(
            f"{converter} ended without an error, but made no GGUF of {folder} that can be read ({said}): run it by "
            "itself to see why, or take another release of llama.cpp"
        ) from error
