"""What a reader must know before trusting signs and sizes of relevance; no torch here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SMALL = 0.05
"""A logit is small below this share of what its layer adds up: relevances one step below it are
twenty times the whole in sum of |R|."""

VANISHED = 1e-4
"""Below this share an explanation is of what cancels and of rounding: said before an extraction."""

EXTREME = 1000.0
"""Sum of |R| over a layer beyond which what cancels is all that a picture shows: the whole is less
than the thousandth part of it, and of float32's seven digits three or four are left."""

MOSTLY = 0.5
"""Share of a measure."""

UNPLACED = 0.01
"""Share of a measure without biases that rules could not place among neurons."""

AMPLIFIED = 100.0
"""Sum of |R| of what a condition is made of, over |R(condition)|."""

SHORT = {
    "negative_logit": "negative logit",
    "negative_condition": "negative condition",
    "small_logit": "small logit",
    "total_variation": "extreme total variation",
    "absorbed": "mostly absorbed",
    "unplaced": "over 1 % in the stabilizer",
    "amplified": "amplified rounding",
}
"""Words for the names of flags, which stores hold."""


class Flag(str):
    """A sentence that a reader must know, with a short name that stays the same.

    Attributes
    ----------
    name : str
        A key of :data:`SHORT`.
    """

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, text: str) -> Flag:
        """Attach its name to a sentence."""
        flag = super().__new__(cls, text)
        flag.name = name
        return flag

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.name, str(self)


def flags_of(
    logit: float,
    added: float,
    variation: float,
    absorbed: float,
    *,
    bias: str = "absorbed",
    unplaced: float = 0.0,
    scaled: bool = False,
    layer: str = "a layer",
    condition: float | None = None,
    amplification: float = 1.0,
) -> tuple[Flag, ...]:
    """Return the flags of a measure.

    Parameters
    ----------
    logit : float
        Value of the target, or the weighted sum.
    added : float
        Sum of |contributions| that add up to it.
    variation : float
        The largest sum of |R| over a layer, on the unit scale.
    absorbed : float
        Share of the measure that biases, stabilizers and remainders hold.
    bias : "absorbed" or "ignored"
        Reading of the measure, see :class:`nrm_graph.rules.composites.Composite`.
    unplaced : float
        Sum over layers of the absolute share that their stabilizers hold.
    scaled : bool
        Whether relevances are multiplied by the logit.
    layer : str
        The layer of ``variation``.
    condition : float, optional
        R(condition) of a conditioned measure, on the unit scale.
    amplification : float
        See :class:`nrm_graph.measures.measure.Measure`.

    Examples
    --------
    >>> [flag.name for flag in flags_of(-0.01, 2.0, 30.0, 0.9)]
    ['negative_logit', 'small_logit', 'absorbed']
    """
    flags = []

    def flag(name: str, text: str) -> None:
        flags.append(Flag(name, text))

    if logit < 0:
        sense = meaning(logit, scaled=scaled, condition=condition)
        flag("negative_logit", f"the target's logit is negative ({logit:.4g}): {sense}")
    elif condition is not None and condition < 0:
        sense = meaning(logit, condition=condition)
        flag("negative_condition", f"R(condition) is negative ({condition:.4g}): {sense}")
    if logit == 0 and added == 0:
        flag(
            "small_logit",
            "the target's logit is 0, too small to explain: all that adds up to it is 0 as well "
            "(is the network's head initialised? load trained weights)",
        )
    elif logit == 0 or abs(logit) < SMALL * added:
        flag(
            "small_logit",
            f"the target's logit ({logit:.4g}) is small beside the {added:.4g} that its layer adds "
            "up without sign: relevances may be very large",
        )
    if variation > EXTREME:
        flag(
            "total_variation",
            f"relevances cancel: the sum of |R| over {layer} is {_number(variation)} times the "
            "whole",
        )
    if abs(absorbed) > MOSTLY:
        flag(
            "absorbed",
            f"{holders(bias)} hold {_percent(absorbed)} of the measure, and "
            f"inputs {_percent(1 - absorbed)}",
        )
    if bias == "ignored" and unplaced > UNPLACED:
        flag(
            "unplaced",
            f"stabilizers of all layers hold {_percent(unplaced)} of the measure without sign: "
            "what rules could not place among neurons, or denominators near 0",
        )
    if amplification > AMPLIFIED:
        flag(
            "amplified",
            f"the condition's relevance nearly cancels: rounding is amplified "
            f"{amplification:.3g} times",
        )
    return tuple(flags)


def _number(value: float) -> str:
    return f"{value:{',.0f' if 100 <= abs(value) < 1e7 else '.3g'}}"


def _percent(share: float) -> str:
    return f"{_number(100 * share)} %"


