"""The page that ``sea-bake report --write`` leaves in an artefact: linked from the card while it says what is so."""

from __future__ import annotations

from pathlib import Path

from sea_bake.errors import PublishError
from sea_bake.io.files import file_digest, read_json
from sea_bake.publishing.artefact import Artefact
from sea_bake.publishing.evaluation import EVALUATION

PAGE = "sea/report.html"
NUMBERS = "sea/report.json"  # the numbers behind it, its SHA-256, and what it was written of
FORMAT = "sea_bake.report"
VERSION = 1


def check_page(artefact: Artefact) -> str | None:
    """Path of the page inside an artefact; None where there is none.

    Raises:
        PublishError: it is not as it was written, or tells of another state: other files, verdict or evaluation.
    """
    page = artefact.folder / PAGE
    if not page.is_file():
        return None
    cure = f"write it again (sea-bake report {artefact.folder} --write), or remove it"
    if not (artefact.folder / NUMBERS).is_file():
        raise PublishError(f"{page} is none that sea-bake report wrote ({NUMBERS} is missing): {cure}")
    told = read_json(artefact.folder / NUMBERS)
    if told.get("format") != FORMAT or told.get("version") != VERSION:
        raise PublishError(f"{artefact.folder / NUMBERS} is no {FORMAT} of version {VERSION}: {cure}")
    if told.get("page_sha256") != file_digest(page):
        raise PublishError(f"{page} was changed since sea-bake report wrote it: {cure}")
    sealed = (artefact.verification or {}).get("files")
    if sealed is not None and told.get("files") != sealed:
        raise PublishError(f"{page} tells of another state of the artefact: {cure}")
    if told.get("verdict") != artefact.verdict:
        raise PublishError(f"{page} calls the artefact '{told.get('verdict')}', and it is '{artefact.verdict}': {cure}")
    if told.get("evaluation_sha256") != evaluation_digest(artefact.folder):
        raise PublishError(f"{page} does not show what {EVALUATION} holds now: {cure}")
    return PAGE


def evaluation_digest(folder: Path) -> str | None:
    """SHA-256 of the evaluation inside an artefact; None where there is none."""
    return file_digest(folder / EVALUATION) if (folder / EVALUATION).is_file() else None
