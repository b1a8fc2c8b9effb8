"""Rules of zennit, read out of the functions that hold their parameters.

zennit is not imported, and none of its code is run: classes are known by module and name, and
parameters are what the rules' functions have captured.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.errors import CompositeError
from nrm_graph.rules.attention import Pass
from nrm_graph.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nrm_graph.rules.base import Rule

_RULES: Mapping[str, Callable[..., Rule]] = {
    rule.__name__: rule for rule in (AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus)
}

_MAPPER, _REDUCER = ("gradient_mapper", 0), ("reducer", 0)

_PLACES: Mapping[str, Mapping[str, tuple[tuple[str, int], str]]] = {
    "AlphaBeta": {"alpha": (_REDUCER, "alpha"), "beta": (_REDUCER, "beta")},
    "Gamma": {"gamma": (("param_modifiers", 0), "gamma")},
    "ZBox": {"low": (("input_modifiers", 1), "low"), "high": (("input_modifiers", 2), "high")},
}
"""Function of a rule that has captured a parameter, and under which name."""

_BIASED = ("AlphaBeta", "Epsilon", "Gamma", "WSquare", "ZPlus")
"""Rules in which a bias counts."""

_GRADIENTS = ("ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


def is_zennit(cls: type, module: str, *names: str) -> bool:
    """Whether a class is one of those that a module of zennit defines."""
    return cls.__module__ == f"zennit.{module}" and cls.__qualname__ in names


def described(value: object) -> str:
    """Say what an object is, without asking it."""
    cls = value if isinstance(value, type) else type(value)
    noun = "the class" if isinstance(value, type) else "an object of"
    return f"{noun} {cls.__module__}.{cls.__qualname__}"


def rule_of(hook: object, kind: str = "") -> Rule:
    """Translate a rule of zennit, with its parameters.

    Parameters
    ----------
    hook : object
        The rule.
    kind : str
        Kind of the layers that it is for, where that is known: it says which axis of ZBox's bounds
        is that of channels.

    Raises
    ------
    CompositeError
        If there is no such rule here.
    """
    cls = type(hook)
    name = cls.__qualname__
    if is_zennit(cls, "rules", "Pass"):
        return Pass()
    if is_zennit(cls, "rules", *_GRADIENTS):
        raise CompositeError(
            f"zennit's {name} changes gradients and shares out no relevance: there is no such rule "
            "here; take the composite without it, or compute it with zennit"
        )
    if not is_zennit(cls, "rules", *_RULES):
        raise CompositeError(
            f"{described(hook)} is no rule of zennit that is known here: expected one of Pass, "
            f"{', '.join(_RULES)}; one of your own can be written for ng.rules.register"
        )
    stabilizer = "epsilon" if name == "Epsilon" else "stabilizer"
    values = {
        parameter: _captured(hook, place, variable)
        for parameter, (place, variable) in _PLACES.get(name, {}).items()
    }
    for bound in values.keys() & {"low", "high"}:
        values[bound] = _bound(bound, values[bound], kind)
    values[stabilizer] = _number(name, stabilizer, _captured(hook, _MAPPER, "stabilizer_fn"))
    if _leaves_bias_out(hook):
        values["zero_params"] = "bias"
    return _RULES[name](**values)


def _function(hook: object, place: tuple[str, int]) -> FunctionType:
    """Return one of the functions that zennit made for a rule."""
    attribute, number = place
    name = type(hook).__qualname__
    try:
        value = vars(hook)[attribute]
        if attribute.endswith("modifiers"):
            value = value[number]
        if attribute == "param_modifiers":
            value = vars(value)["modifier"]
    except (KeyError, IndexError, TypeError):
        value = None
    if not isinstance(value, FunctionType) or value.__module__ != "zennit.rules":
        raise CompositeError(
            f"the {attribute} of zennit's {name} is not the one that zennit makes (0.5 was tried): "
            f"build the rule itself, ng.rules.{name}(...)"
        )
    return value


def _captured(hook: object, place: tuple[str, int], variable: str) -> Any:
    """Return what a function of a rule has captured under a name."""
    function = _function(hook, place)
    try:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        return cells[variable].cell_contents
    except (KeyError, ValueError):
        name = type(hook).__qualname__
        raise CompositeError(
            f"zennit's {name} holds no {variable} where zennit 0.5 does: build the rule itself, "
            f"ng.rules.{name}(...)"
        ) from None


def _number(name: str, parameter: str, stabilizer: object) -> float:
    """Return what a stabilizer adds to a denominator, with its sign."""
    facts = vars(stabilizer) if is_zennit(type(stabilizer), "core", "Stabilizer") else {}
    epsilon = facts.get("epsilon")
    if facts.get("clip") or facts.get("norm_scale") or not isinstance(epsilon, int | float):
        raise CompositeError(
            f"the stabilizer of zennit's {name} is no plain number: stabilizers here are added to "
            f"the denominator with its sign; give zennit's rule a number as {parameter}, without "
            "clip or norm_scale"
        )
    return epsilon


def _leaves_bias_out(hook: object) -> bool:
    """Whether a rule's zero_params name the bias."""
    name = type(hook).__qualname__
    modifiers = vars(hook).get("param_modifiers") or ()
    names: set[object] = set()
    for modifier in modifiers[:1]:
        zeroed = getattr(modifier, "__dict__", {}).get("zero_params") or ()
        names.update([zeroed] if isinstance(zeroed, str) else zeroed)
    if names - {"bias"}:
        raise CompositeError(
            f"zennit's {name} has zero_params={sorted(map(str, names))}: only biases can be left "
            "out here; give it zero_params='bias' or none"
        )
    return bool(names) and name in _BIASED


def _bound(name: str, bound: object, kind: str) -> float | tuple[float, ...]:
    """Return a bound of zennit's ZBox: a number, or one for every channel."""
    if isinstance(bound, int | float):
        return bound
    if isinstance(bound, torch.Tensor):
        bound = bound.detach().cpu().double().numpy()
    if not isinstance(bound, np.ndarray) or not bound.size:
        raise CompositeError(
            f"{name} of zennit's ZBox is {described(bound)}: expected a number, or a tensor"
        )
    axes = range(bound.ndim)
    varying = [axis for axis in axes if (bound != bound.take([0], axis)).any()]
    if not varying:
        return float(bound.flat[0])
    channels = max(1, bound.ndim - 1) if kind == "dense" else 1
    if varying != [channels]:
        raise CompositeError(
            f"{name} of zennit's ZBox has the shape {bound.shape} and differs along the axes "
            f"{varying}: bounds differ by channel alone here; give it a number, or a tensor of "
            "shape (1, channels, 1, 1)"
        )
    return tuple(map(float, np.moveaxis(bound, channels, -1).reshape(-1, bound.shape[channels])[0]))
