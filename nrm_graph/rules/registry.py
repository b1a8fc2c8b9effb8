"""The rules that a store may name: those of the library, and those of your own."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import CompositeError, NotRegistered, StoreError
from nrm_graph.rules.attention import Hold, Pass, Softmax, Uniform
from nrm_graph.rules.base import Rule
from nrm_graph.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (
        Epsilon,
        Norm,
        Gamma,
        ZPlus,
        AlphaBeta,
        ZBox,
        WSquare,
        Flat,
        Pass,
        Uniform,
        Hold,
        Softmax,
    )
}
"""The rules that a stored composite may name."""

MAX_PARAMETER = 1e30


def register(rule: type[Rule]) -> type[Rule]:
    """Let stores name a rule of your own: a decorator.

    A store keeps the rule's class name and parameters, never its code: to open exact measures of
    the store, import the module that registers it first.

    Parameters
    ----------
    rule : type of Rule
        A frozen dataclass whose parameters are numbers, None or text; those that it names in
        ``per_channel`` may be tuples of numbers.

    Raises
    ------
    CompositeError
        If it is no rule, or the name is taken by another.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from nrm_graph.rules import Group, Part, Rule, register
    >>> @register
    ... @dataclass(frozen=True)
    ... class Plain(Rule):
    ...     def groups(self, op, signs):
    ...         parts = [Part(k, lambda x: x, w) for k, w in enumerate(op.tensors)]
    ...         return (Group(tuple(parts), op.bias, 1e-9, plain=True),)
    >>> RULES.pop("Plain")().to_json()
    {'rule': 'Plain'}
    """
    if not (isinstance(rule, type) and issubclass(rule, Rule) and is_dataclass(rule)):
        raise CompositeError(f"expected a dataclass that derives from Rule, found {rule!r}")
    known = RULES.setdefault(rule.__name__, rule)
    # A notebook's cell may be run again: the same name from the same module is replaced.
    if (known.__module__, known.__qualname__) != (rule.__module__, rule.__qualname__):
        raise CompositeError(f"the name {rule.__name__} is taken by {known.__module__}")
    RULES[rule.__name__] = rule
    return rule


def check_registered(used: Iterable[Rule | None]) -> None:
    """Refuse rules that a store could not name.

    Raises
    ------
    CompositeError
        Naming the first that is not registered.
    """
    for rule in used:
        if rule is not None and RULES.get(type(rule).__name__) is not type(rule):
            raise CompositeError(
                f"the rule {type(rule).__name__} is not registered, so that no store can name it: "
                "decorate its class with nrm_graph.rules.register"
            )


def from_json(data: Mapping[str, Any]) -> Rule:
    """Read a rule that :meth:`Rule.to_json` wrote."""
    parameters = dict(data)
    name = parameters.pop("rule", None)
    if name not in RULES:
        raise NotRegistered(
            f"unknown rule {name!r}: expected one of {', '.join(RULES)}; one of your own must be "
            "registered (nrm_graph.rules.register) before the store is used"
        )
    for key, value in parameters.items():
        if key == "zero_params":
            fits = value is None or isinstance(value, str)
        elif isinstance(value, list):
            fits = key in RULES[name].per_channel and all(map(_is_number, value))
        else:
            fits = _is_number(value)
        if not fits:
            raise StoreError(f"rule {name}: {key} cannot be {repr(value)[:100]}")
        if isinstance(value, list):
            parameters[key] = tuple(value)
    try:
        return RULES[name](**parameters)
    except (TypeError, CompositeError) as error:
        raise StoreError(f"rule {name}: {error}") from None


def _is_number(value: object) -> bool:
    """Whether a stored parameter is a number that no pass overflows with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_PARAMETER
