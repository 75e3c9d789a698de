"""What is searched: for every setting of a fit a value, some values, or a range; and what an untuned fit would take."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from sea_bake.errors import SettingError
from sea_bake.fitting import fit
from sea_bake.methods.sea import check_share
from sea_bake.methods.table import METHODS, SETTINGS, named, resolved
from sea_bake.model.anatomy import Site
from sea_bake.modeling_sea import FEATURES, MERGES, PARTS

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Settings = dict[str, Any]  # arguments of ``fit``
_SHARES = ("K_positive", "K_negative")
_NUMBERS = (*_SHARES, "alpha")
_NAMES = {"K_positive": "K+", "K_negative": "K-"}
_WORDS = {"yes": True, "no": False, "true": True, "false": False}
_KNOWN: dict[str, Sequence[Any]] = {
    "method": tuple(METHODS),
    "site": [site.value for site in Site],
    "merge": MERGES,
    "feature": tuple(FEATURES),
    "parts": PARTS,
}


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, drawn evenly on a logarithmic scale where both are positive: KL goes with
    the square of alpha. Of a K it is 1 - K that is drawn so: from 0.95 to 0.96 is a small step, from 0.98 to 0.99 a
    large one.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Space:
    """The settings that are searched, named as the arguments of :func:`sea_bake.fit`.

    Each is a tuple of values (of one alone: it is fixed), or, of a number, a :class:`Range`. Of what is drawn, a method
    gets the settings that it takes; one that can edit a single site (iti) gets that. The defaults leave out
    what was seen to break SmolLM2-135M at a tenth of its strength, so that few trials are wasted: "elu", and Φ edits of
    the residual stream ("block"), which no fold can carry either.
    """

    method: tuple[str, ...] = ("sea",)
    site: tuple[str, ...] = ("mlp", "attn")
    layers: tuple[str, ...] = ("last:0.66", "last:0.33", "first:0.66", "all", "signature:0.5")
    K_positive: tuple[float | int, ...] | Range = Range(0.5, 0.999)
    K_negative: tuple[float | int, ...] | Range = Range(0.5, 0.999)
    merge: tuple[str, ...] = ("l2", "sum", "average")
    feature: tuple[str, ...] = ("identity", "tanh")
    centre: tuple[bool, ...] = (False, True)
    alpha: tuple[float, ...] | Range = Range(0.05, 1.5)
    parts: tuple[str, ...] = ("both",)

    def check(self) -> Space:
        """Itself.

        Raises:
            SettingError: a value that no fit would take, a range that is none, or a setting without any value.
        """
        for name, axis in self.axes.items():
            if isinstance(axis, Range):
                _check_range(name, axis)
                continue
            if not axis:
                raise SettingError(f"{name}: there is no value to try")
            for value in axis:
                _check_value(name, value)
        return self

    @property
    def axes(self) -> dict[str, tuple[Any, ...] | Range]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def takes(self, name: str) -> bool:
        """Whether some method of the space takes a setting."""
        return name not in SETTINGS or any(name in named(method).takes for method in self.method)

    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws from: the settings with more than one value."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        found: dict[str, BaseDistribution] = {}
        for name, axis in self.axes.items():
            if not self.takes(name):
                continue
            if isinstance(axis, Range) and name in _SHARES:
                found[_left_out(name)] = FloatDistribution(1 - axis.high, 1 - axis.low, log=True)
            elif isinstance(axis, Range):
                found[name] = FloatDistribution(axis.low, axis.high, log=axis.low > 0)
            elif len(axis) > 1:
                found[name] = CategoricalDistribution([repr(value) for value in axis])  # of texts: 1 is not 1.0 there
        return found

    def settings(self, drawn: Mapping[str, Any]) -> Settings:
        """What Optuna drew, as arguments of ``fit``: shares and alpha with four digits, which a recipe can hold."""
        found: Settings = {}
        for name, axis in self.axes.items():
            if isinstance(axis, Range) and self.takes(name):
                value = 1 - drawn[_left_out(name)] if name in _SHARES else drawn[name]
                found[name] = round(float(value), 4)
            elif not isinstance(axis, Range):
                found[name] = next((v for v in axis if repr(v) == drawn.get(name)), axis[0])
        return own(found)

    @property
    def sites(self) -> list[str]:
        """Of which activations are read."""
        fixed = [row.reads or row.only for row in map(named, self.method)]
        return [*(self.site if None in fixed else ()), *(site.value for site in fixed if site is not None)]

    def drawn(self, settings: Settings) -> dict[str, Any]:
        """The other way round, for those settings that lie in the space."""
        found: dict[str, Any] = {}
        for name, axis in self.axes.items():
            if name not in settings or not self.takes(name):
                continue
            value = settings[name]
            if isinstance(axis, Range):
                if isinstance(value, float) and axis.low <= value <= axis.high:
                    found |= {_left_out(name): 1 - value} if name in _SHARES else {name: value}
            elif len(axis) > 1 and repr(value) in map(repr, axis):
                found[name] = repr(value)
        return found

    def holds(self, settings: Settings) -> bool:
        """Whether a search could propose these."""
        drawn = self.drawn(settings)
        return drawn.keys() == self.distributions().keys() and repr(self.settings(drawn)) == repr(settings)

    def to_json(self) -> dict[str, Any]:
        """Setting -> [values], or {"low", "high"}."""
        return {name: asdict(axis) if isinstance(axis, Range) else list(axis) for name, axis in self.axes.items()}


def parse_space(
    *,
    method: str | None = None,
    site: str | None = None,
    layers: Sequence[str] | None = None,
    K_positive: str | None = None,
    K_negative: str | None = None,
    merge: str | None = None,
    feature: str | None = None,
    centre: str | None = None,
    alpha: str | None = None,
    parts: str | None = None,
) -> Space:
    """A search space out of the command line's texts: "mlp", "identity,tanh", "0.25:1".

    Args:
        method: methods of sea-bake fit to try, such as sea,mean-difference,leace. Default: sea.
        site: "mlp", "attn", "block". Default: mlp,attn.
        layers: one specification, as of fit. Default: last:0.66, last:0.33, first:0.66, all, signature:0.5.
        K_positive, K_negative: shares (0.9:0.99) or ranks (1,2,4,8). Default: 0.5:0.999.
        merge: merges to try. Default: l2,sum,average.
        feature: "identity", "squared-exponential", "tanh", "elu", "asinh", "signed-square-root". Default:
            identity,tanh.
        centre: "no", "yes", or both. Default: no,yes.
        alpha: strength. Default: 0.05:1.5.
        parts: "both", "positive", "negative". Default: both, fixed.

    Raises:
        SettingError: a text that cannot be read; see :meth:`Space.check`.
    """
    texts = dict(locals())
    axes: dict[str, Any] = {name: _parsed(name, text) for name, text in texts.items() if text is not None}
    space = Space(**axes).check()
    for name in axes:
        if not space.takes(name):
            raise SettingError(f"{name.replace('_', '-')} is no setting of {', '.join(space.method)}: drop it")
    return space


def untuned() -> Settings:
    """What ``fit`` takes when it is told nothing."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit).parameters.items()}
    defaults |= resolved({})
    defaults |= {"site": Site.parse(defaults["site"]).value}
    defaults |= {name: defaults["K"] for name in _SHARES if defaults[name] is None}
    return {field.name: defaults[field.name] for field in fields(Space)}


