"""What was said of an artefact, as far as it speaks for the very files that lie there now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sea_bake.artefact.evaluation import Evaluation
from sea_bake.artefact.names import EVALUATION, PAGE, PAGE_NUMBERS, VERIFICATION
from sea_bake.artefact.page import PageRecord
from sea_bake.artefact.seal import broken
from sea_bake.artefact.verification import Verification
from sea_bake.edit import Edit
from sea_bake.errors import CheckpointError, EvaluationError, OutputError, command
from sea_bake.io.files import file_digest, read_json
from sea_bake.io.pairs import speaking

T = TypeVar("T")


def read(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """A JSON file of ours. Raises CheckpointError where it is missing or damaged."""
    try:
        return parse(read_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def last_verification(folder: Path) -> Verification | None:
    """The verification inside, whichever files it was given on. Raises CheckpointError where it is damaged."""
    return read(folder / VERIFICATION, Verification.from_json) if (folder / VERIFICATION).is_file() else None


def verification(folder: Path) -> tuple[Verification | None, str | None]:
    """The verification that speaks for these files (None: none does), and what is wrong with it."""
    try:
        found = last_verification(folder)
    except CheckpointError:  # whose message has a path in it, and a doubt stands on a card
        return None, f"its {VERIFICATION} is damaged"
    if found is None:
        return None, f"it has no {VERIFICATION}"
    if not found.files:
        return None, f"its {VERIFICATION} does not say which files it was given on (an earlier sea_bake wrote it)"
    changes = broken(folder, found.files)
    if changes:
        more = f" (and {len(changes) - 1} other changes)" if len(changes) > 1 else ""
        return None, f"{changes[0]} since its verification{more}"
    if not found.passed:
        return found, f"its verification failed: {(found.failures or ['no reason is given'])[0]}"
    return found, None


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation out of its JSON. Raises EvaluationError where it cannot be read, or is garbled."""
    try:
        return read(path, Evaluation.from_json)
    except CheckpointError as error:
        raise EvaluationError(f"{error}: evaluate again with sea-bake eval") from error


def evaluation(folder: Path, edits: Sequence[Edit], verified: Verification | None) -> Evaluation | None:
    """The evaluation inside an artefact. Raises EvaluationError, as :attr:`Artefact.evaluation` says."""
    path = folder / EVALUATION
    if not path.is_file():
        return None
    found = read_evaluation(path)
    cure = f"evaluate again ({command('sea-bake', 'eval', folder, '--write')}), or remove it"
    if found.model["how"] is not None and not found.is_of(edits):
        raise EvaluationError(f"{path} was measured on other edits than those of '{folder.name}': {cure}")
    if found.files and (broken(folder, found.files) if verified is None else found.files != verified.files):
        raise EvaluationError(f"{path} was measured on another state of the artefact: {cure}")
    return found


def evaluation_digest(folder: Path) -> str | None:
    """SHA-256 of the evaluation inside an artefact; None where there is none."""
    return file_digest(folder / EVALUATION) if (folder / EVALUATION).is_file() else None


def page(folder: Path, verdict: str, verified: Verification | None) -> PageRecord | None:
    """What the page inside an artefact was written of; None where there is no page.

    Raises:
        OutputError: it is not as it was written, or tells of another state: other files, verdict or evaluation.
    """
    path, numbers = folder / PAGE, folder / PAGE_NUMBERS
    if not path.is_file():
        return None
    cure = f"write it again ({command('sea-bake', 'report', folder, '--write')}), or remove it"
    if not numbers.is_file():
        raise OutputError(f"{path} was not written by sea-bake report ({PAGE_NUMBERS} is missing): {cure}")
    try:
        found = read(numbers, lambda data: PageRecord.from_json(speaking(data, path, digest="page_sha256")))
    except CheckpointError as error:
        raise OutputError(f"{error}: {cure}") from error
    if found.page_sha256 != file_digest(path):
        raise OutputError(f"{path} was changed since sea-bake report wrote it: {cure}")
    if verified is not None and found.files != verified.files:
        raise OutputError(f"{path} tells of another state of the artefact: {cure}")
    if found.verdict != verdict:
        raise OutputError(f"{path} calls the artefact '{found.verdict}', and it is '{verdict}': {cure}")
    if found.evaluation_sha256 != evaluation_digest(folder):
        raise OutputError(f"{path} does not show what {EVALUATION} holds now: {cure}")
    return found
