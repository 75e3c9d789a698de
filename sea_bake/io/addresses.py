"""Addresses on the web that a user names, and that people will follow."""

from __future__ import annotations

from urllib.parse import urlsplit

from sea_bake.errors import SettingError


def https_address(text: str, name: str, *, host: bool = False) -> str:
    """The address of a folder, without a slash at its end.

    Args:
        name: of the setting that it came in.
        host: a whole host will do too.

    Raises:
        SettingError: another scheme, no host, no folder, or a query or fragment behind it.
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    whole = parts.scheme == "https" and parts.netloc and (host or parts.path.strip("/"))
    if not whole or parts.query or parts.fragment:
        raise SettingError(f"{name} must be an https address of a folder, not {text!r}")
    return text.rstrip("/")
