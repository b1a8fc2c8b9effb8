"""How faithful a circuit is to its network: ablation on inputs that it was not computed from."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nrm_graph.circuits.checks import check_count, checked_layers
from nrm_graph.errors import InputError
from nrm_graph.evaluate import ranking
from nrm_graph.evaluate.ablation import Ablation, means, place_of
from nrm_graph.evaluate.budgets import (
    FRACTIONS,
    Budgets,
    budgets,
    edges_to_ablate,
    shuffled,
    units_to_ablate,
)
from nrm_graph.evaluate.curves import CIRCUIT, RANDOM, Curves
from nrm_graph.evaluate.held_out import (
    batches,
    check_outputs,
    held_out,
    logits_of,
    network_for,
    once,
    seeds,
    trained_on,
    unablated,
)
from nrm_graph.network.targets import outputs_of
from nrm_graph.network.topology import ENDS
from nrm_graph.store.input_group import Group, group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import networkx as nx
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.evaluate.held_out import Batch
    from nrm_graph.evaluate.ranking import Key, Ranking
    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.state import Network
    from nrm_graph.store.view import View

RIVALS = (RANDOM, "activation", "gradient_x_activation")


def faithfulness(
    db: View,
    circuit: nx.DiGraph,
    where: str | None = None,
    *,
    by: str = "units",
    mode: str = "remove",
    baseline: str = "zero",
    reference: str | None = None,
    fractions: Sequence[float] = FRACTIONS,
    rivals: Sequence[str] = RIVALS,
    layers: Sequence[str] | None = None,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Curves:
    """Ablate a circuit step by step, on held-out inputs, against rivals of the same size.

    Parameters
    ----------
    db : Database
        The store that the circuit was computed from, with its input tensors.
    circuit : networkx.DiGraph
        As ``db.circuit(...)`` returns it.
    where : str, optional
        SQL condition over ``inputs`` that chooses the held-out inputs; by default all whose keys
        are not the circuit's.  Of those, the circuit's target counts alone; where its targets are
        mixed, every input has its own.
    by : "units" or "edges"
        What is ablated; see :mod:`nrm_graph.evaluate.ablation`.
    mode : "remove" or "keep"
        Ablate a method's strongest parts, or all but these of the same layers (or pairs of
        layers).
    baseline : "zero" or "mean"
        What ablated neurons get: 0, or each neuron's own mean over the circuit's inputs.
    reference : str, optional
        SQL condition over ``inputs`` that chooses what the mean is over instead; none of them may
        be held out.  The mean over inputs of one class still speaks for that class: over inputs
        of all classes it does not.
    fractions : sequence of float
        Shares of the circuit to ablate, or keep, in order of ``|mean relevance|``.
    rivals : sequence of str
        ``random``: parts of the same layers in random order, ``draws`` times; ``activation``: by
        mean ``|activation|``; ``gradient_x_activation``: by ``|mean of the target's gradient times
        activation|``.  Of edges, what an edge adds to its reader stands for the activation
        (``weight x activation``, so that the last is edge attribution patching), and all edges
        that ever add anything are candidates.  All are chosen on the circuit's own inputs, and
        spend in every layer, at every step, what the circuit spends there.
    layers : sequence of str, optional
        Layers of the circuit whose units are ablated, or into which its edges are.  By default all,
        but for units without inputs, embeddings and the output, which it is trivial to ablate.
    draws : int
        Number of random orders.
    seed : int
        Of random orders and of bootstrap intervals.
    batch_size : int
        Inputs at once.
    device : str or torch.device
        As in :func:`nrm_graph.measure`.
    progress : bool
        Show a bar where standard error is a terminal.

    Returns
    -------
    Curves
        Logit, probability and margin of the target, with intervals, and areas.

    Raises
    ------
    InputError
        If an argument is unknown; the circuit does not fit the store or does not say which inputs
        it comes from; ``where`` chooses one of these; or a layer cannot be ablated.
    StoreError
        If the store is damaged, or its network does not give the stored logits.

    Notes
    -----
    Ablated networks see values that they never saw in training: a curve that falls says that the
    network uses what was ablated, not that it uses nothing else.

    Relevance adds up to about 1 in every layer, so units of layers that have few come first, and
    what is ablated in several layers interacts: ``layers=["conv5"]`` tells of one layer.

    References
    ----------
    .. [1] W. Samek et al., "Evaluating the visualization of what a deep neural network has
       learned", IEEE TNNLS 28 (2017).
    .. [2] A. Syed, C. Rager, A. Conmy, "Attribution Patching Outperforms Automated Circuit
       Discovery", arXiv:2310.10348 (2023).

    Examples
    --------
    >>> circuit = db.circuit("label = 'bag' AND input_id % 3 <> 0")  # doctest: +SKIP
    >>> curves = faithfulness(db, circuit, "label = 'bag' AND input_id % 3 = 0")  # doctest: +SKIP
    >>> curves.areas().to_pandas()  # doctest: +SKIP
    """
    _check(by, mode, baseline, rivals)
    for name, count, least in (
        ("draws", draws, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        check_count(name, count, least)
    if reference is not None and baseline != "mean":
        raise InputError("reference says what a mean is over: pass baseline='mean' with it")
    own, other = trained_on(db, circuit), held_out(db, circuit, where)
    net = network_for(db, own, device)
    partitions, outputs = db.partitions, outputs_of(net.program)
    parts = _parts(circuit, net.layout.topology, partitions, by, layers)
    order, sequence = ranking.circuit_order(parts)
    spent = budgets(sequence, fractions)

    def inputs() -> Iterator[tuple[Batch, Tensor]]:
        start = 0
        for xs in batches(db, net, own, batch_size):
            n = xs[0].shape[0]
            yield xs, seeds(own, start, start + n, outputs.count)
            start += n

    below = {key[-1] for key in order}
    for layer in below:
        place_of(net, layer)  # refused before anything is computed
    orders, everything = _orders(net, partitions, order, by, rivals, inputs)
    sources = None
    if baseline == "mean":
        over = own if reference is None else _reference(db, reference, other)
        sources = means(net, below, batches(db, net, once(over), batch_size))
    ablation = Ablation(net, partitions, sources)
    held = list(batches(db, net, other, batch_size))
    whole = torch.cat([unablated(net, xs) for xs in held])
    check_outputs(net, other, whole)
    scored = _Scorer(outputs, other)

    def run(chosen: Ranking) -> npt.NDArray[np.float64]:
        if by == "units":
            cut = units_to_ablate(chosen, everything, mode == "keep")
            return scored(torch.cat([ablation.without_units(xs, cut) for xs in held]))
        sizes = [part.n_units for part in partitions]
        without = edges_to_ablate(chosen, sizes, mode == "keep")
        return scored(torch.cat([ablation.without_edges(xs, without) for xs in held]))

    values: dict[str, npt.NDArray[np.float64]] = {}
    steps = len(spent.fractions)
    bar = tqdm(
        total=steps * (1 + sum(draws if name == RANDOM else 1 for name in rivals)),
        unit=" runs",
        desc="faithfulness",
        disable=None if progress and sys.stderr.isatty() else True,
    )
    with bar:
        for method in (CIRCUIT, *rivals):
            runs = []
            for draw in range(draws if method == RANDOM else 1):
                chosen = shuffled(everything, seed, draw) if method == RANDOM else orders[method]
                runs.append(_curve(spent, chosen, run, bar))
            values[method] = np.stack(runs)
    names = {key: _name(net.layout.topology, key) for key in order}
    return Curves(
        by,
        mode,
        baseline,
        circuit.graph.get("target"),
        where,
        other.keys,
        len(own),
        spent.fractions,
        {names[key]: count for key, count in spent.counts.items()},
        {names[key]: len(everything[key]) for key in order},
        scored(whole),
        values,
        seed,
    )


def _reference(db: View, where: str, other: Group) -> Group:
    """Choose the inputs that means are over; none of them is held out."""
    found = group(db, where, mixed_targets=True)
    shared = set(found.keys) & set(other.keys)
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(found)} inputs that {where!r} chooses as reference are "
            f"held out, such as {min(shared)!r}: the mean may be over others alone"
        )
    return found


def _curve(
    spent: Budgets, order: Ranking, run: Callable[[Ranking], Any], bar: Any
) -> npt.NDArray[np.float64]:
    """Scores ``(steps, inputs, 3)`` along a ranking; equal budgets are run once."""
    found: list[npt.NDArray[np.float64]] = []
    for step, total in enumerate(spent.total):
        again = step and total == spent.total[step - 1]
        found.append(found[-1] if again else run(spent.first(order, step)))
        bar.update(1)
    return np.stack(found)


def _check(by: str, mode: str, baseline: str, rivals: Sequence[str]) -> None:
    for name, value, allowed in (
        ("by", by, ("units", "edges")),
        ("mode", mode, ("remove", "keep")),
        ("baseline", baseline, ("zero", "mean")),
    ):
        if value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    known = isinstance(rivals, Collection) and all(name in RIVALS for name in rivals)
    if isinstance(rivals, str) or not known or len(set(rivals)) != len(rivals):
        raise InputError(
            f"rivals must be a list of {', '.join(RIVALS)}, each once, found {rivals!r}"
        )


def _parts(
    circuit: nx.DiGraph,
    topology: Topology,
    partitions: Sequence[Partition],
    by: str,
    layers: Sequence[str] | None,
) -> list[tuple[Key, tuple[int, ...], float]]:
    """Units or edges of a circuit with their relevance; pseudo-neurons are left out."""
    asked = None
    if layers is not None:
        asked = {topology.layer(name).layer_id for name in checked_layers(layers)}

    def place(node: Any) -> tuple[int, int]:
        name, unit = node
        layer = topology.layer(name).layer_id
        if unit >= partitions[layer].n_units:
            raise InputError(
                f"the circuit has the unit {unit} of {name}, which has "
                f"{partitions[layer].n_units}: pass the store that it was computed from"
            )
        return layer, int(unit)

    found: list[tuple[Key, tuple[int, ...], float]] = []
    if by == "units":
        for node, held in circuit.nodes(data=True):
            layer, unit = place(node)
            info = topology.layers[layer]
            inner = info.kind not in ENDS and info != topology.output
            if unit >= 0 and (inner if asked is None else layer in asked):
                found.append(((layer,), (unit,), float(held["relevance"])))
    else:
        for source, reader, held in circuit.edges(data=True):
            (src, below), (dst, above) = place(source), place(reader)
            if below < 0 or above < 0 or not (asked is None or dst in asked):
                continue
            if src not in topology.sources(dst):
                raise InputError(
                    f"the circuit has an edge from {source[0]} to {reader[0]}, which "
                    "does not read it directly: only direct edges can be ablated"
                )
            found.append(((dst, src), (above, below), float(held["relevance"])))
    if not found:
        raise InputError(
            f"the circuit has no {by} to ablate"
            + (" but inputs and outputs" if by == "units" and asked is None else "")
            + ": compute it with a larger top, or name its layers"
        )
    return found


def _orders(
    net: Network,
    partitions: tuple[Partition, ...],
    order: Ranking,
    by: str,
    rivals: Sequence[str],
    inputs: ranking.Targeted,
) -> tuple[dict[str, Ranking], Ranking]:
    """Rankings by method, and all parts that there are."""
    found: dict[str, Ranking] = {CIRCUIT: order}
    if by == "units":
        scores = ranking.Units(net, partitions, tuple(layer for (layer,) in order))
        if "activation" in rivals:
            found["activation"] = scores.activation(inputs)
        if "gradient_x_activation" in rivals:
            found["gradient_x_activation"] = scores.gradient_x_activation(inputs)
        return found, scores.everything()
    edges = ranking.Edges(net, partitions, tuple((dst, src) for dst, src in order))
    candidates = {key: [rows] for key, rows in order.items()}
    for name, gradient in (("activation", False), ("gradient_x_activation", True)):
        if name not in rivals and (gradient or RANDOM not in rivals):
            continue
        made = {
            key: ranking.best_first(*scored, order[key])
            for key, scored in edges.scored(inputs, gradient).items()
        }
        if name in rivals:
            found[name] = made
        for key, rows in made.items():
            candidates[key].append(rows)
    return found, {key: np.unique(np.concatenate(rows), axis=0) for key, rows in candidates.items()}


def _name(topology: Topology, key: Key) -> str:
    return " <- ".join(topology.layers[layer].name for layer in key)


@dataclass(frozen=True)
class _Scorer:
    """Logit, probability and margin of every held-out input's target; of weights their sum."""

    outputs: Outputs
    chosen: Group

    def __call__(self, found: Tensor) -> npt.NDArray[np.float64]:
        """``(N, outputs)`` to ``(N, 3)``; NaN where there are no other outputs to compare with."""
        at = seeds(self.chosen, 0, len(self.chosen), self.outputs.count)
        values = found.double().cpu().numpy()
        scores = np.full((len(values), 3), np.nan)
        scores[:, 0] = logits_of(found.double(), at).cpu().numpy()
        for b, target in enumerate(self.chosen.aims):
            if isinstance(target, str):
                continue
            first, last = _alternatives(self.outputs, target)
            row = values[b, first:last]
            if last - first > 1:
                shifted = np.exp(row - row.max())
                scores[b, 1] = shifted[target - first] / shifted.sum()
                scores[b, 2] = row[target - first] - np.delete(row, target - first).max()
        return scores


def _alternatives(outputs: Outputs, target: int) -> tuple[int, int]:
    """Find the outputs that a target competes with, those along the last axis: first, last."""
    first = 0
    for _, shape in outputs.parts:
        size = math.prod(shape)
        if first <= target < first + size:
            width = shape[-1] if shape else 1
            start = first + (target - first) // width * width
            return start, start + width
        first += size
    raise InputError(f"target {target} is no output of the network")
