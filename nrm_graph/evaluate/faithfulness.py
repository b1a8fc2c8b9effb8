"""How faithful a circuit is to its network: ablation on inputs that it was not computed from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from nrm_graph.circuits.checks import check_count
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
from nrm_graph.evaluate.circuit_parts import parts_of
from nrm_graph.evaluate.curves import CIRCUIT, RANDOM, Curves
from nrm_graph.evaluate.held_out import (
    batches,
    check_outputs,
    held_out,
    network_for,
    once,
    seeds,
    trained_on,
    unablated,
)
from nrm_graph.evaluate.node_units import partitions_of
from nrm_graph.evaluate.scores import Scorer
from nrm_graph.network.targets import outputs_of
from nrm_graph.progress import Progress
from nrm_graph.store.input_group import InputGroup, group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import networkx as nx
    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.evaluate.held_out import Batch
    from nrm_graph.evaluate.ranking import Key, Ranking
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.units import Partition
    from nrm_graph.propagation.prepared_network import Network
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
        As ``db.circuit(...)`` returns it; of reduced tables its units alone can be ablated.
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
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.

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
    check_count("draws", draws, 1)
    check_count("batch_size", batch_size, 1)
    check_count("seed", seed, 0)
    if reference is not None and baseline != "mean":
        raise InputError("reference says what a mean is over: pass baseline='mean' with it")
    trained, other = trained_on(db, circuit), held_out(db, circuit, where)
    net = network_for(db, trained, device)
    partitions = partitions_of(db, circuit, by)
    topology, outputs = net.layout.topology, outputs_of(net.program)
    order, sequence = ranking.circuit_order(parts_of(circuit, topology, partitions, by, layers))
    spent = budgets(sequence, fractions)
    below = {key[-1] for key in order}
    for layer in below:
        place_of(net, layer)  # refused before anything is computed
    targeted = partial(_targeted, db, net, trained, batch_size, outputs.count)
    orders, everything = _orders(net, partitions, order, by, rivals, targeted)
    sources = None
    if baseline == "mean":
        averaged = trained if reference is None else _reference(db, reference, other)
        sources = means(net, below, batches(db, net, once(averaged), batch_size))
    inputs = list(batches(db, net, other, batch_size))
    whole = torch.cat([unablated(net, xs) for xs in inputs])
    check_outputs(net, other, whole)
    scorer = Scorer(outputs, other)
    trial = _Trial(by, mode, Ablation(net, partitions, sources), everything, inputs, scorer)
    repeats = {method: draws if method == RANDOM else 1 for method in (CIRCUIT, *rivals)}
    values = _curves(trial, spent, orders, repeats, seed, progress)
    names = {key: _name(topology, key) for key in order}
    return Curves(
        by,
        mode,
        baseline,
        circuit.graph.get("target"),
        where,
        other.keys,
        len(trained),
        spent.fractions,
        {names[key]: count for key, count in spent.counts.items()},
        {names[key]: len(everything[key]) for key in order},
        scorer(whole),
        values,
        seed,
        circuit.graph.get("target_text"),
    )


def _targeted(
    db: View, net: Network, chosen: InputGroup, size: int, outputs: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of inputs and their targets."""
    start = 0
    for xs in batches(db, net, chosen, size):
        n = xs[0].shape[0]
        yield xs, seeds(chosen, start, start + n, outputs)
        start += n


def _reference(db: View, where: str, other: InputGroup) -> InputGroup:
    """Choose the inputs that means are over; none of them is held out."""
    chosen = group(db, where, mixed_targets=True)
    shared = set(chosen.keys) & set(other.keys)
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(chosen)} inputs that {where!r} chooses as reference are "
            f"held out, such as {min(shared)!r}: the mean may be over others alone"
        )
    return chosen


