"""What a report is about: an edit alone, or an artefact with its edits, its verification and its evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.artefact.evaluation import Evaluation
from sea_bake.artefact.opened import may_be_artefact
from sea_bake.artefact.trusted import read_evaluation
from sea_bake.edit import Edit
from sea_bake.errors import EditError, EvaluationError
from sea_bake.evaluation.keeping import REPORT
from sea_bake.io.edits import edit_file
from sea_bake.io.files import file_digest
from sea_bake.pages.text import harmless


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        name: of the file or folder, without what leads to it.
        edits: in the order in which they act.
        digests: SHA-256 of their files.
        artefact: what they are baked into; None for an edit alone.
    """

    name: str
    edits: list[Edit]
    digests: list[str]
    artefact: Artefact | None = None

    @classmethod
    def open(cls, path: str | Path | Artefact) -> Subject:
        """Read an edit, or a folder that sea_bake baked or exported.

        Raises:
            EditError: an edit that is damaged.
            CheckpointError: neither of them, or the folder's record is damaged.
        """
        if not isinstance(path, Artefact) and not may_be_artefact(path):
            found = edit_file(path)
            name = found.origin or found.path.stem
            return cls(harmless(name), [Edit.load(found.path.absolute())], [file_digest(found.path)])
        artefact = Artefact.open(path)
        if not artefact.edit_files:
            raise EditError(f"{artefact.name} holds no copy of its edits: give the edit file, or the artefact itself")
        digests = [file_digest(file) for file in artefact.edit_files]
        return cls(harmless(artefact.name), artefact.edits, digests, artefact)

    @property
    def verdict(self) -> str | None:
        """ "verified", "approximate" or "NOT verified"; None for an edit alone, of which there is nothing to verify."""
        return self.artefact.verdict if self.artefact else None

    def evaluation(self, given: str | Path | None = None) -> Evaluation | None:
        """The evaluation given (its folder, or its JSON), or the one inside the artefact; None where there is neither.

        Raises:
            EvaluationError: it cannot be read, is garbled, or speaks of other edits or another state of the artefact.
        """
        found, where = self.artefact.evaluation if self.artefact else None, self.name
        if given is not None:
            path = Path(os.path.expanduser(given))
            path = path / REPORT if path.is_dir() else path
            if not path.is_file():
                raise EvaluationError(
                    f"{path} is not there: give the folder that sea-bake eval -o wrote, or its {REPORT}"
                )
            found, where = read_evaluation(path), str(path)
        if found is None:
            return None
        if found.model["how"] is None:
            raise EvaluationError(f"{where}: the evaluation measured the base alone: evaluate it with the edit")
        if not found.is_of(self.edits):
            raise EvaluationError(f"{where} was measured on other edits than those of '{self.name}': evaluate these")
        return found

    def provenance(self) -> list[tuple[str, Any]]:
        """Name and value of all that the edits, the bake and the verification record of their making."""
        found: list[tuple[str, Any]] = []
        for i, (edit, digest) in enumerate(zip(self.edits, self.digests)):
            stem = f"edit {i + 1}, " if len(self.edits) > 1 else ""
            facts = {
                "base": edit.base.name,
                "base's commit": edit.base.revision,
                "base's shape": edit.base.config,
                "edit file, SHA-256": digest,
                **{key: value for key, value in edit.recipe.items() if key != "signatures"},
            }
            found += [(stem + name, value) for name, value in _flat(facts)]
        if self.artefact is None:
            return found
        bake, verification = self.artefact.bake, self.artefact.verification
        if bake is not None:
            found += [("baked", self.artefact.kind), ("because", bake.why), ("by sea_bake", bake.sea_bake)]
        if verification is not None:
            facts = verification.facts
            found += [("verified in", f"transformers {facts['transformers']}")] if "transformers" in facts else []
            found += [(f"{name}, SHA-256", digest) for name, digest in verification.files.items()]
        return [(name, value) for name, value in found if value is not None]


def _flat(facts: dict[str, Any], stem: str = "") -> list[tuple[str, Any]]:
    """Nested names joined by commas; what is not known is left out."""
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            found += _flat(value, f"{stem}{name}, ")
        elif value is not None:
            found.append((f"{stem}{name}", value))
    return found
