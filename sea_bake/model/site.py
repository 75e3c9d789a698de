"""Which activation of a decoder layer is edited, and where it lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from sea_bake.errors import SettingError

_NAMED = re.compile(r"(attn|mlp):[A-Za-z_]\w*(\.\w+)*")


class Site(str, Enum):
    """Which activation of a decoder layer is edited: a *module's own output*, but for ``heads``.

    ``mlp``: output of the MLP (or MoE) module. ``attn``: output of the attention module. ``block``: the residual stream
    behind the whole decoder layer. In Gemma 2/3 and OLMo 2 a norm stands between an ``mlp``/``attn`` output and the
    residual stream. Where two such modules stand side by side, the other one is named: ``attn:mamba``. ``heads``: what
    the attention heads give, one behind the other, [heads * head size]: the *input* of the attention's writer.
    """

    MLP = "mlp"
    ATTN = "attn"
    BLOCK = "block"
    HEADS = "heads"

    @classmethod
    def _missing_(cls, value: object) -> Site | None:
        """A named site, one object per name, as every member is."""
        if not isinstance(value, str) or not _NAMED.fullmatch(value):
            return None
        named = str.__new__(cls, value)
        named._name_, named._value_ = value, value
        found = cls._value2member_map_.setdefault(value, named)
        assert isinstance(found, Site)
        return found

    @property
    def is_input(self) -> bool:
        """Whether it is what its module is given, not what that gives."""
        return self is Site.HEADS

    @property
    def written_by(self) -> Site:
        """The site whose writer is edited instead, where an edit is folded."""
        return {Site.HEADS: Site.ATTN, Site.BLOCK: Site.MLP}.get(self, self)

    @property
    def named(self) -> str | None:
        """The module that a named site names."""
        return self.value.partition(":")[2] or None

    @classmethod
    def parse(cls, value: str | Site) -> Site:
        """``"mlp"`` -> ``Site.MLP``. Raises SettingError for anything else."""
        try:
            return cls(value)
        except ValueError:
            raise SettingError(f"unknown site {value!r}: use one of {', '.join(s.value for s in cls)}") from None


@dataclass(frozen=True)
class Place:
    """Where a site lies in one decoder layer.

    Attributes:
        module: path of the edited module; "" is the decoder layer itself.
        writer: path of the linear that writes its output; the residual stream has none.
    """

    module: str
    writer: str
