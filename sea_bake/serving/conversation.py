"""A conversation with both sides: each goes on from its own answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sea_bake.errors import SeaBakeError, SettingError
from sea_bake.io import interrupts
from sea_bake.serving.pair import BASE, EDITED, Pair, Reply
from sea_bake.serving.sampling import Sampling, check_text

Hear = Callable[[str, str], None]  # (side, piece)


@dataclass
class Turn:
    """One prompt.

    Attributes:
        prompt: as it was typed.
        replies: side -> its answer, as far as it came.
        interrupted: whether Ctrl-C cut the last of them.
        strength: of the edited side.
    """

    prompt: str
    replies: dict[str, Reply] = field(default_factory=dict)
    interrupted: bool = False
    strength: float = 1.0

    def to_json(self) -> dict[str, Any]:
        answers = {side: asdict(reply) for side, reply in self.replies.items()}
        return {"prompt": self.prompt, "alpha": self.strength, "answers": answers, "interrupted": self.interrupted}


class Conversation:
    """What was said, and who answers next.

    Args:
        pair: both sides.
        sides: who answers; by default all that are there.
        strength: times the edit as it is stored.
        goes_on: whether Ctrl-C ends an answer alone; else it ends what is around it, as anywhere.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        sides: Sequence[str] | None = None,
        strength: float = 1.0,
        sampling: Sampling | None = None,
        goes_on: bool = True,
    ) -> None:
        self.pair, self.sampling, self.goes_on = pair, sampling or Sampling(), goes_on
        self.turns: list[Turn] = []
        self.refused: list[str] = []  # in a chat: each line, and why
        self.sides, self.strength = tuple(sides or pair.sides), 1.0
        for side in self.sides:
            pair.check(side, 1.0)
        self.set_strength(strength)

    def choose(self, *sides: str) -> None:
        """Who answers from now on. Raises SettingError for a side that is not there."""
        for side in sides:
            self.pair.check(side, 1.0)
        self.sides = sides

    def set_strength(self, strength: float) -> None:
        """Raises SettingError where it cannot be changed."""
        if strength != 1 and EDITED not in self.pair.sides:
            raise SettingError(self.pair.lacking)
        if EDITED in self.pair.sides:
            self.pair.check(EDITED, strength)
        self.strength = strength

    def set_system(self, text: str | None) -> None:
        """Another system prompt, for all that was said too. Raises SettingError where the template takes none."""
        check_text(text or "")
        form = replace(self.pair.form, system=text or None)
        self.pair.check_format(form)
        self.pair.form = form

    def before(self, side: str) -> list[tuple[str, str]]:
        """The turns so far as a side has them: with its own answers, or the other's where it was not asked."""
        found = []
        for turn in self.turns:
            reply = turn.replies.get(side) or next(iter(turn.replies.values()), None)
            if reply is not None and reply.text.strip():
                found.append((turn.prompt, reply.text))
        return found

    def ask(self, prompt: str, hear: Hear = lambda side, piece: None) -> Turn:
        """Let those who are chosen answer, one after the other. Ctrl-C ends the answer that is growing, and those that
        would follow, and keeps what there is.

        Raises:
            SettingError: a prompt without a word, or that is no text; a conversation longer than the model can read.
                What one side has said by then is kept.
        """
        if not prompt.strip():
            raise SettingError("the prompt is empty: say something")
        check_text(prompt)
        turn = Turn(prompt, strength=self.strength)
        known = {side: self.before(side) for side in self.sides}
        self.turns.append(turn)  # first: what one side has said is kept, whatever becomes of the other
        try:
            self._answers(turn, known, hear)
        except SeaBakeError:
            if not turn.replies:
                self.turns.pop()
            raise
        return turn

    def _answers(self, turn: Turn, known: dict[str, list[tuple[str, str]]], hear: Hear) -> None:
        """Fill a turn, side by side."""
        for side in self.sides:
            pieces: list[str] = []

            def say(piece: str, side: str = side, pieces: list[str] = pieces) -> None:
                pieces.append(piece)
                hear(side, piece)

            apart: contextlib.AbstractContextManager[list[bool]] = contextlib.nullcontext([])
            with interrupts.taken() if self.goes_on else apart as came:
                turn.replies[side] = self.pair.reply(
                    side, turn.prompt, before=known[side], strength=self.strength, sampling=self.sampling, say=say
                )
            if came:
                turn.interrupted = True
                turn.replies.setdefault(side, Reply("".join(pieces), len(pieces), False))
                break

    def clear(self) -> None:
        """Begin anew; system prompt, sides and strength stay."""
        self.turns.clear()

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {
            "model": self.pair.name,
            "how": self.pair.how,
            "runtime": self.pair.runtime,
            "prompt_format": self.pair.form.to_json(),
            "sampling": asdict(self.sampling),
            "turns": [turn.to_json() for turn in self.turns],
            "refused": self.refused,
        }


__all__ = ["BASE", "EDITED", "Conversation", "Turn"]
