"""The licence of what is published: the base's own, found and never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sea_bake.artefact import Artefact
from sea_bake.errors import PublishError
from sea_bake.io.regular import open_regular

# Words of a licence's text that no other has, and its identifier on the Hub; the first that fits.
_TEXTS = (
    (("apache license", "version 2.0"), "apache-2.0"),
    (("permission is hereby granted, free of charge", 'provided "as is"'), "mit"),
    (("llama 2 community license",), "llama2"),
    (("llama 3.3 community license",), "llama3.3"),
    (("llama 3.2 community license",), "llama3.2"),
    (("llama 3.1 community license",), "llama3.1"),
    (("meta llama 3 community license",), "llama3"),
    (("gemma terms of use",), "gemma"),
    (("redistribution and use in source and binary forms", "neither the name of"), "bsd-3-clause"),
    (("gnu affero general public license", "version 3"), "agpl-3.0"),
    (("gnu general public license", "version 3"), "gpl-3.0"),
    (("creative commons attribution-noncommercial 4.0",), "cc-by-nc-4.0"),
    (("creative commons attribution 4.0",), "cc-by-4.0"),
)


@dataclass(frozen=True)
class Licence:
    """A licence as a model card states it.

    Attributes:
        id: the Hub's identifier; "other" for one that it does not list, "unknown" where none was found.
        name, link: of an "other" one.
        origin: where it was found, for people.
    """

    id: str
    origin: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Place:
    """Where the licence of a base may be found.

    Attributes:
        base, revision: its Hub id and commit; None where it has none.
        folders: folders that may hold its papers.
        carried: the one of them that is published too, papers and all.
    """

    base: str | None
    revision: str | None = None
    folders: tuple[Path, ...] = ()
    carried: Path | None = None

    @classmethod
    def of(cls, artefact: Artefact) -> Place:
        """The artefact, and its base where that lies beside it."""
        name = artefact.record.base
        beside = artefact.folder.parent / name
        near = (beside,) if Path(name).name == name != "" and beside.is_dir() else ()
        return cls(artefact.base, artefact.revision, (artefact.folder, *near), artefact.folder)


def find(place: Place, given: str | None = None) -> tuple[Licence, dict[str, Any]]:
    """The licence given, else the base's: from its card, on disk or on the Hub, or from its licence text.

    Returns:
        It, and the metadata of the base's card (empty when there is none to be had).

    Raises:
        PublishError: what is given cannot be an identifier.
    """
    if given is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", given):
        raise PublishError(
            f"--license '{given}' is no licence identifier of the Hub, such as apache-2.0, mit or llama3.2: see "
            "https://huggingface.co/docs/hub/repositories-licenses"
        )
    cards = list(_cards(place, on_the_hub=given is None))
    base = next((metadata for metadata, _ in cards), {})
    if given is not None:
        return Licence(given, "given by the publisher"), base
    for metadata, origin in cards:
        identifier = metadata.get("license")
        identifier = identifier[0] if isinstance(identifier, list) and identifier else identifier
        if isinstance(identifier, str):
            name, link = (metadata.get(f"license_{key}") for key in ("name", "link"))
            return Licence(identifier, origin, name if isinstance(name, str) else None, _absolute(link, place)), base
    for folder in place.folders:
        for path in sorted(p for p in folder.iterdir() if re.match(r"LICEN[SC]E", p.name, re.I) and p.is_file()):
            return _recognised(path, carried=folder == place.carried), base
    return Licence("unknown", "neither the base's card nor a licence text could be found"), base


def _cards(place: Place, *, on_the_hub: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Metadata of the base's card wherever it lies: carried along, beside the artefact, or on the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.repocard import metadata_load

    for folder in place.folders:
        if (folder / "README.md").is_file():
            try:
                metadata = metadata_load(folder / "README.md")
            except Exception:  # whatever it holds, it is a text that somebody else wrote
                metadata = None
            if isinstance(metadata, dict) and "sea_bake" not in (metadata.get("tags") or ()):  # our own says nothing
                yield metadata, "the base's own model card"
    if place.base and on_the_hub:
        try:
            card = HfApi().model_info(place.base, revision=place.revision, timeout=10).card_data
        except Exception:  # offline, gated, gone: the licence is then looked for elsewhere, and its absence told
            card = None
        if card is not None:
            yield card.to_dict(), f"the model card of {place.base} on the Hub"


def _recognised(path: Path, *, carried: bool) -> Licence:
    with open_regular(path) as file:
        start = file.read(1 << 20)
    text = " ".join(start.decode("utf-8", errors="replace").lower().split())
    for words, identifier in _TEXTS:
        if all(word in text for word in words):
            return Licence(identifier, f"the base's {path.name}")
    title = re.sub(r"[^a-z0-9]+", "-", text[:60]).strip("-") or "see-the-file"
    return Licence("other", f"the base's {path.name}", title, path.name if carried else None)


def _absolute(link: Any, place: Place) -> str | None:
    """A link inside the base's repository has to lead there, unless the file travels along."""
    if not isinstance(link, str) or not re.fullmatch(r"(https?://)?[\w.~%/#?=&+-]+", link):
        return None
    if "://" in link or (place.carried is not None and (place.carried / link).is_file()):
        return link
    return f"https://huggingface.co/{place.base}/blob/main/{link}" if place.base else None
