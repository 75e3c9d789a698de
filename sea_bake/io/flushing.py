"""Files flushed to disk behind the work, by a thread: what is written next does not wait for what was written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sea_bake.io.replacing import sync


@contextlib.contextmanager
def flushing() -> Iterator[Callable[[Path], None]]:
    """Gives a function that has a file flushed which nobody writes to any more. At the end all of them are on disk.

    Raises:
        OSError: what the disk said of one of them: when the next one is given, or at the end.
    """
    begun: list[Future[None]] = []

    def flush(path: Path) -> None:
        for one in begun:
            if one.done():
                one.result()
        begun.append(pool.submit(sync, path))

    with ThreadPoolExecutor(1, "flushing") as pool:
        try:
            yield flush
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        for one in begun:
            one.result()
