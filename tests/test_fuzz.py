"""A few thousand inputs for every reader, the same in every run; ``scripts/fuzz`` draws as many as one likes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fuzzing
import pytest
from fuzzing import TARGETS, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sea_bake.errors import EditError

EXAMPLES = 600  # for the fastest readers: all of them take some 15 s together


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_accepts_or_refuses(name: str) -> None:
    """It uses what it accepts, and says no with a SeaBakeError; whatever else it raises fails here."""
    target = TARGETS[name]
    seen: Counter[str] = Counter()

    @settings(max_examples=max(40, int(EXAMPLES * target.share)), suppress_health_check=list(HealthCheck))
    @given(target.inputs())
    def read(data: bytes) -> None:
        seen[fuzzing.outcome(target, folder, data)] += 1

    with fuzzing.scratch() as folder:
        read()
    assert seen["accepted"] > 0  # the control: inputs are near enough to valid ones to get far
    assert sum(seen.values()) > seen["accepted"]


def test_a_crash_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    """The control: of two readers, one refuses and one crashes."""

    def refuses(folder: Path, data: bytes) -> None:
        raise EditError("no")

    def crashes(folder: Path, data: bytes) -> None:
        raise ValueError("no")

    assert fuzzing.outcome(Target(st.binary, refuses), tmp_path, b"") == "EditError"
    with pytest.raises(ValueError, match="no"):
        fuzzing.outcome(Target(st.binary, crashes), tmp_path, b"")
