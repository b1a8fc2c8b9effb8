"""What a page shows, as its address says it: a link, a reload and the back button restore it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from nrm_graph.errors import InputError

VIEWS = ("gallery", "flow", "unit", "circuit", "sql")
LONGEST = 60_000
"""Characters of an address's query."""


@dataclass(frozen=True)
class Address:
    r"""The whole state of a page; every field is text or a number, and may be any by a link.

    Attributes
    ----------
    view : str
        One of :data:`VIEWS`.
    store : int
        Which of the stores that are open, from 0.
    where : str
        SQL condition over ``inputs``: of the gallery and the circuit.
    label, prediction, text : str
        Further filters of the gallery: class that the input has, class that it was predicted to
        be, and what its key, label or tokens contain.
    outcome : str
        ``right``, ``wrong`` or empty: of predictions.
    first : int
        Number of the first input that the gallery shows.
    input, second : str
        Keys of the input that is looked at and of one that it is compared with.
    target : str
        Of the input, as ``inputs.weights`` or ``inputs.target`` writes it; empty for the only one.
        Further ``-1:464`` for a place in an output of several axes, and ``3=1,5=-1`` for weights.
    second_target : str
        The same of the second input.
    event : str
        Expression that the measure is conditioned on.
    graph : str
        ``reduced``, or ``connected``: which graph of the input.
    watch : str
        Layers that the graph shows, separated by spaces; empty for those that people think in.
    nodes : int
        Units that it shows, at most.
    sign : str
        ``positive``, ``negative`` or empty: of the relevance that is drawn.
    threshold : float
        Smallest \|relevance\| that is drawn.
    unit : str
        Expression of the unit that is looked at, or the name of a layer to choose one of.
    ranked : str
        What the unit's reference inputs are ranked by: ``relevance`` or ``activation``.
    against : str
        SQL condition of the group that a circuit is contrasted with.
    other : int
        1 to contrast with the other store.
    edges : int
        Edges of the circuit, at most.
    by : str
        Units, as ``--by`` takes them, or ``stored``; empty for those that people think in.
    edge : str
        Edge of the circuit whose inputs are shown: ``source -> destination``.
    computed : str
        What was asked for beside the circuit: ``stability``, ``faithfulness``.
    query : str
        SQL of a single SELECT.
    chart : str
        How its result is drawn: ``bar``, ``line``, ``points`` or empty for a table alone.
    """

    view: str = "gallery"
    store: int = 0
    where: str = ""
    label: str = ""
    prediction: str = ""
    text: str = ""
    outcome: str = ""
    first: int = 0
    input: str = ""
    second: str = ""
    target: str = ""
    second_target: str = ""
    event: str = ""
    graph: str = "reduced"
    watch: str = ""
    nodes: int = 40
    sign: str = ""
    threshold: float = 0.0
    unit: str = ""
    ranked: str = "relevance"
    against: str = ""
    other: int = 0
    edges: int = 60
    by: str = ""
    edge: str = ""
    computed: str = ""
    query: str = ""
    chart: str = ""

    def query_text(self) -> str:
        """Return it as the query of an address, ``?view=flow&input=cat``; defaults are left out."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return "?" + urlencode(values)

    def changed(self, **values: Any) -> Address:
        """Return the address with other values; texts are read as numbers where it has numbers.

        Raises
        ------
        InputError
            If a value does not fit.
        """
        return replace(self, **{name: _value(name, value) for name, value in values.items()})


_KINDS: dict[str, type] = {field.name: type(field.default) for field in fields(Address)}
_CHOICES = {
    "view": VIEWS,
    "outcome": ("", "right", "wrong"),
    "graph": ("reduced", "connected"),
    "sign": ("", "positive", "negative"),
    "ranked": ("relevance", "activation"),
    "computed": ("", "stability", "faithfulness"),
    "chart": ("", "bar", "line", "points"),
}


def from_query(text: str) -> Address:
    """Read the query of an address, with or without its question mark.

    Raises
    ------
    InputError
        If it is too long, or a value does not fit.  Unknown names are passed over.

    Examples
    --------
    >>> from_query("?view=flow&input=cat&nodes=20").nodes
    20
    >>> from_query(Address(event="a[1] & ~b[2]").query_text()).event
    'a[1] & ~b[2]'
    """
    if len(text) > LONGEST:
        raise InputError(f"the address has {len(text):,} characters, expected at most {LONGEST:,}")
    pairs = parse_qsl(text.removeprefix("?"), keep_blank_values=True)
    return Address().changed(**{name: value for name, value in pairs if name in _KINDS})


def _value(name: str, value: object) -> Any:
    kind = _KINDS[name]
    try:
        number = kind(value if value is not None else Address.__dataclass_fields__[name].default)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, found {value!r}") from None
    if kind is not str and not 0 <= number <= 1e9:
        raise InputError(f"{name} must be from 0 to 1e9, found {value!r}")
    if name in _CHOICES and number not in _CHOICES[name]:
        listed = ", ".join(choice or "nothing" for choice in _CHOICES[name])
        raise InputError(f"{name} must be one of {listed}; found {value!r}")
    return number
