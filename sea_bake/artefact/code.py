"""Is the code that an inserted artefact brings along ours? Looked at before it is run."""

from __future__ import annotations

from pathlib import Path

from sea_bake import modeling_sea
from sea_bake.artefact.names import CODE
from sea_bake.errors import CheckpointError
from sea_bake.io.files import file_digest, read_json
from sea_bake.model.checkpoint import check_files
from sea_bake.model.loading import check_kernels


def check_code(artefact: Path) -> None:
    """Raise CheckpointError unless the code that ``trust_remote_code`` would run for an inserted artefact is ours.

    That is: ``modeling_sea.py`` is this sea_bake's, byte for byte, and no configuration names any other code.
    """
    check_files(artefact)
    ours, theirs = Path(modeling_sea.__file__), artefact / CODE
    if not theirs.is_file():
        raise CheckpointError(f"{theirs} is missing: the artefact is not whole")
    if file_digest(ours) != file_digest(theirs):
        raise CheckpointError(
            f"{theirs} is not this sea_bake's (sha256 {file_digest(theirs)[:16]}..., not {file_digest(ours)[:16]}...), "
            "so it is not run: it was changed, or comes from another version. Bake again, or use the sea_bake that "
            "made it."
        )
    for path in sorted(artefact.glob("*config.json")):
        named = read_json(path).get("auto_map") or {}
        codes = named.values() if isinstance(named, dict) else [named]
        if any(not isinstance(code, str) or not code.startswith(f"{theirs.stem}.SEA") for code in codes):
            raise CheckpointError(f"{path} names other code than {CODE} (auto_map): it is not run. Bake it again.")
    check_kernels(read_json(artefact / "config.json"))
