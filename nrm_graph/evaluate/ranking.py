"""What to ablate first: a circuit's order, and the orders of its rivals.

All are made from the circuit's own inputs.  A *ranking* holds for every layer, or pair of layers,
its parts from the most to the least important: units ``(n, 1)``, or edges as (dst unit, src unit)
pairs ``(n, 2)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nrm_graph.evaluate.ablation import execute, outputs, place_of
from nrm_graph.evaluate.held_out import logits_of
from nrm_graph.network.maps.linear import same
from nrm_graph.propagation.forward import forward
from nrm_graph.rules.base import Group, Part, Rule, Signs
from nrm_graph.tables.builder import Tables
from nrm_graph.tables.plan import plan

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.evaluate.held_out import Batch
    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.tables.plan import Plan

Key = tuple[int, ...]
"""A layer id, or those of a pair (dst, src)."""

Ranking = Mapping[Key, "npt.NDArray[np.int64]"]

ScoredEdges = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.float64]"]
"""Edges ``(n, 2)`` and their scores ``(n,)``."""

Targeted = Callable[[], Iterable[tuple["Batch", "Tensor"]]]
"""Gives batches of the circuit's inputs and their targets, anew at every call."""


@dataclass(frozen=True)
class UnitScores:
    """Scores of the units of some layers.

    Attributes
    ----------
    net : Network
        The network.
    partitions : tuple of Partition
        Units of every layer.
    layers : tuple of int
        Layer ids.
    """

    net: Network
    partitions: tuple[Partition, ...]
    layers: tuple[int, ...]

    def everything(self) -> Ranking:
        """All units of the layers, in order."""
        return {(i,): np.arange(self.partitions[i].n_units)[:, None] for i in self.layers}

    def activation(self, inputs: Targeted) -> Ranking:
        """Order by the mean over inputs and neurons of ``|activation|``."""
        return self._ranked(self._scores(inputs, False), mean=True)

    def gradient_x_activation(self, inputs: Targeted) -> Ranking:
        """Order by ``|mean over inputs of the sum of gradient times activation|``."""
        return self._ranked(self._scores(inputs, True), mean=False)

    def _scores(self, inputs: Targeted, gradient: bool) -> dict[int, npt.NDArray[np.float64]]:
        at = {place_of(self.net, layer): layer for layer in self.layers}
        total: dict[int, Any] = dict.fromkeys(self.layers, 0.0)
        for xs, targets in inputs():
            values, slopes = at_values(self.net, xs, targets, tuple(at), gradient)
            for name, layer in at.items():
                samples = self.net.layout.batches[name].samples(values[name]).double()
                samples = samples.masked_fill(~samples.isfinite(), 0.0)
                if gradient:
                    samples = samples * self.net.layout.batches[name].samples(slopes[name]).double()
                else:
                    samples = samples.abs()
                sums = by_unit(samples, self.partitions[layer])
                total[layer] = total[layer] + sums.sum(0).cpu().numpy()
        return total

    def _ranked(self, scores: Mapping[int, npt.NDArray[np.float64]], mean: bool) -> Ranking:
        ranking: dict[Key, npt.NDArray[np.int64]] = {}
        for layer, values in scores.items():
            part = self.partitions[layer]
            sizes = np.bincount(part.labels.ravel(), minlength=part.n_units) if mean else 1
            ranking[layer,] = np.argsort(-np.abs(values / sizes), kind="stable")[:, None]
        return ranking


def by_unit(values: Tensor, part: Partition) -> Tensor:
    """Sum values ``(N, *shape)`` of a layer by unit: ``(N, n_units)``."""
    labels = torch.from_numpy(part.labels.ravel().astype(np.int64)).to(values.device)
    flat = values.reshape(len(values), -1)
    return flat.new_zeros(len(flat), part.n_units).index_add_(1, labels, flat)


