"""Events from text, for the command line: the Python syntax of neuron sets, never evaluated.

The grammar, from the loosest to the tightest operator::

    event     := event "|" event | event "&" event | event "-" event | "~" event | step
    step      := primary [ "->" primary ]
    primary   := "(" event ")" | layer "[" index ("," index)* "]" | layer ".units(" list ")"
    layer     := a name of letters, digits, "_", "@" and ".", or any name in quotes
    index     := integer | [integer] ":" [integer] [":" [integer]] | "..." | list | True | False
    list      := "[" (integer | list) ("," (integer | list))* "]"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from nrm_graph.errors import EventError
from nrm_graph.events.excerpt import pointed
from nrm_graph.events.sets import Combined, Edge, Event, Layer, NeuronSet

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LENGTH = 10_000
MAX_DEPTH = 100
_MAX_DIGITS = 18  # beyond this an index does not fit a 64-bit integer

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<name>[\w@]+(?:\.[\w@]+)*)
      | (?P<symbol>->|\.\.\.|[\[\](),:&|~.-])
    """,
    re.VERBOSE | re.DOTALL,
)
_INTEGER = re.compile(r"[0-9]+")
_PRECEDENCE = {"|": 1, "&": 2, "-": 3}
_OPERATORS: dict[str, Callable[[Event, Event], Event]] = {
    "|": lambda left, right: left | right,
    "&": lambda left, right: left & right,
    "-": lambda left, right: left - right,
}


@dataclass(frozen=True)
class _Token:
    kind: str  # "name", "string", "symbol" or "end"
    text: str
    position: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


def parse(text: str) -> Event:
    """Read an event from text.

    Parameters
    ----------
    text : str
        Neuron sets in NumPy's index syntax, combined with ``&``, ``|``, ``~``, ``-`` and
        parentheses; ``a[1] -> b[2]`` is ``Edge(a[1], b[2])`` and binds tightest.  The other
        operators bind as in Python.  At most 10,000 characters and 100 levels of nesting.

    Returns
    -------
    Event
        The event; whether it fits a network shows when it is asked about.

    Raises
    ------
    EventError
        If the text is not an event; the message points at the position.

    Examples
    --------
    >>> parse("features.28[12] & features.21[[3, 7], 4:9, :]")
    features.28[12] & features.21[[3, 7], 4:9, :]
    >>> parse("~(conv1[...] - conv1.units([1, 2])) | conv2[-1] -> conv1[::2]")
    ~(conv1[...] - conv1.units([1, 2])) | (conv2[-1] -> conv1[::2])
    """
    if len(text) > MAX_LENGTH:
        raise EventError(
            f"an expression has at most {MAX_LENGTH} characters, found {len(text)}; "
            "write long lists of neurons with slices or in Python"
        )
    return _Parser(text).parse()