def stored(
    logit: float, absorbed: float, names: Sequence[str] | None, bias: str = "absorbed"
) -> tuple[str, ...]:
    """Write what a store knows of an input's flags: in short where it holds the name alone.

    >>> stored(2.0, 0.75, ["absorbed", "small_logit"])[1:]
    ('small logit',)
    """
    whole = flags_of(logit, abs(logit), 0.0, absorbed, bias=bias)
    whole = tuple(flag for flag in whole if flag.name != "small_logit")
    known = {flag.name for flag in whole}
    rest = [SHORT.get(name, name) for name in names or () if name not in known]
    return (*map(str, whole), *rest)


def vanished(logit: float, added: float) -> bool:
    """Whether nothing of a target is left to explain."""
    return logit == 0 or abs(logit) < VANISHED * added


def holders(bias: str = "absorbed") -> str:
    """Name what absorbs relevance under a reading.

    >>> holders(), holders("ignored")
    ('biases, stabilizer and remainder', 'stabilizer and remainder')
    """
    return "biases, stabilizer and remainder" if bias == "absorbed" else "stabilizer and remainder"


def reading(sense: str, bias: str) -> str:
    """Add to what a number says that it comes from the reading without biases.

    >>> reading("positive relevance speaks for the target", "ignored")
    'positive relevance speaks for the target; biases and constants are left out'
    """
    return sense if bias == "absorbed" else f"{sense}; biases and constants are left out"


def meaning(logit: float, *, scaled: bool = False, condition: float | None = None) -> str:
    """Say what a positive number speaks for.

    >>> meaning(2.0), meaning(-2.0)
    ('positive relevance speaks for the target', 'positive relevance speaks against the target')
    >>> meaning(-2.0, scaled=True)
    'positive relevance, multiplied by the logit, speaks for the target'
    >>> meaning(2.0, condition=-0.5)
    'positive relevance speaks against the target, as the condition does'
    """
    if condition is not None:
        side = "for" if condition * logit >= 0 else "against"
        return f"positive relevance speaks {side} the target, as the condition does"
    if scaled:
        return "positive relevance, multiplied by the logit, speaks for the target"
    return f"positive relevance speaks {'for' if logit >= 0 else 'against'} the target"


def sentences(sense: str, flags: Sequence[str]) -> str:
    """Write what stands under a picture: what a positive number speaks for, and flags.

    >>> sentences("positive relevance speaks for the target", ["relevances cancel"])
    'Positive relevance speaks for the target. Relevances cancel.'
    """
    stated = not sense or any(sense in flag for flag in flags)
    texts = [*([] if stated else [sense]), *flags]
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in texts)


def counted(flags: Iterable[Sequence[str] | None]) -> dict[str, int]:
    """Count inputs by name of flag, in the order of :data:`SHORT`; None is not known.

    >>> counted([("absorbed",), (), None, ("absorbed", "small_logit")])
    {'small_logit': 1, 'absorbed': 2}
    """
    counts = Counter(name for names in flags for name in set(names or ()))
    return {name: counts[name] for name in sorted(counts, key=_place)}


def _place(name: str) -> tuple[int, str]:
    known = list(SHORT)
    return known.index(name) if name in known else len(known), name


def listed(counts: dict[str, int]) -> str:
    """Write counts in words.

    >>> listed({"small_logit": 1, "absorbed": 2})
    '1 small logit, 2 mostly absorbed'
    """
    return ", ".join(f"{count:,} {SHORT.get(name, name)}" for name, count in counts.items())


def group_meaning(logits: Sequence[float], weight: str) -> str:
    """Say what a positive mean over inputs speaks for."""
    if weight == "logit":
        return meaning(1.0, scaled=True)
    signs = {logit >= 0 for logit in logits}
    if len(signs) == 1:
        return meaning(1.0 if signs.pop() else -1.0)
    return "positive relevance speaks for the target of some inputs, and against that of others"


def group_notes(
    logits: Sequence[float], flags: Iterable[Sequence[str] | None], weight: str, of: str = "inputs"
) -> tuple[str, ...]:
    """Say how many inputs of a group are flagged.

    Parameters
    ----------
    logits : sequence of float
        Value of every input's target.
    flags : iterable of sequence of str, or None
        Names of every input's flags; None where a store of before does not hold them.
    weight : "unit" or "logit"
        What relevance is multiplied by.
    of : str
        What is counted.

    Examples
    --------
    >>> group_notes([1.0, -2.0], [("absorbed",), None], "logit")
    ('1 of 2 inputs: mostly absorbed',)
    """
    count = len(logits)
    negative = sum(logit < 0 for logit in logits)
    notes = []
    if negative and weight != "logit":
        notes.append(
            f"{negative:,} of {count:,} {of}: negative logit, there positive relevance speaks "
            "against the target"
        )
    for name, number in counted(flags).items():
        if name != "negative_logit":
            notes.append(f"{number:,} of {count:,} {of}: {SHORT.get(name, name)}")
    return tuple(notes)