@dataclass(frozen=True)
class _Trial:
    """Held-out inputs in a network whose parts are ablated.

    Attributes
    ----------
    by, mode : str
        As of :func:`faithfulness`.
    ablation : Ablation
        The network.
    everything : Ranking
        All parts that there are.
    inputs : list of tuple of Tensor
        Batches.
    scorer : Scorer
        Of the outputs.
    """

    by: str
    mode: str
    ablation: Ablation
    everything: Ranking
    inputs: list[Batch]
    scorer: Scorer

    def scores(self, chosen: Ranking) -> npt.NDArray[np.float64]:
        """Scores ``(inputs, 3)`` where the chosen parts are ablated, or kept."""
        keep = self.mode == "keep"
        if self.by == "units":
            units = units_to_ablate(chosen, self.everything, keep)
            runs = [self.ablation.without_units(xs, units) for xs in self.inputs]
        else:
            sizes = [part.n_units for part in self.ablation.partitions]
            edges = edges_to_ablate(chosen, sizes, keep)
            runs = [self.ablation.without_edges(xs, edges) for xs in self.inputs]
        return self.scorer(torch.cat(runs))

    def curve(self, spent: Budgets, order: Ranking, meter: Progress) -> npt.NDArray[np.float64]:
        """Scores ``(steps, inputs, 3)`` along a ranking; equal budgets are run once."""
        curve: list[npt.NDArray[np.float64]] = []
        for step, total in enumerate(spent.total):
            again = step and total == spent.total[step - 1]
            curve.append(curve[-1] if again else self.scores(spent.first(order, step)))
            meter.advance()
        return np.stack(curve)


def _curves(
    trial: _Trial,
    spent: Budgets,
    orders: Mapping[str, Ranking],
    repeats: Mapping[str, int],
    seed: int,
    progress: bool,
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores ``(runs, steps, inputs, 3)`` by method, of so many runs each."""
    curves: dict[str, npt.NDArray[np.float64]] = {}
    runs = len(spent.fractions) * sum(repeats.values())
    with Progress("faithfulness", runs, "runs", progress) as meter:
        for method, count in repeats.items():
            drawn = []
            for draw in range(count):
                random = method == RANDOM
                order = shuffled(trial.everything, seed, draw) if random else orders[method]
                drawn.append(trial.curve(spent, order, meter))
            curves[method] = np.stack(drawn)
    return curves


def _check(by: str, mode: str, baseline: str, rivals: Sequence[str]) -> None:
    for name, value, allowed in (
        ("by", by, ("units", "edges")),
        ("mode", mode, ("remove", "keep")),
        ("baseline", baseline, ("zero", "mean")),
    ):
        if value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    are_known = isinstance(rivals, Collection) and all(name in RIVALS for name in rivals)
    if isinstance(rivals, str) or not are_known or len(set(rivals)) != len(rivals):
        raise InputError(
            f"rivals must be a list of {', '.join(RIVALS)}, each once, found {rivals!r}"
        )


def _orders(
    net: Network,
    partitions: tuple[Partition, ...],
    order: Ranking,
    by: str,
    rivals: Sequence[str],
    inputs: ranking.Targeted,
) -> tuple[dict[str, Ranking], Ranking]:
    """Rankings by method, and all parts that there are."""
    rankings: dict[str, Ranking] = {CIRCUIT: order}
    if by == "units":
        scores = ranking.UnitScores(net, partitions, tuple(layer for (layer,) in order))
        if "activation" in rivals:
            rankings["activation"] = scores.activation(inputs)
        if "gradient_x_activation" in rivals:
            rankings["gradient_x_activation"] = scores.gradient_x_activation(inputs)
        return rankings, scores.everything()
    edges = ranking.EdgeScores(net, partitions, tuple((dst, src) for dst, src in order))
    candidates = {key: [rows] for key, rows in order.items()}
    for name, gradient in (("activation", False), ("gradient_x_activation", True)):
        if name not in rivals and (gradient or RANDOM not in rivals):
            continue
        ranked = {
            key: ranking.best_first(*scored, order[key])
            for key, scored in edges.scored(inputs, gradient).items()
        }
        if name in rivals:
            rankings[name] = ranked
        for key, rows in ranked.items():
            candidates[key].append(rows)
    return rankings, {
        key: np.unique(np.concatenate(rows), axis=0) for key, rows in candidates.items()
    }


def _name(topology: Topology, key: Key) -> str:
    return " -> ".join(topology.layers[layer].name for layer in reversed(key))
