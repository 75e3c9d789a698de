"""The processes of one run: one, or those of ``torchrun`` and ``accelerate launch``, which share the work.

Work is dealt out in pieces that do not depend on how many processes there are (a batch, a text), so neither do the
results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sea_bake.errors import SeaBakeError, SettingError

Item = TypeVar("Item")
# For each other: while the main process fits, or waits for workers on other machines, the rest wait for its word, and
# torch would end them after 10 or 30 minutes. A process that dies still ends the run at once: torchrun sees to it.
_PATIENCE = timedelta(days=7)


def processes() -> Any:
    """accelerate's view of this run: one process, or those of ``accelerate launch`` and ``torchrun``.

    Without a GPU it has to be told so, or it takes the processes of ``torchrun`` for strangers.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def are_several() -> bool:
    return bool(processes().num_processes > 1)


def is_main_process() -> bool:
    """The one that speaks and writes."""
    return bool(processes().is_main_process)


def is_first_here() -> bool:
    """Of the processes of this machine."""
    return bool(processes().is_local_main_process)


def dealt(pieces: Sequence[Item]) -> list[Item]:
    """Those of this process: every n-th."""
    state = processes()
    return list(pieces[state.process_index :: state.num_processes])


def gathered(mine: Sequence[Item]) -> list[Item]:
    """What all processes have, on each of them; a process that died stops the run. Every process has to call it."""
    if not are_several():
        return list(mine)
    from accelerate.utils import gather_object

    found: list[Item] = gather_object(list(mine))
    return found


def from_main(value: Item) -> Item:
    """The main process' value, on each of them."""
    if not are_several():
        return value
    from accelerate.utils import broadcast_object_list

    box = [value]
    broadcast_object_list(box)
    return box[0]


def on_main(act: Callable[[], Item]) -> Item:
    """What a call by the main process alone gives, on each of them; its SeaBakeError, too."""
    if not are_several():
        return act()
    value: Any = None
    with in_step():
        if is_main_process():
            value = act()
    return from_main(value)


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Around what each process does by itself: what goes wrong for one of them goes wrong for all, here, so that none
    waits for another that has given up.

    Raises:
        SeaBakeError: of the first process that has one.
    """
    error: SeaBakeError | None = None
    try:
        yield
    except SeaBakeError as own:
        if not are_several():
            raise
        error = own
    first = next(filter(None, gathered([error])), None)
    if first is not None:
        raise first from error


def check_alike(what: dict[str, Any]) -> None:
    """Raise SettingError on every process unless all were given the same: ``what`` is called -> plain data. What a
    process lacks, or has as None, it does not know, and is not asked of it.
    """
    everyone = gathered([what])
    for name in dict.fromkeys(name for told in everyone for name in told):
        known = [(i, told[name]) for i, told in enumerate(everyone) if told.get(name) is not None]
        odd = [i for i, value in known if value != known[0][1]]
        if odd:
            raise SettingError(
                f"process {odd[0]} of {len(everyone)} has another {name} than process {known[0][0]}: start all of them "
                "with the same command line, files and versions"
            )
