"""Activations written out in small steps, as an expression over an allow-list.

``0.5 * x * (1 + tanh(...))`` is one function of every neuron by itself.  It is kept as nested
tuples, ``("mul", ("mul", 0.5, "x"), ("add", 1.0, ("tanh", ...)))``, which are data: nothing in
them runs but the functions named here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

X = "x"
"""The neuron itself."""

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "atan": torch.atan,
    "relu": torch.relu,
    "relu6": torch.nn.functional.relu6,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "hardswish": torch.nn.functional.hardswish,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "mish": torch.nn.functional.mish,
    "log_sigmoid": torch.nn.functional.logsigmoid,
}

_BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
}

# Functions with numbers beside the neuron.
_WITH_NUMBERS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "clamp": (2, torch.clamp),
    "softplus": (2, torch.nn.functional.softplus),
    "elu": (1, torch.nn.functional.elu),
    "leaky_relu": (1, torch.nn.functional.leaky_relu),
}

MAX_DEPTH = 64
MAX_TERMS = 1_000

NAMES = frozenset(_UNARY) | frozenset(_BINARY) | frozenset(_WITH_NUMBERS)


def check(expression: object) -> None:
    """Refuse what is no expression.

    Raises
    ------
    ValueError
        If it names a function that is not allowed, holds what is neither a number nor the
        neuron, or is too large.
    """
    terms, reads, level = 0, False, [(expression, 0)]
    while level:
        term, depth = level.pop()
        terms += 1
        if terms > MAX_TERMS or depth > MAX_DEPTH:
            raise ValueError(
                f"an elementwise expression has more than {MAX_TERMS} terms or {MAX_DEPTH} levels"
            )
        if isinstance(term, str):
            if term != X:
                raise ValueError(f"an elementwise expression reads {term[:40]!r}, expected 'x'")
            reads = True
        elif isinstance(term, tuple | list):
            level += [(part, depth + 1) for part in _parts(term)]
        elif not _finite(term):
            raise ValueError(f"an elementwise expression holds {str(term)[:40]}, expected a number")
    if not reads:
        raise ValueError("an elementwise expression does not read its neuron")


def _finite(term: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(term, int | float) and not isinstance(term, bool) and math.isfinite(term)


def _parts(term: Sequence[object]) -> tuple[object, ...]:
    """Arguments of a function that are expressions, its name and number of arguments checked."""
    name, *arguments = term or ("",)
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"an elementwise expression names the function {str(name)[:40]!r}")
    numbers = _WITH_NUMBERS[name][0] if name in _WITH_NUMBERS else 0
    expected = 2 if name in _BINARY else 1 + numbers
    if len(arguments) != expected:
        raise ValueError(f"{name} takes {expected} arguments, found {len(arguments)}")
    for number in arguments[1:] if numbers else ():
        if not _finite(number) and not (name == "clamp" and number is None):
            raise ValueError(f"{name} takes numbers beside its neuron, found {str(number)[:40]}")
    return tuple(arguments[:1] if numbers else arguments)


def evaluate(x: Tensor, expression: object) -> Tensor:
    """Value of an expression for every element of x.

    Raises
    ------
    ValueError
        As :func:`check`.
    """
    check(expression)

    def tensor(number: Tensor | float) -> Tensor:
        if isinstance(number, torch.Tensor):
            return number
        return torch.as_tensor(number, dtype=x.dtype, device=x.device)

    def value(term: object) -> Any:
        if isinstance(term, str):
            return x
        if not isinstance(term, tuple | list):
            return term
        name, *arguments = term
        if name in _BINARY:
            a, b = (value(part) for part in arguments)
            return _BINARY[name](tensor(a), b)
        inner = tensor(value(arguments[0]))
        if name in _WITH_NUMBERS:
            return _WITH_NUMBERS[name][1](inner, *arguments[1:])
        return _UNARY[name](inner)

    result: Tensor = value(expression)
    return result
