"""Text that is only text: what a terminal obeys, no file can hold, or turns a line round, is shown as an escape."""

from __future__ import annotations

import re

# Control characters (not tab and newline), separators of lines, bidirectional and other invisible marks, halves of
# surrogate pairs, and what is no character.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufff9-\ufffb\ud800-\udfff\ufffe\uffff]"
)


def harmless(text: str) -> str:
    """A text for a page, a card or a terminal. Escapes are spelt as JSON spells them, so that JSON stays JSON."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def size(count: int) -> str:
    """Bytes for people: 1_234_567 -> "1.2 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def p_value(p: float) -> str:
    """0.0004 -> "<0.001"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
