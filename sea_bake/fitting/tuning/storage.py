"""Optuna's storages, opened: a database by its URL, or a journal file on a disk that all workers see."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sea_bake.errors import MissingExtraError, OutputError, SettingError, first_line_of

_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
_CURE = "give a URL such as postgresql://USER@HOST/DATABASE, or the path of a journal file"
_ENGINE = {"pool_pre_ping": True}  # else the first call behind a restart of the database fails


def shown(url: str) -> str:
    """A storage for people, without its password: that may hold an "@" of its own, or stand among the options."""
    scheme, found, rest = url.partition("://")
    if not found or scheme.partition("+")[0] == "sqlite":
        return url
    who, at, where = rest.rpartition("@")
    name, *secret = re.split("[:/?]", who, maxsplit=1)
    where, options, _ = where.partition("?")
    return f"{scheme}://{name}{':***' if secret else ''}{at}{where}{options and '?...'}"


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
        OutputError: it cannot be reached, or is no storage of this Optuna. What a file holds is left as it is.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url:
        raise SettingError("storage is empty: give the URL of a database, or the path of a journal file")
    return _database(url) if "://" in url else _journal(place(url))


def place(path: str) -> Path:
    """Of a journal file. Optuna's lock points to it, and from another folder only an absolute path leads there."""
    return Path(os.path.expanduser(path)).absolute()


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
    _check(url)
    try:
        return _opened(url)
    except (ArgumentError, ValueError) as error:
        raise SettingError(
            f"{shown(url)} is no storage ({_without_password(url, first_line_of(error))}): {_CURE}"
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


def _check(url: str) -> None:
    """Raise for what a URL by its words alone cannot be: a storage that workers share."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingError(f"{shown(url)} is no storage (it cannot be read as a URL): {_CURE}") from None
    if "@" in (found.host or ""):
        raise SettingError(f"{shown(url)} cannot be read as a URL: write an @ of its user or password as %40")
    if found.get_backend_name() != "sqlite":
        return
    file = found.database or ""
    if not file or ":memory:" in file or found.query.get("mode") == "memory":
        raise SettingError(f"{url} is a database in memory, which ends with this worker: {_CURE}")
    if not file.startswith("file:") and not Path(file).absolute().parent.is_dir():
        raise OutputError(f"there is no folder {Path(file).absolute().parent} for the database {url}: make it")


def _journal(path: Path) -> Any:
    from sea_bake.fitting.tuning import journal

    try:
        return journal.opened(path)
    except OSError as error:
        raise unreachable(str(path), error) from error


def _without_password(url: str, text: str) -> str:
    """What another library says of a storage, in one line."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    text = " ".join(text.replace(url, shown(url)).split())
    if "://" in url:
        with contextlib.suppress(ArgumentError, ValueError):
            if secret := make_url(url).password:
                text = text.replace(secret, "***")
    return text


def unreachable(url: str, error: Exception) -> OutputError:
    """The error for a storage that does not answer."""
    cause = getattr(error.__cause__ or error, "orig", None) or error.__cause__ or error
    reason = _without_password(url, first_line_of(cause))
    if "file is not a database" in reason:  # SQLite's words
        cure = "Choose another --storage: that file is left as it is"
    elif isinstance(cause, PermissionError):
        cure = "Give this user the right to write there, or choose another --storage"
    elif isinstance(cause, FileNotFoundError):
        cure = "Put it back, then start the same line again: without it a new search begins there"
    else:
        cure = "What it holds stays: start the same line again when it is back"
    return OutputError(f"the storage {shown(url)} cannot be used: {reason}. {cure}")


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Raises OutputError for what goes wrong with a storage inside."""
    try:
        yield
    except troubles() as error:
        raise unreachable(url, error) from None
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise OutputError(
            f"the storage {shown(url)} holds what Optuna cannot read ({type(error).__name__}: "
            f"{_without_password(url, first_line_of(error))}): choose another --storage"
        ) from None