def at_values(
    net: Network, xs: Batch, targets: Tensor, names: tuple[str, ...], gradient: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values of a run by name, and the target outputs' gradients with respect to them.

    Parameters
    ----------
    net : Network
        The network.
    xs : tuple of Tensor, (N, ...)
        Inputs.
    targets : Tensor, (N,) or (N, outputs)
        Flat index of each input's target, or its weights over outputs.
    names : tuple of str
        Values asked for.
    gradient : bool
        Whether gradients are wanted; else they are empty.

    Returns
    -------
    values, gradients : dict of str to Tensor
        Native.
    """
    captured: dict[str, Tensor] = {}

    def capture(name: str, value: Any, values: Mapping[str, Any]) -> Any:
        if name not in names:
            return value
        if gradient and not value.requires_grad:
            value = value.detach().requires_grad_(True)
        captured[name] = value
        return value

    with torch.set_grad_enabled(gradient):
        output = outputs(net, execute(net, xs, capture))
        if not gradient:
            return captured, {}
        chosen = logits_of(output, targets).sum()
        slopes = torch.autograd.grad(chosen, [captured[name] for name in names], allow_unused=True)
    return (
        {name: value.detach() for name, value in captured.items()},
        {
            name: torch.zeros_like(captured[name]) if slope is None else slope
            for name, slope in zip(names, slopes, strict=True)
        },
    )


@dataclass(frozen=True)
class _Products(Rule):
    """What each neuron adds to its reader: ``x w``, over the denominator 1."""

    def groups(self, op: Weighing, signs: Signs) -> tuple[Group, ...]:
        parts = tuple(Part(k, same, w) for k, w in enumerate(op.tensors))
        return (Group(parts, None, 0.0, unit=True),)


@dataclass(frozen=True)
class EdgeScores:
    """Scores of the edges between some pairs of layers.

    A score is what an edge adds to its reader, ``weight x activation`` summed over the neurons of
    both units, as the library's tables take it: of normalisations with their spread held
    constant, of a softmax by its expansion, of a product half of it.

    Attributes
    ----------
    net : Network
        The network.
    partitions : tuple of Partition
        Units of every layer.
    pairs : tuple of (dst, src)
        Layer ids.
    """

    net: Network
    partitions: tuple[Partition, ...]
    pairs: tuple[tuple[int, int], ...]

    def scored(self, inputs: Targeted, gradient: bool) -> dict[Key, ScoredEdges]:
        """Edges of every pair and their scores.

        Parameters
        ----------
        inputs : callable
            The circuit's inputs.
        gradient : bool
            ``|mean of contribution times the target's gradient at the reader|`` (edge attribution
            patching) rather than ``mean of |contribution|``.

        Returns
        -------
        dict of (dst, src) to (edges, scores)
            ``(n, 2)`` pairs of units in order, and ``(n,)``; what never contributes is left out.
        """
        count = len(self.net.layout.topology.layers)
        rules = (_Products(),) * count
        net = replace(self.net, rules=rules, silent=frozenset(), groups={})
        table_plan = plan(net, self.partitions)
        sums = {pair: _Sums() for pair in self.pairs}
        n_inputs = 0
        for xs, targets in inputs():
            n_inputs += len(targets)
            for b in range(len(targets)):  # tables of single neurons are large
                sample = tuple(
                    net.layout.batches[name].one(x, b)
                    for (name, _), x in zip(net.program.inputs, xs, strict=True)
                )
                for pair, ids, values in self._contributions(
                    table_plan, sample, targets[b : b + 1], gradient
                ):
                    sums[pair].add(ids, values if gradient else np.abs(values))
        scores: dict[Key, ScoredEdges] = {}
        for (dst, src), total in sums.items():
            ids, values = total.result()
            edges = np.stack(np.divmod(ids, self.partitions[src].n_units), 1)
            scores[dst, src] = edges, np.abs(values) / n_inputs
        return scores

    def _contributions(
        self, table_plan: Plan, xs: Batch, targets: Tensor, gradient: bool
    ) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Edges of one input as (pair, flat ids, values)."""
        net = table_plan.network
        state = forward(net, xs)
        readers = sorted({dst for dst, _ in self.pairs}, reverse=True)
        names = {dst: net.values[dst] for dst in readers}
        at = {name: net.program.output if name == "output" else name for name in names.values()}
        slopes: Mapping[str, Tensor] = {}
        if gradient:
            _, slopes = at_values(net, xs, targets, tuple(dict.fromkeys(at.values())), True)
        with torch.no_grad():
            tables = Tables(state, state.output, table_plan, {})
            for dst, name in names.items():
                value = state.values[name]
                factor = slopes[at[name]] if gradient else torch.ones_like(value)
                tables.visit(dst, state.samples(name, factor))
                for _ in tables.weigh(name, factor):
                    pass
            tables.finish()
        for block in tables.blocks[0]:
            pair = (int(block.dst_layer), int(block.src_layer))
            if pair in self.pairs:
                is_unit = block.src >= 0
                width = self.partitions[pair[1]].n_units
                ids = block.dst[is_unit].astype(np.int64) * width + block.src[is_unit]
                yield pair, ids, block.relevance[is_unit].astype(np.float64)


class _Sums:
    """Sums by id, merged from time to time."""

    _ROWS = 1 << 22

    def __init__(self) -> None:
        self.ids: list[npt.NDArray[np.int64]] = []
        self.values: list[npt.NDArray[np.float64]] = []
        self.rows = 0

    def add(self, ids: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        self.ids.append(ids)
        self.values.append(values)
        self.rows += len(ids)
        if self.rows > self._ROWS and len(self.ids) > 1:
            ids, values = self.result()
            self.ids, self.values, self.rows = [ids], [values], 0

    def result(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        if not self.ids:
            return np.zeros(0, np.int64), np.zeros(0)
        ids, place = np.unique(np.concatenate(self.ids), return_inverse=True)
        sums = np.bincount(place, np.concatenate(self.values), len(ids))
        return ids, sums.astype(np.float64, copy=False)


def best_first(
    edges: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    further: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Edges from the highest score down; those of ``further`` that have none stand last.

    Parameters
    ----------
    edges, also : ndarray of int, (n, 2) and (m, 2)
        Pairs of units.
    scores : ndarray, (n,)
        Of ``edges``.
    """
    order = np.argsort(-scores, kind="stable")
    scored = set(map(tuple, edges.tolist()))
    rest = [edge for edge in further.tolist() if tuple(edge) not in scored]
    ranked: npt.NDArray[np.int64] = np.concatenate(
        [edges[order], np.array(rest, np.int64).reshape(-1, 2)]
    )
    return ranked


def circuit_order(
    items: Iterable[tuple[Key, tuple[int, ...], float]],
) -> tuple[Ranking, list[Key]]:
    """Rank a circuit's parts by ``|relevance|``.

    Returns
    -------
    ranking : Ranking
        Per layer or pair.
    sequence : list of Key
        Which layer or pair each part of the circuit is in, the strongest first.
    """
    ordered = sorted(items, key=lambda item: (-abs(item[2]), item[0], item[1]))
    parts: dict[Key, list[tuple[int, ...]]] = defaultdict(list)
    for key, part, _ in ordered:
        parts[key].append(part)
    ranking = {key: np.array(parts[key], np.int64) for key in sorted(parts)}
    return ranking, [key for key, _, _ in ordered]
