"""Composites: which rule each operation of a network gets."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nrm_graph import rules
from nrm_graph.errors import CompositeError, StoreError
from nrm_graph.operations import UNRULED
from nrm_graph.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, ZBox, ZPlus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nrm_graph.rules.base import Rule
    from nrm_graph.topology import LayerInfo, Topology


@dataclass(frozen=True)
class Composite:
    """A choice of rules, tried in this order: layer name pattern, first layer, kind.

    Attributes
    ----------
    name : str
        For records and messages.
    kinds : tuple of (str, Rule)
        Rule per kind of layer (``convolution``, ``dense``, ``sum``, ``average``,
        ``batch_norm``).
    first : tuple of (str, Rule)
        Rule per kind for layers that read an input directly.
    layers : tuple of (str, Rule)
        Rule per layer name pattern (as in :mod:`fnmatch`).
    """

    name: str
    kinds: tuple[tuple[str, Rule], ...]
    first: tuple[tuple[str, Rule], ...] = ()
    layers: tuple[tuple[str, Rule], ...] = ()

    def rule(self, layer: LayerInfo, first: bool) -> Rule:
        """Rule of a layer.

        Raises
        ------
        CompositeError
            If the composite has none.
        """
        if layer.kind in UNRULED:
            raise CompositeError(
                f"composite {self.name} does not fit the network: {layer.name} is a {layer.kind}, "
                f"and there is no rule for the kind {layer.kind} in this release; explain a part "
                "of the network that does without"
            )
        if layer.kind == "output":  # a selection of neurons, read one to one
            return rules.Pass()
        for pattern, rule in self.layers:
            if fnmatch.fnmatchcase(layer.name, pattern):
                return rule
        found = dict(self.first).get(layer.kind) if first else None
        found = found or dict(self.kinds).get(layer.kind)
        if found is None:
            raise CompositeError(
                f"composite {self.name} has no rule for the {layer.kind} {layer.name}: name one "
                f"for the kind or the layer with ng.composites.composite(...)"
            )
        return found

    def assign(self, topology: Topology) -> tuple[Rule | None, ...]:
        """Rules of all layers, by layer id; None for inputs."""
        inputs = {layer.layer_id for layer in topology.inputs}
        return tuple(
            None
            if layer.layer_id in inputs
            else self.rule(layer, bool(inputs.intersection(topology.sources(layer.layer_id))))
            for layer in topology.layers
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``store.json``."""
        return {
            "name": self.name,
            **{
                part: [[key, rule.to_json()] for key, rule in getattr(self, part)]
                for part in ("kinds", "first", "layers")
            },
        }


def from_json(data: Mapping[str, Any]) -> Composite:
    """Read a composite that :meth:`Composite.to_json` wrote."""
    try:
        parts = {
            part: tuple((str(key), rules.from_json(rule)) for key, rule in data[part])
            for part in ("kinds", "first", "layers")
        }
        return Composite(str(data["name"]), **parts)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the stored composite cannot be read: {error}") from None


_BASE: dict[str, Rule] = {"sum": Norm(), "average": Norm(), "batch_norm": Epsilon()}


def composite(
    name: str,
    kinds: Mapping[str, Rule],
    *,
    first: Mapping[str, Rule] | None = None,
    layers: Mapping[str, Rule] | None = None,
) -> Composite:
    """Build a composite; sums and averages get Norm and batch-norm Epsilon unless named.

    Examples
    --------
    >>> c = composite("mine", {"convolution": ZPlus(), "dense": Epsilon()})
    >>> dict(c.kinds)["sum"]
    Norm(stabilizer=1e-06)
    """
    return Composite(
        name,
        tuple((_BASE | dict(kinds)).items()),
        tuple((first or {}).items()),
        tuple((layers or {}).items()),
    )


def epsilon(epsilon: float = 1e-6) -> Composite:
    """Epsilon everywhere."""
    return composite("epsilon", {"convolution": Epsilon(epsilon), "dense": Epsilon(epsilon)})


def epsilon_gamma(epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """Gamma on convolutions, Epsilon on dense layers: the default."""
    kinds = {"convolution": Gamma(gamma), "dense": Epsilon(epsilon)}
    return composite("epsilon_gamma", kinds)


def epsilon_gamma_box(
    low: float = 0.0, high: float = 1.0, epsilon: float = 1e-6, gamma: float = 0.25
) -> Composite:
    """As epsilon_gamma, with ZBox on a convolution that reads the input."""
    kinds = {"convolution": Gamma(gamma), "dense": Epsilon(epsilon)}
    return composite("epsilon_gamma_box", kinds, first={"convolution": ZBox(low, high)})


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """ZPlus on convolutions, Epsilon on dense layers."""
    return composite("epsilon_plus", {"convolution": ZPlus(), "dense": Epsilon(epsilon)})


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """As epsilon_plus, with Flat on the first layer."""
    kinds = {"convolution": ZPlus(), "dense": Epsilon(epsilon)}
    first = {"convolution": Flat(), "dense": Flat()}
    return composite("epsilon_plus_flat", kinds, first=first)


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """AlphaBeta(2, 1) on convolutions, Epsilon on dense layers."""
    kinds = {"convolution": AlphaBeta(), "dense": Epsilon(epsilon)}
    return composite("epsilon_alpha2_beta1", kinds)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Composite:
    """As epsilon_alpha2_beta1, with Flat on the first layer."""
    kinds = {"convolution": AlphaBeta(), "dense": Epsilon(epsilon)}
    first = {"convolution": Flat(), "dense": Flat()}
    return composite("epsilon_alpha2_beta1_flat", kinds, first=first)


def excitation_backprop() -> Composite:
    """ZPlus without biases everywhere, sums included (Zhang et al. 2016)."""
    plus = ZPlus(zero_params="bias")
    kinds = ("convolution", "dense", "sum", "average", "batch_norm")
    return composite("excitation_backprop", dict.fromkeys(kinds, plus))


NAMED: dict[str, Callable[[], Composite]] = {
    function.__name__: function
    for function in (
        epsilon,
        epsilon_gamma,
        epsilon_gamma_box,
        epsilon_plus,
        epsilon_plus_flat,
        epsilon_alpha2_beta1,
        epsilon_alpha2_beta1_flat,
        excitation_backprop,
    )
}


def get(choice: str | Composite) -> Composite:
    """Return a composite by name, or as given.

    Raises
    ------
    CompositeError
        If the name is unknown.
    """
    if isinstance(choice, Composite):
        return choice
    if not isinstance(choice, str) or choice not in NAMED:
        raise CompositeError(
            f"unknown composite {choice!r}: expected one of {', '.join(NAMED)}, or a Composite"
        )
    return NAMED[choice]()
