"""Is this GGUF still the one that its record speaks of, and that one the base that it was made from? Both are told by a
digest of parts, since all bytes of gigabytes take longer to read than an answer does (``sea-bake inspect`` reads them).
"""

from __future__ import annotations

import os
from pathlib import Path

from sea_bake.artefact.gguf_record import GgufRecord, record_of
from sea_bake.errors import CheckpointError, WrongModelError, need
from sea_bake.exporting.gguf.header import GgufFile
from sea_bake.exporting.gguf.layout import layout_of, parts_digest
from sea_bake.exporting.gguf.matching import check_base
from sea_bake.exporting.gguf.names import ARCHITECTURES, known_family
from sea_bake.io.files import file_digest
from sea_bake.model.fingerprint import BaseModel


def check_written(file: Path, record: GgufRecord) -> None:
    """Raise CheckpointError where a file is not the one that its record was written with."""
    same = file.stat().st_size == record.bytes_written
    if same and record.parts_sha256:
        same = parts_digest(file) == record.parts_sha256
    elif same:
        same = file_digest(file) == record.sha256
    if not same:
        raise CheckpointError(
            f"{file.name} is not the file that its record was written with: it was changed since, or put in its place. "
            f"Export it again; or remove {record_of(file).name}, and it is asked as a base"
        )


def check_made_from(file: Path, record: GgufRecord, base: Path) -> None:
    """Hold a GGUF against what the record of another one says of its base.

    Raises:
        WrongModelError: it is the edited file itself, or another model, or edited or quantised otherwise.
        CheckpointError: no GGUF, or a damaged one.
        MissingExtraError: weights are to be compared, and the extra "gguf" is not installed.
    """
    wanted = f"the GGUF that {file.name} was made from{f', {record.gguf}' if record.gguf else ''}"
    if os.path.samefile(file, base):
        raise WrongModelError(f"{base.name} is the edited file itself, and no base of it: give {wanted}")
    if record.gguf_parts_sha256:
        if parts_digest(base) != record.gguf_parts_sha256:
            raise WrongModelError(
                f"{base.name} is not {wanted}: its header or its weights differ (another model, another quantisation, "
                "or an edited file). Give that very file"
            )
        return
    found = layout_of(base).keys.get("general.architecture")
    if found != record.architecture:
        raise WrongModelError(f"{base.name} is {found!r}, and {file.name} {record.architecture!r}: give its own base")
    if record.fingerprint is None:
        return
    need("gguf", f"Holding {base.name} against the base of {file.name}", "gguf")
    try:
        known = BaseModel.from_json(record.fingerprint)
        layers = {int(layer) for edit in record.edits for layer in edit["layers"]}
        layers |= {int(key.partition(".")[0]) for key in known.samples} & layers  # ValueError: a key that is none
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{record_of(file)} is damaged: its fingerprint cannot be read ({error})") from error
    if known.model_type in ARCHITECTURES:  # else which tensors are its own is not known
        check_base(GgufFile.open(base), known_family(known.model_type), [(known, layers)])
