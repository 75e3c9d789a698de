"""What must be in no file that everybody can read: tokens, private keys, and paths of this machine."""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from sea_bake.publishing.parts import VOCABULARIES

# Whose token -> how it is spelt. A look-behind in place of \\b: a byte of UTF-16 may stand before it.
_SERVICES = {
    "a Hugging Face token": rb"hf_[A-Za-z0-9]{34}(?![A-Za-z0-9])",
    "a GitHub token": rb"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",
    "a GitLab token": rb"glpat-[A-Za-z0-9_-]{20}",
    "an OpenAI key": rb"sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,}T3BlbkFJ[A-Za-z0-9_-]{20,}",
    "an Anthropic key": rb"sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{80,}",
    "an AWS access key": rb"A(?:KIA|SIA)[A-Z2-7]{16}(?![A-Za-z0-9])",
    "a Google key": rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])|GOCSPX-[A-Za-z0-9_-]{28}",
    "a Slack token": rb"xox[abeoprs]-[A-Za-z0-9-]{24,}",
    "a Stripe key": rb"[rs]k_live_[A-Za-z0-9]{24,}",
    "an npm token": rb"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])",
    "a PyPI token": rb"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}",
    "a Weights & Biases key": rb"wandb_v1_[A-Za-z0-9_]{60,}|WANDB_API_KEY\W{1,5}[0-9a-f]{40}",
    "a Replicate token": rb"r8_[A-Za-z0-9]{37}(?![A-Za-z0-9])",
    "a private key": rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
}
_LOOKS = [
    (f"what looks like {whose}", re.compile(rb"(?<![A-Za-z0-9])(?:" + form + rb")"))
    for whose, form in _SERVICES.items()
]
_BLOCK = 1 << 22
_HEADER = 100_000_000  # bytes, as safetensors limits it
_OVERLAP = 1024  # bytes: what lies across two blocks is shorter


class _InAFolder(Protocol):
    @property
    def folder(self) -> Path: ...


def leak(name: str, source: Path | bytes, artefact: _InAFolder) -> str | None:
    """What in a file must not be published; None where there is nothing. Text is searched as UTF-8 and as UTF-16.

    Args:
        name: its path in the repository.
        source: the file, or its bytes.
        artefact: what it is a part of: the name of its folder must not show.
    """
    patterns = [*_patterns(artefact, vocabulary=Path(name).name in VOCABULARIES)]
    for block in _searched(name, source):
        narrow = block.replace(b"\0", b"") if b"\0" in block else None  # UTF-16 of what is ASCII, of either order
        for what, pattern in patterns:
            if pattern.search(block) or (narrow and pattern.search(narrow)):
                return what
    return None


def _patterns(artefact: _InAFolder, *, vocabulary: bool) -> Iterator[tuple[str, re.Pattern[bytes]]]:
    """A vocabulary may hold "/root/" as a word."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        yield "your Hugging Face token", re.compile(re.escape(token.encode()))
    yield from _LOOKS
    for place in sorted(_places(artefact, vocabulary=vocabulary)):
        spellings = {place.encode(), json.dumps(place)[1:-1].encode()}
        yield f"a path of this machine ({place})", re.compile(b"|".join(map(re.escape, sorted(spellings))))


def _places(artefact: _InAFolder, *, vocabulary: bool) -> set[str]:
    """Paths that say where this was made, and by whom."""
    parent, home = artefact.folder.parent, Path.home()
    places = ({str(artefact.folder)} if len(artefact.folder.parts) > 1 else set()) | (
        {f"{parent}{os.sep}"} if len(parent.parts) > 2 else set()
    )
    if vocabulary:
        return places
    places |= {f"{home}{os.sep}"} if home != Path(home.anchor) else set()
    return places | {form.format(name) for name in _user() for form in ("/home/{}/", "/Users/{}/", "\\Users\\{}\\")}


def _user() -> list[str]:
    try:
        return [getpass.getuser()]
    except (KeyError, OSError, ImportError):  # a process without a name
        return []


def _searched(name: str, source: Path | bytes) -> Iterable[bytes]:
    """The bytes of a file that may hold text: all, but of weights the header only."""
    if isinstance(source, bytes):
        is_header = name.endswith(".safetensors")
        yield source[: 8 + int.from_bytes(source[:8], "little")] if is_header else source
        return
    if name.endswith((".onnx_data", ".onnx.data")):
        return
    with open(source, "rb") as file:
        header = int.from_bytes(file.read(8), "little") if name.endswith(".safetensors") else _HEADER + 1
        if header <= _HEADER:
            yield file.read(header)
            return
        file.seek(0)  # of what only calls itself safetensors, all
        tail = b""
        while block := file.read(_BLOCK):
            yield tail + block
            tail = block[-_OVERLAP:]
