"""Parameter randomization: a circuit of drawn weights must differ from the network's own.

Weights are drawn anew from the output down, a layer more at every stage (cascading), or all at
once; the circuit's inputs are explained again, and the relevance of units compared, layer by layer
(J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from nrm_graph.circuits.checks import check_circuit, check_count
from nrm_graph.errors import InputError
from nrm_graph.evaluate.held_out import batches, logits_of, network_for, seeds, trained_on
from nrm_graph.evaluate.node_units import partitions_of
from nrm_graph.evaluate.ranking import by_unit
from nrm_graph.network.ir.program import Weight
from nrm_graph.propagation import prepared_network
from nrm_graph.propagation.forward import forward
from nrm_graph.propagation.output_weights import initial_relevance
from nrm_graph.propagation.relevance_pass import relevance_pass
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    import networkx as nx
    import numpy.typing as npt

    from nrm_graph.network.ir.program import Node, Program
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View

Means = Mapping[int, "npt.NDArray[np.float64]"]
"""Mean relevance of every unit, by layer."""


@dataclass(frozen=True, eq=False, repr=False)
class Randomization(Tabular):
    """How alike circuits are before and after weights were drawn anew.

    Attributes
    ----------
    stages : tuple of str
        The layer that was drawn last at every stage, all above it being drawn too; ``all`` where
        there is one stage.
    layers : tuple of str
        Layers compared: those in which the circuit has units.
    units, strongest : tuple of int
        Units of each layer, and how many of them the circuit has.
    overlap : ndarray, (draws, stages, layers)
        Share of the circuit's units that are among as many strongest ones, by |mean relevance|,
        afterwards.
    correlation : ndarray, (draws, stages, layers)
        Rank correlation (Spearman) of |mean relevance| over all units of the layer; NaN where one
        side is constant.
    inputs : int
        Number of inputs.
    """

    stages: tuple[str, ...]
    layers: tuple[str, ...]
    units: tuple[int, ...]
    strongest: tuple[int, ...]
    overlap: npt.NDArray[np.float64]
    correlation: npt.NDArray[np.float64]
    inputs: int

    def table(self) -> pa.Table:
        """One row per stage and layer.

        Columns: randomized (down to this layer), layer, units, strongest, overlap and its standard
        deviation over draws, chance (the overlap of units drawn at random), correlation and its
        standard deviation.
        """
        rows = []
        for s, stage in enumerate(self.stages):
            for k, layer in enumerate(self.layers):
                overlap, correlation = self.overlap[:, s, k], self.correlation[:, s, k]
                correlation = correlation[np.isfinite(correlation)]
                spread = [float(f(correlation)) if len(correlation) else None for f in _SPREAD]
                rows.append(
                    {
                        "randomized": stage,
                        "layer": layer,
                        "units": self.units[k],
                        "strongest": self.strongest[k],
                        "overlap": float(overlap.mean()),
                        "overlap_std": float(overlap.std()),
                        "chance": self.strongest[k] / self.units[k],
                        "correlation": spread[0],
                        "correlation_std": spread[1],
                    }
                )
        return pa.Table.from_pylist(rows, _SCHEMA)

    def to_arrow(self) -> pa.Table:
        """Return :meth:`table`."""
        return self.table()

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        return (table_of(self.table(), caption="By stage and layer"),)

    def _description(self) -> Description:
        """Say what was compared, and the last stage's numbers."""
        last = self.table().to_pylist()[-len(self.layers) :]
        overlaps = ", ".join(f"{r['layer']} {r['overlap']:.2f} ({r['chance']:.2f})" for r in last)
        return Description(
            f"Randomization of {self.inputs} inputs in {len(self.stages)} stages, "
            f"{len(self.overlap)} draws; overlap after the last (by chance): {overlaps}"
        )


_SPREAD = (np.mean, np.std)
_SCHEMA = pa.schema(
    [
        ("randomized", pa.string()),
        ("layer", pa.string()),
        ("units", pa.int64()),
        ("strongest", pa.int64()),
        ("overlap", pa.float64()),
        ("overlap_std", pa.float64()),
        ("chance", pa.float64()),
        ("correlation", pa.float64()),
        ("correlation_std", pa.float64()),
    ]
)


