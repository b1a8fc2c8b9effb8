"""A composite: which rule each operation of a network gets."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import CompositeError, StoreError
from nrm_graph.network.ir.operations import WEIGH
from nrm_graph.rules import registry
from nrm_graph.rules.attention import Pass, Uniform
from nrm_graph.rules.base import Rule
from nrm_graph.rules.linear import Epsilon, Norm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.network.topology import LayerInfo, Topology


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
    if kinds.keys() & ATTENTION:
        hint = f"for attention take attn_lrp, cp_lrp or relp, or {hint}"
    return CompositeError(
        f"composite {name} does not fit the network: it has no rule for {listed}; {hint}"
    )


ATTENTION = {"softmax", "product", "attention"}
"""Kinds of layers that composites of convolutional networks have no rule for."""


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
    >>> from nrm_graph.rules import ZPlus
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
