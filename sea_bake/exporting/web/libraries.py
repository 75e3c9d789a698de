"""The two libraries that the page runs on, at one version each: from a CDN, or copied beside the page.

Their hashes are those of the files in the npm packages, which jsDelivr serves byte for byte. The page runs nothing
whose hash is another.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from sea_bake.errors import CheckpointError
from sea_bake.model.checkpoint import place

CDN = "https://cdn.jsdelivr.net/npm/"
FOLDER = "libraries"


@dataclass(frozen=True)
class Library:
    """One file of an npm package.

    Attributes:
        package, version: as npm names them.
        path: inside the package.
        integrity: its hash, as browsers check it (Subresource Integrity).
    """

    package: str
    version: str
    path: str
    integrity: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def url(self) -> str:
        return f"{CDN}{self.package}@{self.version}/{self.path}"


_WEB = ("onnxruntime-web", "1.31.0-dev.20260914-8d85527a0")  # what this transformers.js is built on
LIBRARIES = {
    "transformers": Library(
        "@huggingface/transformers",
        "4.3.1",
        "dist/transformers.min.js",
        "sha384-AFNtlNOt2vbygtlRCUX2TDgkE+EyonjbCLxAfqezYwJJDVlozUhg+yKs4cPwyjHR",
    ),
    "factory": Library(
        *_WEB,
        "dist/ort-wasm-simd-threaded.asyncify.mjs",
        "sha384-ik7L7J2uXfXmGuWHh3yOUDPpUslz/dJjcvZgdX5hcItLjxlkEpUF7mpCcATr3Dg8",
    ),
    "binary": Library(
        *_WEB,
        "dist/ort-wasm-simd-threaded.asyncify.wasm",
        "sha384-JuzrCV6BUmTUbsgNhgU94qo0vZ4l3w0VqgQAKPm0La2hXL9kmv8P9pGenfsWJY9c",
    ),
}


def npm_lines() -> str:
    """How to get the libraries for ``--offline``."""
    packages = dict.fromkeys(f"{file.package}@{file.version}" for file in LIBRARIES.values())
    return f"npm install --ignore-scripts {' '.join(packages)}"


def installed(node_modules: Path) -> dict[str, Path]:
    """The libraries in a folder ``node_modules``.

    Raises:
        CheckpointError: one is missing, or is another version.
    """
    files = {name: node_modules / file.package / file.path for name, file in LIBRARIES.items()}
    for name, path in files.items():
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. In the folder above node_modules run: {npm_lines()}")
        if integrity(path) != LIBRARIES[name].integrity:
            raise CheckpointError(f"{path} is not that of {LIBRARIES[name].version}. Run: {npm_lines()}")
    return files


def integrity(path: Path) -> str:
    """The hash of a file, as browsers check it."""
    with open(path, "rb") as file:
        return f"sha384-{base64.b64encode(hashlib.sha384(file.read()).digest()).decode()}"


def on_cdn() -> dict[str, dict[str, str]]:
    """What the page is told: library -> its address and hash."""
    return {name: {"url": file.url, "integrity": file.integrity} for name, file in LIBRARIES.items()}


def vendored(stage: Path, files: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Copy the libraries beside the page; library -> its address and hash."""
    (stage / FOLDER).mkdir()
    for name, path in files.items():
        place(path, stage / FOLDER / LIBRARIES[name].name, copy=True)
    return {name: {"url": f"{FOLDER}/{file.name}", "integrity": file.integrity} for name, file in LIBRARIES.items()}