def own(settings: Settings) -> Settings:
    """Of settings those that their method takes, and the one site that it may be limited to."""
    row = named(settings["method"])
    found = {name: value for name, value in settings.items() if name not in SETTINGS or name in row.takes}
    return found if row.only is None else found | {"site": row.only.value}


def starts(space: Space) -> list[Settings]:
    """What every search begins with: the untuned default; and, where it may propose them, that at half and a quarter of
    its strength, since an edit that helps and costs too much may cost less and still help.
    """
    first = untuned()
    weaker = [first | {"alpha": round(first["alpha"] / share, 4)} for share in (2, 4)]
    return [first, *(settings for settings in weaker if space.holds(settings))]


def shown(settings: Settings) -> dict[str, str]:
    """Settings for people."""
    words = {"True": "yes", "False": "no"}
    return {_NAMES.get(name, name): words.get(str(value), str(value)) for name, value in settings.items()}


def in_words(settings: Settings) -> str:
    """What differs from an untuned fit: "site attn, K+ 0.9, alpha 0.5"."""
    same = shown(untuned())
    return ", ".join(f"{name} {value}" for name, value in shown(settings).items() if value != same[name]) or "untuned"


def _left_out(name: str) -> str:
    return f"1-{name}"


def _parsed(name: str, text: str | Sequence[str]) -> tuple[Any, ...] | Range:
    if name == "layers":
        return tuple(dict.fromkeys([text] if isinstance(text, str) else text))
    assert isinstance(text, str)
    if name in _NUMBERS and ":" in text:
        low, high = text.split(":", 1)
        return Range(float(_number(name, low)), float(_number(name, high)))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if name in _NUMBERS:
        return tuple(dict.fromkeys(_number(name, word) for word in words))
    if name == "centre":
        unknown = [word for word in words if word.lower() not in _WORDS]
        if unknown:
            raise SettingError(f"centre {unknown[0]!r}: use no, yes, or no,yes")
        return tuple(dict.fromkeys(_WORDS[word.lower()] for word in words))
    return tuple(dict.fromkeys(words))


def _number(name: str, text: str) -> float | int:
    text = text.strip()
    try:
        whole = name in _SHARES and text.lstrip("+-").isdigit()
        return int(text) if whole else float(text)
    except ValueError:
        raise SettingError(
            f"{name} {text!r} cannot be read: give a number, several (0.5,1), or a range (0.25:1)"
        ) from None


def _check_value(name: str, value: Any) -> None:
    if name in _SHARES:
        check_share(value, name)
    elif name == "alpha":
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise SettingError(
                f"alpha = {value!r} is no strength: use a number between -1e6 and 1e6; 1 is the map itself"
            )
    elif name == "centre":
        if not isinstance(value, bool):
            raise SettingError(f"centre = {value!r} is neither True nor False")
    elif name == "layers":
        if not isinstance(value, str):
            raise SettingError(f"layers {value!r}: give specifications as texts, such as last:0.66 or 10-29")
    elif value not in _KNOWN[name]:
        near = difflib.get_close_matches(str(value), [str(known) for known in _KNOWN[name]], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingError(f"unknown {name} {value!r}: {hint}use some of {', '.join(map(str, _KNOWN[name]))}")


def _check_range(name: str, axis: Range) -> None:
    if name not in _NUMBERS:
        raise SettingError(f"{name} has no range: give values")
    if not math.isfinite(axis.low) or not math.isfinite(axis.high) or not axis.low < axis.high:
        raise SettingError(f"{name} {axis.low:g}:{axis.high:g} is not a range: give low:high, the smaller number first")
    if name in _SHARES and not 0 < axis.low < axis.high < 1:
        raise SettingError(
            f"{name} {axis.low:g}:{axis.high:g}: a range of shares lies between 0 and 1, both left out (such as "
            "0.5:0.999); ranks are given one by one (1,2,4,8)"
        )
    if name == "alpha" and max(abs(axis.low), abs(axis.high)) >= 1e6:
        raise SettingError(f"alpha {axis.low:g}:{axis.high:g} is out of range: alpha lies between -1e6 and 1e6")
