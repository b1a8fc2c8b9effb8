"""Composites: which rule each operation of a network gets."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import CompositeError, StoreError
from nrm_graph.network.ir.operations import WEIGH
from nrm_graph.rules import registry
from nrm_graph.rules.attention import Hold, Pass, Softmax, Uniform
from nrm_graph.rules.base import Rule
from nrm_graph.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, Norm, ZBox, ZPlus, per_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nrm_graph.network.topology import LayerInfo, Topology

__all__ = [
    "NAMED",
    "Composite",
    "attn_lrp",
    "composite",
    "cp_lrp",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "from_json",
    "get",
]


def __dir__() -> list[str]:
    return sorted(__all__)


READINGS = ("absorbed", "ignored")
"""What may become of the share that biases and constants have in a neuron."""


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
    bias : str
        ``absorbed``: biases and constants take their share of a neuron's relevance.  ``ignored``:
        they are left out of the denominators, and neurons carry the whole.
    """

    name: str
    kinds: tuple[tuple[str, Rule], ...]
    first: tuple[tuple[str, Rule], ...] = ()
    layers: tuple[tuple[str, Rule], ...] = ()
    bias: str = "absorbed"

    def __post_init__(self) -> None:
        """Refuse a reading that is none."""
        if self.bias not in READINGS:
            raise CompositeError(
                f"composite {self.name}: bias must be 'absorbed' or 'ignored', found {self.bias!r}"
            )

    def rule(self, layer: LayerInfo, first: bool) -> Rule:
        """Rule of a layer.

        Raises
        ------
        CompositeError
            If the composite has none.
        """
        if layer.kind == "output":  # a selection of neurons, read one to one
            return Pass()
        for pattern, rule in self.layers:
            if fnmatch.fnmatchcase(layer.name, pattern):
                return rule
        found = dict(self.first).get(layer.kind) if first else None
        found = found or dict(self.kinds).get(layer.kind)
        if found is None:
            raise _unfit(self.name, [layer])
        return found

    def assign(self, topology: Topology) -> tuple[Rule | None, ...]:
        """Rules of all layers, by layer id; None for inputs.

        Raises
        ------
        CompositeError
            If some layers have none; all of them are named.
        """
        inputs = {layer.layer_id for layer in topology.inputs}
        found: list[Rule | None] = []
        without = []
        for layer in topology.layers:
            first = bool(inputs.intersection(topology.sources(layer.layer_id)))
            try:
                found.append(None if layer.layer_id in inputs else self.rule(layer, first))
            except CompositeError:
                without.append(layer)
        if without:
            raise _unfit(self.name, without)
        for pattern, _ in self.layers:
            if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in topology.layers):
                raise CompositeError(
                    f"composite {self.name}: no layer of the network is named {pattern!r}; "
                    "`nrm-graph info` and the topology of a measure list the names"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``store.json``."""
        return {
            "name": self.name,
            **{
                part: [[key, rule.to_json()] for key, rule in getattr(self, part)]
                for part in ("kinds", "first", "layers")
            },
            # Stores of before know no other reading than the first.
            **({} if self.bias == READINGS[0] else {"bias": self.bias}),
        }


def _unfit(name: str, layers: Sequence[LayerInfo]) -> CompositeError:
    """Say which kinds of layers a composite has no rule for, and where they are."""
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer.name)
    listed = "; ".join(
        f"{kind} ({', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''})"
        for kind, names in kinds.items()
    )
    hint = "name one for the kind or the layer with ng.composites.composite(...)"
    if kinds.keys() & _ATTENTION:
        hint = f"for attention take attn_lrp or cp_lrp, or {hint}"
    return CompositeError(
        f"composite {name} does not fit the network: it has no rule for {listed}; {hint}"
    )


_ATTENTION = {"softmax", "product", "attention"}


def from_json(data: Mapping[str, Any]) -> Composite:
    """Read a composite that :meth:`Composite.to_json` wrote."""
    try:
        parts = {
            part: tuple((str(key), registry.from_json(rule)) for key, rule in data[part])
            for part in ("kinds", "first", "layers")
        }
        return Composite(str(data["name"]), **parts, bias=data.get("bias", READINGS[0]))
    except (KeyError, TypeError, ValueError, CompositeError) as error:
        raise StoreError(f"the stored composite cannot be read: {error}") from None


_BASE: dict[str, Rule] = {
    "sum": Norm(),
    "average": Norm(),
    "interpolation": Norm(),
    "batch_norm": Epsilon(),
    "layer_norm": Epsilon(),
    "group_norm": Epsilon(),
    "instance_norm": Epsilon(),
    "rms_norm": Pass(),
    "gate": Uniform(),
    "multiplication": Uniform(),
}


def composite(
    name: str,
    kinds: Mapping[str, Rule],
    *,
    first: Mapping[str, Rule] | None = None,
    layers: Mapping[str, Rule] | None = None,
    bias: str = "absorbed",
) -> Composite:
    """Build a composite from rules per kind of layer, of layers that read an input, and per name.

    Unless named, sums, averages and interpolation get Norm, normalisations Epsilon (RMSNorm
    Pass), and products of two values, gates among them, Uniform.  Attention (``product``,
    ``softmax``, ``attention``) has no rule unless named.

    Raises
    ------
    CompositeError
        If a kind is unknown, or what is named is no rule.  (Where the composite meets a network:
        if a layer has no rule, or a pattern fits no layer.)

    Examples
    --------
    >>> c = composite("mine", {"convolution": ZPlus(), "dense": Epsilon()})
    >>> dict(c.kinds)["sum"]
    Norm(stabilizer=1e-06)
    """
    known = {"convolution", *_BASE, *WEIGH.values()}
    for named in (kinds, first or {}):
        for kind in named.keys() - known:
            raise CompositeError(
                f"composite {name}: there is no kind of layer {kind!r}; expected one of "
                f"{', '.join(sorted(known))}, or one that was registered before"
            )
    for key, rule in (*kinds.items(), *(first or {}).items(), *(layers or {}).items()):
        if not isinstance(rule, Rule):
            raise CompositeError(
                f"composite {name}: the rule for {key!r} must be a rule such as "
                f"ng.rules.Epsilon(), found {rule!r}"
            )
    return Composite(
        name,
        tuple((_BASE | dict(kinds)).items()),
        tuple((first or {}).items()),
        tuple((layers or {}).items()),
        bias,
    )


def epsilon(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """Epsilon everywhere."""
    return composite(
        "epsilon", {"convolution": Epsilon(epsilon), "dense": Epsilon(epsilon)}, bias=bias
    )


def epsilon_gamma(
    epsilon: float = 1e-6, gamma: float = 0.25, *, bias: str = "absorbed"
) -> Composite:
    """Gamma on convolutions, Epsilon on dense layers: the default."""
    kinds = {"convolution": Gamma(gamma), "dense": Epsilon(epsilon)}
    return composite("epsilon_gamma", kinds, bias=bias)


def epsilon_gamma_box(
    low: float | Sequence[float] = 0.0,
    high: float | Sequence[float] = 1.0,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    *,
    bias: str = "absorbed",
) -> Composite:
    """As epsilon_gamma, with ZBox on a convolution that reads the input.

    ``low`` and ``high`` are bounds of all values, or one for each channel of the input.
    """
    kinds = {"convolution": Gamma(gamma), "dense": Epsilon(epsilon)}
    box = ZBox(per_channel("low", low), per_channel("high", high))
    return composite("epsilon_gamma_box", kinds, first={"convolution": box}, bias=bias)


def epsilon_plus(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """ZPlus on convolutions, Epsilon on dense layers."""
    return composite("epsilon_plus", {"convolution": ZPlus(), "dense": Epsilon(epsilon)}, bias=bias)


def epsilon_plus_flat(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """As epsilon_plus, with Flat on the first layer."""
    kinds = {"convolution": ZPlus(), "dense": Epsilon(epsilon)}
    first = {"convolution": Flat(), "dense": Flat()}
    return composite("epsilon_plus_flat", kinds, first=first, bias=bias)


def epsilon_alpha2_beta1(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """AlphaBeta(2, 1) on convolutions, Epsilon on dense layers."""
    kinds = {"convolution": AlphaBeta(), "dense": Epsilon(epsilon)}
    return composite("epsilon_alpha2_beta1", kinds, bias=bias)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """As epsilon_alpha2_beta1, with Flat on the first layer."""
    kinds = {"convolution": AlphaBeta(), "dense": Epsilon(epsilon)}
    first = {"convolution": Flat(), "dense": Flat()}
    return composite("epsilon_alpha2_beta1_flat", kinds, first=first, bias=bias)


def excitation_backprop() -> Composite:
    """ZPlus without biases everywhere, sums included (Zhang et al. 2016)."""
    plus = ZPlus(zero_params="bias")
    kinds = ("convolution", "dense", "sum", "average", "batch_norm")
    return composite("excitation_backprop", dict.fromkeys(kinds, plus), bias="ignored")


def attn_lrp(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """AttnLRP for transformers (Achtibat et al. 2024).

    Epsilon on everything that is linear; the products of attention share half and half, the
    softmax by its Taylor expansion (what that loses is the ``remainder``), gates half and half;
    LayerNorm with its standard deviation constant, RMSNorm and activations as identities.
    """
    return composite("attn_lrp", _attention(epsilon), bias=bias)


def cp_lrp(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """CP-LRP for transformers (Ali et al. 2022).

    As attn_lrp, but attention weights and gates are held constant: all relevance of a mix goes to
    its values, all of a gated product to its signal.  A product of which neither factor is known
    as a gate (``multiplication``) is still shared half and half.
    """
    held = {"attention": Hold(0, epsilon), "gate": Hold(1, epsilon)}
    return composite("cp_lrp", _attention(epsilon) | held, bias=bias)


def _attention(epsilon: float) -> dict[str, Rule]:
    plain = ("convolution", "dense", "batch_norm", "layer_norm", "group_norm", "instance_norm")
    rules_: dict[str, Rule] = dict.fromkeys((*plain, "product", "attention"), Epsilon(epsilon))
    rules_ |= dict.fromkeys(("sum", "average", "interpolation"), Norm(epsilon))
    return rules_ | {"softmax": Softmax()}


NAMED: dict[str, Callable[..., Composite]] = {
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
        attn_lrp,
        cp_lrp,
    )
}


DEFAULT = "epsilon_gamma"
"""Composite where nothing else is asked for."""


def fitting(topology: Topology) -> str:
    """Name the composite of a network of which nothing is said.

    Returns
    -------
    str
        ``epsilon_gamma``, or ``attn_lrp`` where a layer is attention, for which that has no rule.
    """
    kinds = {layer.kind for layer in topology.layers}
    return "attn_lrp" if kinds & _ATTENTION else DEFAULT


def get(choice: str | Composite, bias: str | None = None) -> Composite:
    """Return a composite by name, or as given; ``bias`` says what becomes of biases.

    Raises
    ------
    CompositeError
        If the name is unknown, or the composite has no such reading.
    """
    if not isinstance(choice, Composite):
        if not isinstance(choice, str) or choice not in NAMED:
            raise CompositeError(
                f"unknown composite {choice!r}: expected one of {', '.join(NAMED)}, or a Composite"
            )
        choice = NAMED[choice]()
    if bias not in (None, *READINGS):
        raise CompositeError(f"bias must be 'absorbed' or 'ignored', found {bias!r}")
    if bias is None or bias == choice.bias:
        return choice
    if choice.name == "excitation_backprop":
        raise CompositeError(
            f"excitation_backprop ignores biases by its definition, found bias={bias!r}: leave it "
            "out, or take epsilon_plus"
        )
    return replace(choice, bias=bias)
