"""The layers of a traced network and how walks step between them; no torch here.

A *layer* is the output of an operation that weighs its inputs (a convolution, a dense
layer, a sum, an average, an unfolded batch-norm), or the network's input or output.  A
*neuron* is a layer plus an index into its shape.  Operations that select (max-pooling,
flattening, slicing, concatenation) carry no units: steps go from layer to layer through
them.  Layers are numbered in execution order, so a walk, which runs from the output to the
input, visits strictly decreasing ``layer_id``.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nrm_graph.errors import EventError

BIAS, STABILIZER, PRUNED, REMAINDER, UNWATCHED = -1, -2, -3, -4, -5
"""Units of the pseudo-neurons: where relevance goes that reaches no neuron (of a reduced graph, no
watched one: the last are inputs that are not watched)."""

ENDS = ("input", "embedding")
"""Kinds of layers at which walks end."""

END_UNITS = (BIAS, STABILIZER, REMAINDER, UNWATCHED)
"""Pseudo-units in which walks of a reduced graph end that visit no further node."""

PSEUDO_UNITS = {
    BIAS: "bias",
    STABILIZER: "stabilizer",
    PRUNED: "pruned",
    REMAINDER: "remainder",
    UNWATCHED: "input not watched",
}


@dataclass(frozen=True)
class LayerInfo:
    """One layer.

    Attributes
    ----------
    layer_id : int
        Position in execution order; 0 is the first input.
    name : str
        Module path, or the name of forward's argument for an input.
    kind : str
        ``input``, ``embedding``, ``convolution``, ``dense``, ``sum``, ``batch_norm``, ...
    shape : tuple of int
        Shape of one sample's value, without the batch axis.
    depth : int
        Length of the longest way down to an input.
    aliases : tuple of str
        Further names: activations, dropout, folded batch-norm, selections of this layer alone.
    """

    layer_id: int
    name: str
    kind: str
    shape: tuple[int, ...]
    depth: int
    aliases: tuple[str, ...] = ()

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class EdgeGroup:
    """All direct steps from one layer to another.

    ``dense_edges`` counts the neuron-level edges whose weight is not structurally zero.
    """

    dst: int
    src: int
    dense_edges: int


@dataclass(frozen=True)
class Topology:
    """Layers in execution order and the edge groups between them."""

    layers: tuple[LayerInfo, ...]
    groups: tuple[EdgeGroup, ...]

    @cached_property
    def _by_name(self) -> dict[str, LayerInfo]:
        names = {alias: layer for layer in self.layers for alias in layer.aliases}
        return names | {layer.name: layer for layer in self.layers}

    @property
    def output(self) -> LayerInfo:
        """The layer that holds the targets."""
        return self.layers[-1]

    @property
    def inputs(self) -> tuple[LayerInfo, ...]:
        """The layers at which walks end."""
        return tuple(layer for layer in self.layers if layer.kind in ENDS)

    def layer(self, name: str) -> LayerInfo:
        """Return the layer of a name or alias.

        Raises
        ------
        EventError
            If there is none; close names are suggested.
        """
        if not isinstance(name, str):
            raise EventError(f"a layer is known by its name, a string; found {name!r}")
        found = self._by_name.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self._by_name, n=3)
            names = [layer.name for layer in self.layers]
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            near = f"the network has {', '.join(names[:8])}{more}"
            near = f"did you mean {', '.join(close)}?" if close else near
            raise EventError(f"there is no layer {name!r}: {near}")
        return found

    def sources(self, layer_id: int) -> tuple[int, ...]:
        """Layers that a layer reads directly."""
        return tuple(group.src for group in self.groups if group.dst == layer_id)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``store.json`` and snapshots."""
        return {
            "layers": [
                {
                    "layer_id": layer.layer_id,
                    "name": layer.name,
                    "kind": layer.kind,
                    "shape": list(layer.shape),
                    "depth": layer.depth,
                    "aliases": list(layer.aliases),
                }
                for layer in self.layers
            ],
            "groups": [[group.dst, group.src, group.dense_edges] for group in self.groups],
        }
