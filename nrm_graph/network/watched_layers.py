"""Which layers are watched: those that patterns name, or those that people call parts of a network.

All is read off the topology: kinds of layers, who reads whom, and names, which are the paths of a
tree of modules.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from nrm_graph.errors import EventError
from nrm_graph.network.topology import ENDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.network.topology import LayerInfo, Topology

_PASSING = {
    "average",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "interpolation",
    "layer_norm",
    "output",
    "rms_norm",
}
"""Kinds that pass on what another layer computes; a sum that reads one layer is as they are."""

_BETWEEN = _PASSING | {*ENDS, "softmax"}


def matching(topology: Topology, patterns: str | Sequence[str]) -> tuple[int, ...]:
    """Find layers by name.

    Parameters
    ----------
    topology : Topology
        The layers.
    patterns : str or sequence of str
        Names or aliases of layers, or patterns of such (as in :mod:`fnmatch`; ``*`` crosses dots).
        What is a name is not read as a pattern.

    Returns
    -------
    tuple of int
        Ids of the layers that at least one pattern matches, from output to input.

    Raises
    ------
    EventError
        If a pattern matches nothing; close names are suggested.

    Examples
    --------
    >>> from nrm_graph.network.topology import LayerInfo, Topology
    >>> names = "x", "layer1.0", "layer1.1", "fc"
    >>> kinds = "input", "sum", "sum", "dense"
    >>> layers = (LayerInfo(i, names[i], kinds[i], (3,), i) for i in range(4))
    >>> matching(Topology(tuple(layers), ()), ["layer1.*", "x"])
    (2, 1, 0)
    """
    ids = {alias: layer.layer_id for layer in topology.layers for alias in layer.aliases}
    ids |= {layer.name: layer.layer_id for layer in topology.layers}
    chosen: set[int] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise EventError(f"layers are chosen by names or patterns, strings; found {pattern!r}")
        names = [pattern] if pattern in ids else [n for n in ids if fnmatch.fnmatchcase(n, pattern)]
        if not names:
            topology.layer(pattern)  # says that there is none, and what is near
        chosen.update(ids[name] for name in names)
    return tuple(sorted(chosen, reverse=True))


def automatic(topology: Topology) -> tuple[int, ...]:
    """Find the layers that people would call the parts of a network.

    These are

    * of blocks of convolutions, the layers that are read from outside the block: the sum of a
      residual block, the last convolution of every branch whose results are concatenated;
    * convolutions that are in no block, unless the network has attention, where they make or
      merge tokens;
    * the mixes of attention, weights times values, which are its heads (not the weights: half of
      the relevance goes past them, through the values);
    * hidden layers, which dense layers alone read, perhaps through normalisation or pooling: dense
      ones, products (of gated MLPs), sums of such, convolutions of dense ones;
    * the states of recurrent cells: products and sums that a dense layer reads which is called
      more than once.

    A module is a block if it holds convolutions and no attention, and adds two values itself or
    is read as a concatenation of several of its layers.  So are modules of the same path but for
    numbers, if they hold convolutions: those of ``layer2.0`` without a skip beside ``layer2.1``.

    Inputs are not watched, nor the output, nor scores of which the output is a selection or an
    average.  Where nothing of the above is there, all other layers are that are no softmax,
    normalisation, pooling or interpolation.

    Returns
    -------
    tuple of int
        Layer ids, from output to input; empty if there is no layer between inputs and output.
    """
    net = _Network(topology)
    blocks = _blocks(net)
    inside = {i for block in blocks for i in net.members[block]}
    heads = net.of_kind("attention")
    parts = heads | _hidden(net)
    if not heads:
        parts |= net.of_kind("convolution")
    parts -= inside
    for block in blocks:
        parts |= _results(net, block)
    parts -= net.ends
    if not parts:
        parts = {i for i in range(len(topology.layers)) if not net.between(i)} - net.ends
    return tuple(sorted(parts, reverse=True))


@dataclass(frozen=True)
class _Network:
    """A topology and what is asked of it often."""

    topology: Topology

    def kind(self, i: int) -> str:
        return self.topology.layers[i].kind

    def of_kind(self, kind: str) -> set[int]:
        return {layer.layer_id for layer in self.topology.layers if layer.kind == kind}

    @cached_property
    def sources(self) -> list[list[int]]:
        """For every layer, those that it reads."""
        sources: list[list[int]] = [[] for _ in self.topology.layers]
        for group in self.topology.groups:
            sources[group.dst].append(group.src)
        return sources

    @cached_property
    def readers(self) -> list[set[int]]:
        """For every layer, those that read it."""
        readers: list[set[int]] = [set() for _ in self.topology.layers]
        for group in self.topology.groups:
            readers[group.src].add(group.dst)
        return readers

    @cached_property
    def users(self) -> list[set[int]]:
        """For every layer, those that read it directly or through layers that pass it on."""
        users: list[set[int]] = [set() for _ in self.topology.layers]
        for i in reversed(range(len(users))):
            for reader in self.readers[i]:
                users[i] |= users[reader] if self.passing(reader) else {reader}
        return users

    @cached_property
    def ends(self) -> set[int]:
        """Inputs, the output, and what nothing but the output is made of."""
        inputs = {layer.layer_id for layer in self.topology.inputs}
        return inputs | {i for i, users in enumerate(self.users) if not users}

    @cached_property
    def members(self) -> dict[str, set[int]]:
        """For every module that holds layers, those whose names say so."""
        members: dict[str, set[int]] = defaultdict(set)
        for layer in self.topology.layers:
            for module in _above(_path(layer)):
                members[module].add(layer.layer_id)
        for layer in self.topology.layers:  # the last sum of a module bears the module's path
            if _path(layer) in members and layer.kind not in ENDS:
                members[_path(layer)].add(layer.layer_id)
        return members

    def passing(self, i: int) -> bool:
        return self.kind(i) in _PASSING or (self.kind(i) == "sum" and len(self.sources[i]) < 2)

    def between(self, i: int) -> bool:
        return self.kind(i) in _BETWEEN or self.passing(i)


def _path(layer: LayerInfo) -> str:
    """Return the name of a layer without the number of its call."""
    return re.sub(r"@\d+$", "", layer.name)


def _above(path: str) -> list[str]:
    """Return the modules that hold what is at a path, outermost first; not the network itself."""
    return [path[:i] for i, c in enumerate(path) if c == "."]


def _blocks(net: _Network) -> list[str]:
    """Modules that are blocks of convolutions."""
    joins: set[str] = set()
    for layer in net.topology.layers:
        path, sources = _path(layer), net.sources[layer.layer_id]
        if layer.kind == "sum" and len(sources) > 1:
            joins.add(path if path in net.members else path.rpartition(".")[0])
        elif layer.kind not in ("gate", "multiplication", "product", "attention"):
            paths = [_path(net.topology.layers[i]) for i in sorted(sources)]
            for one, other in pairwise(paths):  # side by side: a concatenation
                shared = [module for module in _above(one) if module in _above(other)]
                if shared and layer.layer_id not in net.members[shared[-1]]:
                    joins.add(shared[-1])
    convolutions, heads = net.of_kind("convolution"), net.of_kind("attention")

    def fits(module: str) -> bool:
        layers = net.members[module]
        return bool(layers & convolutions) and layers.isdisjoint(heads | net.ends)

    alike = {_unnumbered(module) for module in joins & net.members.keys() if fits(module)}
    return [m for m in net.members if _unnumbered(m) in alike and fits(m)]


def _unnumbered(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def _results(net: _Network, block: str) -> set[int]:
    """Layers of a block that are read from outside, and its sum at every call.

    Of normalisations, pooling and interpolation at its end, what they pass on.
    """
    layers = net.members[block]
    results = set()
    ends = [i for i in layers if net.readers[i] - layers]
    while ends:
        i = ends.pop()
        if net.passing(i):
            ends += layers.intersection(net.sources[i])
        else:
            results.add(i)
    calls = {i for i in layers if _path(net.topology.layers[i]) == block}
    return results | (calls & net.of_kind("sum"))


def _hidden(net: _Network) -> set[int]:
    """Layers whose neurons are the hidden ones of MLPs and the states of recurrent cells."""
    dense = net.of_kind("dense")
    products = net.of_kind("gate") | net.of_kind("multiplication")
    paths = Counter(_path(net.topology.layers[i]) for i in dense)

    def computes(i: int) -> bool:
        plain = net.kind(i) not in ("convolution", "sum") or dense.issuperset(net.sources[i])
        gated = net.kind(i) == "sum" and not products.isdisjoint(net.sources[i])
        return (plain or gated) and not net.between(i)

    hidden = {i for i, users in enumerate(net.users) if users and users <= dense and computes(i)}
    for i in dense:
        if paths[_path(net.topology.layers[i])] > 1:
            hidden.update(s for s in net.sources[i] if net.kind(s) == "sum" or s in products)
    return hidden
