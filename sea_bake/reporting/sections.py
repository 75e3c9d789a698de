"""The page's sections about the whole: what was edited, its proof, gain and cost, answers, provenance."""

from __future__ import annotations

from collections.abc import Sequence

from sea_bake.artefact.opened import ONNX
from sea_bake.evaluation import Evaluation
from sea_bake.evaluation import rendering as reporting
from sea_bake.pages.edits import COMPARED, compared, settings
from sea_bake.pages.html import image, table, text
from sea_bake.pages.pictures import Picture
from sea_bake.reporting.subject import Subject


def edited(subject: Subject) -> str:
    """A table of settings, a column per edit."""
    columns = [{"base": edit.base.name, **settings(edit)} for edit in subject.edits]
    head = ["", *(f"edit {i + 1}" for i in range(len(columns)))] if len(columns) > 1 else ["", ""]
    return table(head, [[key, *(column[key] for column in columns)] for key in columns[0]], classes="facts")


def proof(subject: Subject) -> str:
    """The verification's numbers, or how to come by them."""
    artefact = subject.artefact
    if artefact is None:
        bake = "sea-bake bake BASE EDIT -o ARTEFACT && sea-bake verify ARTEFACT && sea-bake report ARTEFACT -o REPORT"
        return missing("Only what was baked can be held against the edit.", bake)
    if artefact.verification is None:
        told = "No verification speaks for these files."
        return missing(told, "sea-bake verify ARTEFACT && sea-bake report ARTEFACT -o REPORT")
    report = artefact.verification
    failures = "".join(f"<li>{text(failure)}</li>" for failure in report.failures)
    sentence = (
        "The artefact was loaded in a fresh process and given the same tokens as the base with the edit live in hooks, "
        "and as the bare base. It has to agree with the first and differ from the second. Whether the edit is any good "
        "is another question: the next one."
    )
    limit = (
        f"Its mean KL from the edit may be {report.kl_limit:.2e} nats per token."
        if report.kl_limit is not None
        else f"The tolerance is {report.tolerance:.1e} in every logit."
    )
    rows = table(COMPARED, compared(report))
    return paragraph(sentence, limit) + rows + (f'<ul class="worse">{failures}</ul>' if failures else "")


def effects(subject: Subject, evaluation: Evaluation | None, measured: Sequence[Picture]) -> str:
    """Gain and cost, with intervals and figures."""
    if evaluation is None:
        return missing("Nobody has measured whether the edit helps, or what it costs.", _measuring(subject))
    parts = [
        paragraph(f"Measured: {reporting.title(evaluation)}.", _balance(evaluation)),
        *reporting.tables(evaluation, "h3"),
    ]
    parts += [image(picture) for picture in measured]
    return "".join(parts) + reporting.breakdown(evaluation) + reporting.remarks(evaluation)


def _measuring(subject: Subject) -> str:
    """The commands that would supply gain and cost."""
    if subject.artefact is None:
        return "sea-bake eval BASE --edit EDIT --limit 200 -o DIR, and then sea-bake report EDIT --evaluation DIR"
    if subject.artefact.kind == ONNX:
        return (
            "sea-bake eval THE-ARTEFACT-BEHIND-IT --limit 200 -o DIR, and then sea-bake report EXPORT --evaluation DIR"
        )
    return "sea-bake eval ARTEFACT --limit 200 --write"


def _balance(evaluation: Evaluation) -> str:
    """How many measures moved for sure, in one sentence."""
    told = []
    for kind, rows in reporting.grouped(evaluation.headlines):
        judged = [reporting.verdict(row) for row in rows if row.measure.judged]
        counts = {word: judged.count(word) for word in ("better", "worse")}
        told.append(
            f"{reporting.HEADINGS[kind]}: of {len(judged)} measures {counts['better']} better, {counts['worse']} "
            f"worse, {len(judged) - sum(counts.values())} with no difference that the examples could show."
        )
    return " ".join(told)


def answers(samples: Sequence[dict[str, str]], evaluation: Evaluation | None) -> str:
    """Base and edited model side by side."""
    if not samples:
        return missing("There are no answers to show.", "sea-bake report ... --model BASE (runs the model)")
    whose = "from the evaluation" if evaluation is not None and evaluation.samples else "written for this report"
    return paragraph(f"Greedy answers of the base and of the edited model, {whose}.") + reporting.answers(samples)


def provenance(subject: Subject) -> str:
    """Folded away: for who doubts, or wants to make it again."""
    rows = [[name, str(value)] for name, value in subject.provenance()]
    return folded(f"Settings, versions and hashes ({len(rows)})", table(["", ""], rows, classes="text provenance"))


def paragraph(*sentences: str) -> str:
    """Sentences, without the empty ones."""
    return f"<p>{text(' '.join(filter(None, sentences)))}</p>"


def percent(share: float) -> str:
    """0.123 -> "12.3 %"."""
    return f"{100 * share:.1f} %"


def missing(sentence: str, command: str) -> str:
    """What a section says whose data is not there."""
    return f'<p>{text(sentence)}</p><p class="note">To see it here: <code>{text(command)}</code></p>'


def folded(summary: str, body: str) -> str:
    """What is there for who asks."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"
