"""Several processes share the work of an evaluation: the same files as from one, to the last digit; one that dies, or
was started with something else, stops them all, and nothing is lost.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmarks
import pytest
import tiny
from processes import KILLS, free_port, one_killed, together

TASKS = ("truthfulqa_mc2", "bbq", "gsm8k")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("asked")
    data, neutral = benchmarks.write(folder / "data"), folder / "neutral.txt"
    texts = ("A paragraph that is short.", "Another one, shorter still.", "A third, so that one process has more.")
    neutral.write_text("\n\n".join(texts))
    edit = ("eval", tiny.single(), "--edit", tiny.edit_file(), "--data", data, "--neutral-text", neutral)
    return [*edit, "--tasks", ",".join(TASKS), "--batch-size", 2]


@pytest.fixture(scope="module")
def alone(asked: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "out"
    ran = tiny.run(*asked, "-o", output)
    assert ran.code == 0, ran
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the page, whose pictures have identifiers of their own."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [2, 4])
def test_the_figures_are_those_of_one_process(count: int, asked: list[Any], alone: Path, tmp_path: Path) -> None:
    ran = together([[*asked, "-o", tmp_path / "out", "--json"]] * count)
    assert [one.code for one in ran] == [0] * count, ran
    assert json.loads(ran[0].out) == json.loads((alone / "evaluation.json").read_text())
    assert not any(one.out or "wrote" in one.err for one in ran[1:])  # one of them speaks
    assert contents(tmp_path / "out") == contents(alone)


@pytest.mark.parametrize("name", ["study_ablations", "study_behaviours"])
def test_a_study_is_that_of_one_process(name: str) -> None:
    """Its tables, and all that they are made of, to the last digit."""
    script = Path(__file__).resolve().parent.parent / "scripts" / name
    alone, (first, second) = (together([[script, "--smoke", "--json"]] * count) for count in (1, 2))
    assert [ran.code for ran in (*alone, first, second)] == [0, 0, 0], (alone, first, second)
    assert json.loads(first.out) == json.loads(alone[0].out)
    assert "rows hold" in first.err
    assert not second.out + second.err


def test_of_other_batches_the_last_digits_are_others(asked: list[Any], alone: Path, tmp_path: Path) -> None:
    """The control of the comparison above."""
    ran = tiny.run(*asked[:-1], 3, "-o", tmp_path / "other")
    assert ran.code == 0, ran
    assert contents(tmp_path / "other") != contents(alone)


def test_each_process_answers_its_own_share(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are parted: none is done twice, and none is left out."""
    from sea_bake.model import processes

    class State:
        num_processes, process_index = 3, 0

    shares = []
    for index in range(3):
        State.process_index = index
        monkeypatch.setattr(processes, "processes", lambda: State)
        shares.append(processes.dealt(list(range(10))))
    assert sorted(piece for share in shares for piece in share) == list(range(10))
    assert {len(share) for share in shares} == {3, 4}


@pytest.mark.parametrize("kill", KILLS)
def test_a_process_that_dies_stops_the_run_which_goes_on_later(
    kill: int, asked: list[Any], alone: Path, tmp_path: Path
) -> None:
    """Under ``torchrun``; each time another process, at another moment of the run."""
    output = tmp_path / "out"
    wanted = kill % (2 * len(TASKS))
    count = one_killed([*asked, "-o", output], kill, lambda: len(list(output.glob("examples/*.jsonl"))) > wanted)
    # A writer that dies leaves its temporary, which the next run removes.
    kept = {name: data for name, data in contents(output).items() if "/." not in name}
    assert 0 < len(kept) < len(contents(alone))
    assert all(contents(alone)[name] == data for name, data in kept.items())  # whole, and right
    again = together([[*asked, "-o", output]] * count)
    assert [ran.code for ran in again] == [0] * count, again
    assert contents(output) == contents(alone)


def test_a_process_that_was_started_with_something_else_is_refused(asked: list[Any], tmp_path: Path) -> None:
    """Every process says so, and nothing is written."""
    words = [*asked, "-o", tmp_path / "out"]
    edit, elsewhere = tiny.edit_file(site="attn"), tiny.changeable(tiny.single(), tmp_path / tiny.single().name)
    for odd, what in (
        ([edit if word == tiny.edit_file() else word for word in words], "edit or model"),
        ([*words, "--limit", 2], "settings of truthfulqa_mc2"),
        ([elsewhere if word == tiny.single() else word for word in words], f"place of its models on {platform.node()}"),
    ):
        for ran in together([words, odd]):
            tiny.refused(ran, "SettingError", f"process 1 of 2 has another {what} than process 0", "same command line")
        assert not (tmp_path / "out").exists()


def test_each_machine_reads_every_byte_of_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that no sample sees; the first process of each machine looks, and the others are not asked."""
    from safetensors.torch import load_file, save_file

    from sea_bake.errors import SettingError
    from sea_bake.evaluation import doors
    from sea_bake.model import processes

    copy = tiny.changeable(tiny.single(), tmp_path / tiny.single().name)
    told = []
    for machine, first, change in (("a", True, 0.0), ("a", False, 0.0), ("b", True, 0.0), ("c", True, 1e-3)):
        tensors = load_file(tiny.single() / "model.safetensors")
        tensors["model.embed_tokens.weight"][5, 7] += change
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        monkeypatch.setattr(doors, "are_several", lambda: True)
        monkeypatch.setattr(doors, "is_first_here", lambda first=first: first)
        monkeypatch.setattr(doors.platform, "node", lambda machine=machine: machine)
        told.append(doors.Doors.of(copy).here())
    assert [len(one) for one in told] == [2, 1, 2, 2]
    monkeypatch.setattr(processes, "gathered", lambda mine: told[:3])
    processes.check_alike({})
    monkeypatch.setattr(processes, "gathered", lambda mine: told)
    with pytest.raises(SettingError, match="process 3 of 4 has another base, in its files than process 0"):
        processes.check_alike({})


def test_texts_of_models_that_share_no_cache_are_parted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one: the same scores, each by one process."""
    from sea_bake.evaluation import prefixes
    from sea_bake.model import processes
    from sea_bake.model.loading import load_model

    class State:
        num_processes, process_index = 1, 0

    model = load_model(tiny.single(), dtype="float32")
    asked = [([1, 2, 3], [4]), ([5, 6], [7, 8]), ([9, 10, 11, 12], [13, 14])]
    monkeypatch.setattr(processes, "processes", lambda: State)
    whole = prefixes.one_by_one(model, lambda count: None, asked)
    State.num_processes, found, advanced = 2, [], []
    for index in range(2):
        State.process_index = index
        monkeypatch.setattr(prefixes, "gathered", lambda mine: mine)
        found += [prefixes.one_by_one(model, advanced.append, asked)]
    assert [len(mine) for mine in found] == [2, 1]
    assert [found[0][0], found[1][0], found[0][1]] == whole


def test_processes_wait_for_the_main_one_longer_than_torch_would(tmp_path: Path) -> None:
    """Which may wait for workers on other machines for hours."""
    script = tmp_path / "patience.py"
    script.write_text(
        "import torch\n"
        "from sea_bake.model.processes import are_several\n"
        "assert are_several()\n"
        "group = torch.distributed.distributed_c10d._get_default_group()\n"
        "print(group._get_backend(torch.device('cpu')).options._timeout.days)\n"
    )
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, script],
            env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    assert [one.communicate(timeout=300)[0].strip() for one in both] == ["7", "7"]
