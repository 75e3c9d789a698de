"""Optuna's storages, opened: a database by its URL, or a journal file on a disk that all workers see."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sea_bake.errors import MissingExtraError, OutputError, SettingError, first_line_of

_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
_ENGINE = {"pool_pre_ping": True}  # else the first call behind a restart of the database fails


def shown(url: str) -> str:
    """A storage for people, without its password."""
    if "://" not in url:
        return url
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return f"{url.partition('://')[0]}://..."


def troubles() -> tuple[type[Exception], ...]:
    """What a storage raises that is down, or full."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError, OSError


def connect(url: str) -> Any:
    """Optuna's storage behind a SQLAlchemy URL, or in a journal file by its path, which is made where it is not there.

    Raises:
        SettingError: a URL that nothing knows.
        MissingExtraError: the database's driver is not installed.
        OutputError: it cannot be reached, or is no storage of this Optuna.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _database(url) if "://" in url else _journal(Path(os.path.expanduser(url)))


def _opened(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError

    for pause in (0.5, 1.0, 2.0):
        try:
            return RDBStorage(url, engine_kwargs=_ENGINE)
        except ArgumentError:
            raise
        except troubles():  # two workers that make its tables at once: one of them fails
            time.sleep(pause)
    return RDBStorage(url, engine_kwargs=_ENGINE)


def _database(url: str) -> Any:
    from sqlalchemy.exc import ArgumentError

    if url.startswith(("redis", "grpc")):
        raise SettingError(f"{shown(url)}: use a database (postgresql://, mysql://), or a journal file by its path")
    try:
        return _opened(url)
    except (ArgumentError, ValueError) as error:
        raise SettingError(
            f"{shown(url)} is no storage ({first_line_of(error).replace(url, shown(url))}): give a URL such as "
            "postgresql://USER@HOST/DATABASE, or the path of a journal file"
        ) from None  # its text may hold the password
    except ImportError as error:
        name = getattr(error.__cause__, "name", None) or "of this database"
        raise MissingExtraError(
            f"{shown(url)} needs the driver {name}. Install it with: pip install '{_DRIVERS.get(name, name)}'"
        ) from None
    except RuntimeError as error:
        raise OutputError(f"{shown(url)} holds tables of another Optuna ({first_line_of(error)})") from error
    except troubles() as error:
        raise unreachable(url, error) from None


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class Lock(JournalFileSymlinkLock):
        """Whoever may write first removes the half of a line that a killed writer has left."""

        def acquire(self) -> bool:
            held = super().acquire()
            with contextlib.suppress(OSError):
                mend(path)
            return held

    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {path.parent} for the journal {path.name}: make it, on a disk for all")
    try:
        return JournalStorage(JournalFileBackend(str(path), Lock(str(path))))
    except OSError as error:
        raise unreachable(str(path), error) from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise OutputError(f"{path} is no journal of Optuna, or a damaged one: choose another --storage") from error


def mend(path: Path) -> None:
    """Cut off the half of a line at the end of a journal, where a kill has left one."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        while at:
            at -= 1
            file.seek(at)
            if file.read(1) == b"\n":
                at += 1
                break
        if at < end:
            file.truncate(at)


def unreachable(url: str, error: Exception) -> OutputError:
    """The error for a storage that does not answer."""
    cause = getattr(error.__cause__ or error, "orig", None) or error.__cause__ or error
    reason = " ".join(first_line_of(cause).split()).replace(url, shown(url))
    return OutputError(
        f"the storage {shown(url)} cannot be used: {reason}. What it holds stays: start the same line again when it is "
        "back"
    )


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Raises OutputError for what goes wrong with a storage inside."""
    try:
        yield
    except troubles() as error:
        raise unreachable(url, error) from None
