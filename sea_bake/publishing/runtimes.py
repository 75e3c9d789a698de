"""The runtimes in which an artefact was proved: by its own verification, and by those of exports that lie beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sea_bake.artefact import Artefact, is_artefact
from sea_bake.artefact.names import GRAPH_FILES, GRAPHS
from sea_bake.artefact.opened import ONNX
from sea_bake.errors import SeaBakeError, command
from sea_bake.io.files import file_digest
from sea_bake.pages.markdown import code
from sea_bake.pages.templates import Markdown


def proved(artefact: Artefact, repo: str, options: str) -> list[list[Any]]:
    """Rows of a table: the runtime with its version, the verdict on it, and the line that runs it.

    Nothing is listed that no verdict on these very files, or on an export of these very edits, speaks for.

    Args:
        repo: where the artefact will be: "user/name".
        options: further arguments of ``from_pretrained``, as they stand behind the name.
    """
    if artefact.doubt or artefact.verification is None:
        return []
    facts = artefact.verification.facts
    if artefact.kind == ONNX:
        return _graphs(artefact)
    if artefact.kind == "adapter":
        line = f'PeftModel.from_pretrained(base, "{repo}"{options})'
        rows = [[f"PEFT {facts.get('peft', '')}".strip(), artefact.verdict, code(line)]]
    else:
        line = f'{artefact.auto_class}.from_pretrained("{repo}"{options})'
        rows = [[f"transformers {facts.get('transformers', '')}".strip(), artefact.verdict, code(line)]]
    for export in _exports_beside(artefact):
        record, name = export.onnx, f"{repo.rpartition('/')[2]}-onnx"
        given = ["--dtype", "fp16"] if record.dtype == "fp16" else []
        given += [word for kind in record.variants for word in ("--quantize", kind)]
        given += ["--strength"] if record.strength else []
        line = command("sea-bake", "export", "onnx", repo, "-o", name, *given)
        rows += [[*row[:2], Markdown(f"{code(line)}, then {row[2]}")] for row in _graphs(export)]
    return rows


def _graphs(export: Artefact) -> list[list[Any]]:
    """Each graph that passed, in ONNX Runtime."""
    report = export.verification
    if report is None:
        return []
    verdicts = {export.onnx.dtype: report.verdict} | {
        name: variant.verdict for name, variant in report.variants.items() if variant.passed
    }
    version = str(report.facts.get("onnxruntime", ""))
    return [
        [f"ONNX Runtime {version}".strip(), verdict, code(f'InferenceSession("{GRAPHS}/{GRAPH_FILES[name]}")')]
        for name, verdict in verdicts.items()
    ]


def _exports_beside(artefact: Artefact) -> Iterator[Artefact]:
    """Verified exports of this very bake, in the folder that it lies in."""
    if artefact.hub_id is not None or artefact.bake is None:
        return
    edits = [file_digest(file) for file in artefact.edit_files]
    for folder in sorted(artefact.folder.parent.iterdir()):
        if not folder.is_dir() or folder == artefact.folder or not is_artefact(folder):
            continue
        try:
            found = Artefact.open(folder)
            same = found.kind == ONNX and found.bake is not None and found.bake.stored() == artefact.bake.stored()
            if same and [file_digest(file) for file in found.edit_files] == edits and not found.doubt:
                yield found
        except (SeaBakeError, OSError):  # somebody else's folder, or a damaged one: it proves nothing
            continue