def _nesting(event: Event) -> int:
    """Levels of same-layer combinations, which :class:`Combined` nests instead of flattening."""
    if not isinstance(event, Combined):
        return 0
    return 1 + max(_nesting(event.left), _nesting(event.right))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self.tokenize()
        self.at = 0
        self.depth = 0

    def tokenize(self) -> list[_Token]:
        tokens, position = [], 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                character = self.text[position]
                if character in "\"'":
                    self.fail("this quote is not closed", position)
                if character == "<":
                    self.fail("a boolean mask cannot be written as text, use slices", position)
                self.fail(f"unexpected character {character!r}", position)
            if match.lastgroup and match.lastgroup != "space":
                tokens.append(_Token(match.lastgroup, match.group(), position))
            position = match.end()
        tokens.append(_Token("end", "", len(self.text)))
        return tokens

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        if position is None:
            position = self.tokens[self.at].position
        problem = f"cannot read the expression at character {position + 1}: {problem}"
        raise EventError(pointed(problem, self.text, position))

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def is_symbol(self, *symbols: str) -> bool:
        return self.token.kind == "symbol" and self.token.text in symbols

    def accept(self, symbol: str) -> bool:
        if self.is_symbol(symbol):
            self.at += 1
            return True
        return False

    def expect(self, symbol: str, where: str) -> None:
        if not self.accept(symbol):
            self.fail(f"expected {symbol!r} {where}, found {self.token}")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} levels of nesting")

    def parse(self) -> Event:
        if self.token.kind == "end":
            self.fail("it is empty; expected a neuron set such as features.28[12]")
        event = self.event(1)
        if self.token.kind != "end":
            self.fail(f"expected &, |, - or the end, found {self.token}")
        return event

    def event(self, loosest: int) -> Event:
        left = self.inverted()
        while self.is_symbol(*_PRECEDENCE):
            operator = self.token
            precedence = _PRECEDENCE[operator.text]
            if precedence < loosest:
                break
            self.at += 1
            right = self.event(precedence + 1)
            left = _OPERATORS[operator.text](left, right)
            if _nesting(left) > MAX_DEPTH:
                self.fail(
                    f"more than {MAX_DEPTH} sets of one layer are combined; "
                    "write them as one list, as in a[[1, 2, 3]]",
                    operator.position,
                )
        return left

    def inverted(self) -> Event:
        negate = False
        while self.accept("~"):
            negate = not negate
        event = self.step()
        return ~event if negate else event

    def step(self) -> Event:
        begin = self.token.position
        left = self.primary()
        if not self.is_symbol("->"):
            return left
        if not isinstance(left, NeuronSet):
            self.fail("-> needs a neuron set of one layer on its left", begin)
        self.at += 1
        begin = self.token.position
        right = self.primary()
        if not isinstance(right, NeuronSet):
            self.fail("-> needs a neuron set of one layer on its right", begin)
        if self.is_symbol("->"):
            self.fail("-> cannot be chained; write (a[1] -> b[2]) & (b[2] -> c[3])")
        return Edge(left, right)

    def primary(self) -> Event:
        if self.accept("("):
            self.enter()
            event = self.event(1)
            self.expect(")", "to close the parenthesis")
            self.depth -= 1
            return event
        token = self.token
        if token.kind not in ("name", "string"):
            self.fail(f"expected a neuron set such as features.28[12], found {token}")
        self.at += 1
        if token.kind == "string":
            name = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
            if self.is_symbol("."):
                self.at += 1
                if self.token.kind != "name" or self.token.text != "units":
                    self.fail(f"expected units([...]) after the dot, found {self.token}")
                self.at += 1
                return self.units(name)
        else:
            name = token.text
            if self.is_symbol("("):
                if not name.endswith(".units"):
                    self.fail(f"expected an index in [...] after {name}, found '('")
                return self.units(name.removesuffix(".units"))
        if not self.is_symbol("["):
            self.fail(
                f"expected an index in [...] after layer {name}, found {self.token}; "
                f"{token.text}[...] is the whole layer"
            )
        return self.indexed(name)

    def units(self, name: str) -> NeuronSet:
        self.expect("(", "after units")
        if not self.is_symbol("["):
            self.fail(f"expected a list of unit numbers, found {self.token}")
        begin = self.token.position
        ids = self.list()
        if any(isinstance(i, list) for i in ids):
            self.fail("unit numbers are a flat list", begin)
        self.expect(")", "after the list of units")
        return Layer(name).units(ids)

    def indexed(self, name: str) -> NeuronSet:
        self.expect("[", "to begin the index")
        if self.is_symbol("]"):
            self.fail(f"the index is empty; {name}[...] is the whole layer")
        begin = self.token.position
        items: list[Any] = []
        if self.accept("("):  # a layer of a single neuron has the index ()
            self.expect(")", "to close the empty tuple")
        else:
            items.append(self.item())
            while self.accept(","):
                if self.is_symbol("]"):
                    break
                items.append(self.item())
        self.expect("]", "or ',' in the index")
        if sum(item is Ellipsis for item in items) > 1:
            self.fail("an index holds at most one '...'", begin)
        try:
            return Layer(name)[tuple(items)]
        except (EventError, ValueError):
            self.fail("lists in an index must be rectangular lists of integers", begin)

    def item(self) -> Any:
        if self.accept("..."):
            return Ellipsis
        if self.is_symbol("["):
            return self.list()
        if self.token.kind == "name" and self.token.text in ("True", "False"):
            self.at += 1
            return self.tokens[self.at - 1].text == "True"
        if not self.is_symbol(":"):
            number = self.integer()
            if not self.is_symbol(":"):
                return number
        else:
            number = None
        bounds: list[int | None] = [number]
        while self.accept(":"):
            ends = self.is_symbol(":", ",", "]")
            bounds.append(None if ends else self.integer())
        if len(bounds) > 3:
            self.fail("a slice has at most three parts, start:stop:step")
        if len(bounds) == 3 and bounds[2] == 0:
            self.fail("the step of a slice cannot be 0")
        return slice(*bounds)

    def list(self) -> list[Any]:
        self.expect("[", "to begin a list")
        self.enter()
        values: list[Any] = []
        while not self.is_symbol("]"):
            values.append(self.list() if self.is_symbol("[") else self.integer())
            if not self.accept(","):
                break
        self.expect("]", "or ',' in the list")
        self.depth -= 1
        return values

    def integer(self) -> int:
        negative = self.accept("-")
        token = self.token
        if token.kind != "name" or not _INTEGER.fullmatch(token.text):
            self.fail(f"expected an integer, a slice, a list or '...', found {token}")
        if len(token.text) > _MAX_DIGITS:
            self.fail("this number is too large for an index")
        self.at += 1
        return -int(token.text) if negative else int(token.text)
