"""llama.cpp's own tools, where they are here: its converter, a script; and its quantiser, inside of two packages."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata as metadata
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sea_bake.errors import SettingError, reason_of

SCRIPT = "convert_hf_to_gguf.py"
HOME = "LLAMA_CPP"
QUANTISERS = {"cyllama": "cyllama.llama.llama_cpp", "llama-cpp-python": "llama_cpp"}  # package -> module
AGAIN = "pip install --force-reinstall --no-deps"
BUILT = "pip install llama-cpp-python, which is built on this machine"
Quantiser = Callable[[str, str, int], None]  # (source, target, enum llama_ftype of llama.h); RuntimeError: not done


def find_converter(given: str | Path | None) -> Path:
    """The converter: the file or the checkout that was given, else of the folder in LLAMA_CPP, else on PATH.

    Raises:
        SettingError: there is none; the message says where to get it, and what needs none.
    """
    named = given or os.environ.get(HOME) or shutil.which(SCRIPT)
    if not named:
        raise SettingError(
            "give the base's GGUF (--base BASE.gguf), whose edited tensors are then rewritten and nothing else; or "
            f"llama.cpp's converter (--converter PATH/{SCRIPT}, or its folder in {HOME}): it is part of llama.cpp's "
            "sources, also of those that PyPI has of llama-cpp-python"
        )
    path = Path(os.path.expanduser(named))
    for place in (path, path / SCRIPT):
        if place.is_file():
            return place.absolute()
    raise SettingError(f"no {SCRIPT} at {path}: name that file, or llama.cpp's own folder")


def installed(package: str) -> str | None:
    """The version of a package that is here, whether or not it loads."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def quantiser() -> Quantiser:
    """llama.cpp's quantiser, out of cyllama or llama-cpp-python. Raises SettingError where neither loads."""
    broken = []
    for package, make in (("cyllama", _of_cyllama), ("llama-cpp-python", _of_llama_cpp_python)):
        try:
            return make(importlib.import_module(QUANTISERS[package]))
        except (ImportError, OSError, RuntimeError) as error:  # the latter two: its library does not load here
            if installed(package):
                broken.append(f"{package} {installed(package)} is here, and does not load ({reason_of(error)})")
    if broken:
        raise SettingError(
            f"quantised GGUFs are made by llama.cpp's own quantiser, and {'; '.join(broken)}: {AGAIN} cyllama, or "
            f"{BUILT}"
        )
    raise SettingError(
        "quantised GGUFs are made by llama.cpp's own quantiser, which is not installed here: pip install cyllama"
    )


def _of_cyllama(library: Any) -> Quantiser:
    def quantise(source: str, target: str, kind: int) -> None:
        settings = library.LlamaModelQuantizeParams()
        settings.ftype = kind
        said: list[str] = []  # two lines and more of each tensor, which are for nobody
        library.set_log_callback(lambda level, text: said.append(text))
        try:
            library.model_quantize(source, target, settings)
        except RuntimeError as error:
            raise RuntimeError(" ".join(said[-1:]).strip() or reason_of(error)) from error
        finally:
            library.set_log_callback(lambda level, text: sys.stderr.write(text))  # as it is without one

    return quantise


def _of_llama_cpp_python(library: Any) -> Quantiser:
    def quantise(source: str, target: str, kind: int) -> None:
        settings = library.llama_model_quantize_default_params()
        settings.ftype = kind
        code = library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
        if code:
            raise RuntimeError(f"code {code}; it says above why")

    return quantise
