"""Composites by name, and those of zennit: which rule each operation of a network gets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nrm_graph.errors import CompositeError
from nrm_graph.rules.attention import Hold, Softmax
from nrm_graph.rules.composite import ATTENTION, READINGS, Composite, composite, from_json
from nrm_graph.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, Norm, ZBox, ZPlus, per_channel
from nrm_graph.rules.zennit_bridge import from_zennit
from nrm_graph.rules.zennit_rules import described

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nrm_graph.network.topology import Topology
    from nrm_graph.rules.base import Rule

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
    "from_zennit",
    "get",
    "relp",
]


def __dir__() -> list[str]:
    return sorted(__all__)


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

    Held constant are the standard deviations of norms and the slopes of activations.  What scales
    a norm or opens an activation is therefore not seen.  Queries and keys of an attention layer get
    equal shares in sum, by the rule: that they are equal says nothing about the network.
    """
    return composite("attn_lrp", _attention(epsilon), bias=bias)


def cp_lrp(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """CP-LRP for transformers (Ali et al. 2022).

    As attn_lrp, but attention weights and gates are held constant: all relevance of a mix goes to
    its values, all of a gated product to its signal.  A product of which neither factor is known
    as a gate (``multiplication``) is still shared half and half.

    Nothing flows through queries, keys and gates: what decides where a head looks, and what opens
    a gate, is not seen.  There is no ``remainder``.
    """
    held = {"attention": Hold(0, epsilon), "gate": Hold(1, epsilon)}
    return composite("cp_lrp", _attention(epsilon) | held, bias=bias)


def relp(epsilon: float = 1e-6, *, bias: str = "absorbed") -> Composite:
    """RelP for transformers (Rezaei Jafari et al. 2025, arXiv:2508.21258).

    As cp_lrp, but gated products share half and half (its half-rule): norms with their standard
    deviation constant (LN-rule), activations as identities (identity-rule), attention weights
    constant (AH-rule), Epsilon where the paper has the 0-rule.

    Nothing flows through queries and keys: what decides where a head looks is not seen.  That
    signal and gate of a product have equal shares is the rule, no finding.  On a network without
    gates (GPT-2, BERT) relp and cp_lrp are the same.  RelP multiplies what these rules give each
    activation, divided by that activation, by a difference to a second prompt; a measure shares
    the output of one prompt.
    """
    return composite("relp", _attention(epsilon) | {"attention": Hold(0, epsilon)}, bias=bias)


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
        relp,
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
    return "attn_lrp" if kinds & ATTENTION else DEFAULT


def get(choice: str | Composite, bias: str | None = None) -> Composite:
    """Return a composite by name, or as given; ``bias`` says what becomes of biases.

    Raises
    ------
    CompositeError
        If the name is unknown, or the composite has no such reading.
    """
    if not isinstance(choice, Composite):
        if type(choice).__module__.split(".")[0] == "zennit":
            raise CompositeError(
                f"found {described(choice)}: translate it with ng.composites.from_zennit(...)"
            )
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