def randomization(
    db: View,
    circuit: nx.DiGraph,
    *,
    cascading: bool = True,
    draws: int = 5,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> Randomization:
    """Compute a circuit again after the network's weights were drawn anew.

    Parameters
    ----------
    db : Database
        The store that the circuit was computed from, with its input tensors.
    circuit : networkx.DiGraph
        As ``db.circuit(...)`` returns it; not one under a condition.
    cascading : bool
        Draw from the output down, a layer more at every stage; else all layers at once.
    draws : int
        How often weights are drawn.
    seed : int
        Of the draws.
    batch_size : int
        Inputs at once.
    device : str or torch.device
        As in :func:`nrm_graph.measure`.

    Returns
    -------
    Randomization
        Overlap and rank correlation by stage and layer.

    Raises
    ------
    InputError
        If the circuit is conditioned, does not say which inputs it comes from, or has no units.
    StoreError
        If the store is damaged.

    Notes
    -----
    Every tensor that a layer's operation reads (weight, bias, embedding) is drawn from the normal
    distribution of its own mean and standard deviation.  A layer above all that is drawn gets the
    relevance that it had only where its own weights alone decide it, so compare a layer at the
    stages that reach it.

    Examples
    --------
    >>> found = randomization(db, db.circuit("label = 'bag'"))  # doctest: +SKIP
    >>> found.table().to_pandas()  # doctest: +SKIP
    """
    check_circuit(circuit, db)
    if "given" in circuit.graph:
        raise InputError(
            "the circuit is conditioned: randomize one without given=, for a condition on the "
            "network's own units means something else in another network"
        )
    if "tables" in circuit.graph:
        raise InputError(
            "the circuit is one of reduced tables, whose nodes were chosen in this network: "
            "randomize one of the store's own tables"
        )
    check_count("draws", draws, 1)
    check_count("batch_size", batch_size, 1)
    check_count("seed", seed, 0)
    chosen = trained_on(db, circuit)
    net, partitions = network_for(db, chosen, device), partitions_of(db, circuit, "units")
    xs = list(batches(db, net, chosen, batch_size))
    weight = circuit.graph.get("weight", "unit")
    circuit_units = _units(circuit, net)
    before = _relevance(net, partitions, circuit_units, chosen, xs, weight)
    layers = [n for n, w in reversed(net.layout.layer_of.items()) if _tensors(net, n)]
    stages = [[name] for name in layers] if cascading else [layers]
    shape = draws, len(stages), len(circuit_units)
    overlap, correlation = np.zeros(shape), np.zeros(shape)
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        drawn: dict[str, torch.Tensor] = {}
        for s, stage in enumerate(stages):
            for name in stage:
                for tensor in _tensors(net, name):
                    if tensor not in drawn:
                        drawn[tensor] = _drawn(net.program.weights[tensor], rng)
            program = replace(net.program, weights={**net.program.weights, **drawn})
            other = prepared_network.network(program, net.composite)
            after = _relevance(other, partitions, circuit_units, chosen, xs, weight)
            for k, (layer, units) in enumerate(circuit_units.items()):
                strongest = np.argsort(-np.abs(after[layer]), kind="stable")[: len(units)]
                overlap[draw, s, k] = len(units & set(strongest.tolist())) / len(units)
                correlation[draw, s, k] = spearman(np.abs(before[layer]), np.abs(after[layer]))
    topology = net.layout.topology
    return Randomization(
        tuple(topology.layers[net.layout.layer_of[n]].name for n in layers)
        if cascading
        else ("all",),
        tuple(topology.layers[layer].name for layer in circuit_units),
        tuple(partitions[layer].n_units for layer in circuit_units),
        tuple(len(units) for units in circuit_units.values()),
        overlap,
        correlation,
        len(chosen),
    )


def _units(circuit: nx.DiGraph, net: Network) -> dict[int, set[int]]:
    """Units of a circuit by layer, from the output down; not those of the output."""
    topology = net.layout.topology
    units: dict[int, set[int]] = {}
    for name, unit in circuit.nodes:
        layer = topology.layer(name)
        if unit >= 0 and layer != topology.output:
            units.setdefault(layer.layer_id, set()).add(int(unit))
    if not units:
        raise InputError("the circuit has no units below the output: compute it with a larger top")
    return dict(sorted(units.items(), reverse=True))


def _relevance(
    net: Network,
    partitions: Sequence[Partition],
    layers: Iterable[int],
    chosen: InputGroup,
    batches: Sequence[Sequence[torch.Tensor]],
    weight: str,
) -> Means:
    """Mean relevance of the units of some layers, over inputs."""
    total: dict[int, Any] = dict.fromkeys(layers, 0.0)
    start = 0
    for xs in batches:
        state = forward(net, xs)
        n = len(state.output)
        at = seeds(chosen, start, start + n, state.output.shape[1]).to(state.output.device)
        scale = logits_of(state.output, at).double() if weight == "logit" else 1.0
        start += n

        def visit(layer: int, relevance: torch.Tensor, scale: torch.Tensor | float = scale) -> None:
            if layer in total:
                sums = by_unit(relevance.double(), partitions[layer])
                weighed = (sums.T * scale).T
                total[layer] = total[layer] + weighed.sum(0).cpu().numpy()

        with torch.no_grad():
            output_weights = at.to(state.output)
            if at.ndim == 1:
                output_weights = torch.zeros_like(state.output).scatter(1, at[:, None], 1.0)
            relevance_pass(state, initial_relevance(state, output_weights), visit=visit)
    # A layer that no walk reaches has no relevance.
    return {
        layer: np.zeros(partitions[layer].n_units) + sums / len(chosen)
        for layer, sums in total.items()
    }


def _tensors(net: Network, value: str) -> list[str]:
    """Tensors that make a layer, without masks and positions."""
    if value not in net.position:
        return []
    _, node = net.order[net.position[value]]
    names = [] if node is None else _weights(node)
    return [name for name in names if _random(net.program, name)]


def _weights(node: Node) -> list[str]:
    def names(value: object) -> list[str]:
        if isinstance(value, Weight):
            return [value.name]
        return [n for v in value for n in names(v)] if isinstance(value, tuple) else []

    return list(dict.fromkeys(names((node.args, tuple(v for _, v in node.kwargs)))))


def _random(program: Program, name: str) -> bool:
    tensor = program.weights[name]
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _drawn(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Draw normal numbers with the mean and standard deviation of a tensor's own."""
    values = rng.normal(
        float(tensor.double().mean()), float(tensor.double().std(correction=0)), tensor.shape
    )
    return torch.as_tensor(values).to(tensor.device, tensor.dtype)


def spearman(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Rank correlation of two samples, ties having their mean rank.

    >>> round(spearman(np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.1, 0.4, 0.3, 0.9])), 4)
    0.9487
    """
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    spread = ranks[0].std() * ranks[1].std()
    if spread == 0:
        return float("nan")
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread)
