"""What the page says: what is edited and how much; its prose stands in pages/templates/web.html.j2."""

from __future__ import annotations

from importlib import resources
from typing import Any

from sea_bake.exporting.web.models import WebModel
from sea_bake.pages import templates
from sea_bake.pages.edits import sentence
from sea_bake.pages.markdown import front_matter

STATIC = ("style.css", "page.js", "worker.js")
TEMPLATE = "index.html"
EXAMPLES = (
    "Do goldfish forget everything after three seconds?",
    "Is it dangerous to wake a sleepwalker?",
    "Why do we have seasons on Earth?",
)


def asset(name: str) -> str:
    """A file of the page, as it comes with the package."""
    return (resources.files("sea_bake.exporting.web") / "page" / name).read_text("utf-8")


def html(model: WebModel, *, title: str, sides: list[str], bytes_first: int) -> str:
    """index.html."""
    size = f"{bytes_first / 1e6:,.0f} MB"
    return templates.html("web.html.j2", title=title, sides=sides, facts=facts(model), size=size, examples=EXAMPLES)


def facts(model: WebModel) -> list[tuple[str, str]]:
    """Name and text: base, each edit, and how much it changes where that was verified."""
    record = model.record
    revision = f" at {record.revision}" if record.revision else ""
    shown = [("Base", f"{record.base}{revision}")]
    shown += [("Edit", sentence(edit)) for edit in model.artefact.edits]
    report = model.artefact.verification
    if report is None or not report.passed:
        return [*shown, ("Proof", "not verified")]
    equality, effect = report.equality, report.effect
    changes = (
        f"the most likely token at {100 * (1 - effect.top1):.0f} % of positions; mean KL from the base "
        f"{effect.mean_kl:.2g} nats per token"
    )
    proof = (
        f"{report.verdict}: in ONNX Runtime no logit is further than {equality.max_abs:.0e} from the edited "
        "PyTorch model's"
    )
    return [*shown, ("Changes", changes), ("Proof", proof)]


def card(model: WebModel, *, title: str) -> str:
    """README.md: the front matter by which a Hugging Face Space knows a static page, and what it is."""
    matter: dict[str, Any] = {
        "title": title,
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        # Only a page that shares its process with no other may use several threads in WebAssembly.
        "custom_headers": {
            "cross-origin-embedder-policy": "credentialless",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "cross-origin",
        },
    }
    base = model.record.base
    if base.count("/") == 1:
        matter["models"] = [base]
    return f"{front_matter(matter)}\n" + templates.markdown(
        "web.md.j2", title=title, facts=facts(model), doubt=model.artefact.doubt
    )
