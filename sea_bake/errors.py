"""Every error a user can cause, each saying what is wrong, where, and the cure.

The command line turns a :class:`SeaBakeError` into one paragraph and exit code 2; anything else is our own mistake and
keeps its traceback.
"""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

_LONGEST = 3000  # characters


class SeaBakeError(Exception):
    """Base of all errors that a user, not a programmer, has to act on.

    Of a message longer than a screen the middle is left out: a stranger's file may say as much as it likes, and what is
    wrong, and the cure, stand at the ends.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 3 :]}")


class DemonstrationError(SeaBakeError):
    """Demonstrations that cannot be read, or too few of them."""


class FamilyError(SeaBakeError):
    """A model family or module layout that ``anatomy`` has no row for."""


class ActivationError(SeaBakeError):
    """Activations that cannot be fitted on: NaN, wrong shapes, wrong model."""


class SettingError(SeaBakeError):
    """A setting outside its range: K, rank, alpha, a layer, a site, a feature function."""


class EditError(SeaBakeError):
    """An edit file that is damaged, hostile or of another format version."""


class WrongModelError(EditError):
    """An edit, or an artefact, that was made for another model than the one given."""


class CheckpointError(SeaBakeError):
    """A checkpoint that is incomplete, damaged, or in a form that cannot be edited."""


class NotExactError(SeaBakeError):
    """A fold or an adapter of an edit that the weights cannot carry exactly."""


class OutputError(SeaBakeError):
    """An output that exists already, or a disk that cannot hold it."""


class MissingExtraError(SeaBakeError):
    """An optional dependency is not installed; the message carries the exact ``pip install`` line."""


class RecipeError(SeaBakeError):
    """A recipe that cannot be read: no plain YAML, an unknown key, a value of another type, an absent step."""


class VerificationError(SeaBakeError):
    """A verification that cannot be carried out (one that fails is a verdict, not an error)."""


class PublishError(SeaBakeError):
    """An artefact that may not be published as it is, or a Hub that does not take it."""


class EvaluationError(SeaBakeError):
    """An evaluation that cannot be carried out: unknown tasks, missing data, NaN logits, no memory."""


def command(*words: object) -> str:
    """A command that a message names, as a shell reads it: it can be copied, and run as it stands."""
    paths = (f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words)  # no option
    return shlex.join(paths)


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The one wording for a missing optional dependency."""
    return MissingExtraError(
        f"{purpose} needs the package '{package}'. Install it with: pip install 'sea-bake[{extra}]'"
    )


def need(extra: str, purpose: str, *modules: str) -> None:
    """Raise MissingExtraError unless the modules of an extra are installed."""
    for module in modules:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is None or importlib.util.find_spec(module) is None:
            raise missing_extra(package, extra, purpose)


def first_line_of(error: BaseException) -> str:
    """The first line of what another library says of an error; its type, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason_of(error: BaseException | None) -> str:
    """What another library says of an error, in one line of at most 300 characters."""
    said = " ".join(str(error).split())[:300]
    return f"it does not know {said}" if isinstance(error, KeyError) else said or type(error).__name__
