"""What becomes of the output where an event's neurons are ablated in the running network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from nrm_graph.circuits.checks import check_count
from nrm_graph.errors import EventError, InputError
from nrm_graph.evaluate.ablation import Ablation, means, place_of
from nrm_graph.evaluate.held_out import (
    batches,
    check_outputs,
    logits_of,
    network_for,
    once,
    seeds,
    unablated,
)
from nrm_graph.events.conjunctions import expand
from nrm_graph.events.sets import And, Edge, Event, NeuronSet, Not, Or, checked
from nrm_graph.measures.measure import Measure
from nrm_graph.network.ir.input_spec import fitting, input_spec
from nrm_graph.network.units import Partition
from nrm_graph.progress import Progress
from nrm_graph.store.input_group import group
from nrm_graph.store.stored_measure import stored_measure
from nrm_graph.store.view import View
from nrm_graph.tables.html_tables import Description, HtmlTable, Tabular, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from nrm_graph.evaluate.held_out import Batch
    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.targets import Sought
    from nrm_graph.network.topology import Topology
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.store.input_group import InputGroup

    Masks = Mapping[int, npt.NDArray[np.bool_]]
    """Neurons to ablate, by layer, of the layer's shape."""

BASELINES = ("zero", "mean")

_SCHEMA = pa.schema(
    [
        ("input_id", pa.int64()),
        ("key", pa.string()),
        ("label", pa.string()),
        ("target", pa.int64()),
        ("logit", pa.float64()),
        ("ablated", pa.float64()),
        ("drop", pa.float64()),
        ("relevance", pa.float64()),
        ("relevance_x_logit", pa.float64()),
        ("predicted", pa.int64()),
        ("ablated_predicted", pa.int64()),
    ]
)


@dataclass(frozen=True, eq=False, repr=False)
class Ablated(Tabular):
    """The output with an event's neurons ablated, beside the relevance of the event.

    R x logit is no prediction of the drop.  It is the share of the logit that the network's own run
    sends through the neurons; the drop compares that run with another one, in which the layers
    above meet values that they never saw and may make up for them.  They agree where everything
    above is linear and without biases.

    Attributes
    ----------
    event : Event
        Whose neurons were ablated.
    baseline : str
        ``zero`` or ``mean``: what they get.
    factor : float
        What they keep of their difference from it.
    averaged : int
        Number of inputs that the means are over; 0 where the baseline is zero.
    neurons : mapping of str to int
        How many were ablated, by layer.
    table : pyarrow.Table
        One row per input: ``input_id``, ``key``, ``label`` (null of a measure), ``target`` (null of
        weights), ``logit`` of the network as it is, ``ablated``, ``drop`` (logit less ablated),
        ``relevance`` R of the event on the unit scale, ``relevance_x_logit``, and the largest
        output before and after: ``predicted``, ``ablated_predicted``.
    outputs, ablated_outputs : ndarray of float64, (inputs, outputs)
        All outputs, before and after.
    """

    event: Event
    baseline: str
    factor: float
    averaged: int
    neurons: Mapping[str, int]
    table: pa.Table
    outputs: npt.NDArray[np.float64]
    ablated_outputs: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.table)

    def _description(self) -> Description:
        names = ("logit", "ablated", "drop", "relevance_x_logit")
        logit, ablated, drop, share = (self.table[name].to_numpy().mean() for name in names)
        many = f" in {len(self):,} inputs, means" if len(self) > 1 else ""
        return Description(
            f"Ablated {self.event!r} {self._fate}{many}: logit {logit:.4g} -> {ablated:.4g}, drop "
            f"{drop:.4g}; R x logit {share:.4g}, which is no prediction of the drop"
        )

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        neurons = ", ".join(f"{count:,} of {layer}" for layer, count in self.neurons.items())
        columns = [name for name in self.table.column_names if name != "input_id"]
        return (table_of(self.table, columns, caption=f"Neurons ablated: {neurons}"),)

    @property
    def _fate(self) -> str:
        """What became of the neurons."""
        own = f"their mean over {self.averaged:,} inputs"
        if not self.factor:
            return f"set to {own if self.averaged else 'zero'}"
        kept = f"{self.factor:g} times"
        return (
            f"at {kept} their difference from {own}" if self.averaged else f"at {kept} their value"
        )

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table`."""
        return self.table


def ablate(
    source: View | Measure,
    event: Event,
    *,
    where: str | None = None,
    inputs: Sequence[str | int] | None = None,
    target: Sought | None = None,
    baseline: str = "zero",
    factor: float = 0.0,
    reference: str | Inputs | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Ablated:
    """Run the network with an event's neurons set to zero, to their mean, or scaled.

    What comes out stands beside R x logit of the event, which is *no* prediction of it; see
    :class:`Ablated`.

    Parameters
    ----------
    source : Database or Measure
        A store with its input tensors, of which every chosen input is run; or one input's measure.
    event : Event
        A set of neurons, such as ``ng.Layer("features.6")[15]``, or sets of several layers joined
        by ``&``, which are ablated all at once.  They are ablated where the rest of the network
        reads them: behind an activation that they alone feed.
    where : str, optional
        Of a store, a SQL condition over ``inputs`` that chooses those to run; by default all.
    inputs : sequence of key or input_id, optional
        Of these only these.
    target : int, tuple, mapping or str, optional
        Of these only the pairs of this target; by default each input has its own.
    baseline : "zero" or "mean"
        What the neurons get: 0, or each its own mean over ``reference``.
    factor : float
        What they keep of their difference from the baseline: 0 ablates, 0.5 halves, 2 doubles.
    reference : str, or tensors, optional
        What means are over: of a store a SQL condition over ``inputs``, by default all its inputs,
        every key once; of a measure, which knows of no other input, a batch ``(N, ...)`` for every
        input of the network.
    batch_size : int
        Inputs at once.
    device : str or torch.device
        Of a store, as in :func:`nrm_graph.measure`; a measure has its own.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead.

    Returns
    -------
    Ablated
        A table of one row per input, and all outputs before and after.

    Raises
    ------
    EventError
        If the event is no set of neurons (an edge, what is left out, one of several layers), or
        names what the network has not.
    InputError
        If an argument is unknown or does not belong to such a source, no input is chosen, the store
        keeps no tensors, or a layer cannot be ablated.
    StoreError
        If the store is damaged, or its network does not give the stored logits.

    Examples
    --------
    >>> import torch, nrm_graph as ng
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> m = ng.measure(net, torch.ones(1, 2), target=0)
    >>> ablated = ng.evaluate.ablate(m, ng.Layer("0")[:2])
    >>> ablated.neurons, len(ablated)
    ({'0': 2}, 1)
    """
    if baseline not in BASELINES:
        raise InputError(f"baseline must be one of {', '.join(BASELINES)}, found {baseline!r}")
    if isinstance(factor, bool) or not (isinstance(factor, Real) and math.isfinite(factor)):
        raise InputError(f"factor must be a finite number, found {factor!r}")
    check_count("batch_size", batch_size)
    if baseline == "zero" and reference is not None:
        raise InputError("reference is what means are over: pass baseline='mean' with it")
    event = checked(event)
    asked = _Asked(event, baseline, float(factor), batch_size)
    if isinstance(source, View):
        chosen = group(source, where, inputs=inputs, target=target, mixed_targets=True)
        return _of_store(source, chosen, asked, reference, device, progress)
    if not isinstance(source, Measure):
        raise InputError(
            "expected a database (ng.open) or a measure (db.measure, ng.measure), found "
            f"{type(source).__name__}"
        )
    if not (where is None and inputs is None and target is None and device == "cpu"):
        raise InputError(
            "where, inputs, target and device choose what of a store is run: of a measure leave "
            "them out, or pass the database"
        )
    return _of_measure(source, asked, reference)


def neurons_of(event: Event, topology: Topology, partitions: Sequence[Partition]) -> Masks:
    """Return the neurons that an event is a set of, by layer.

    Raises
    ------
    EventError
        If it is no set of neurons, or an empty one, or names what the network has not.
    """
    for part in event.parts if isinstance(event, And) else (event,):
        if not isinstance(part, NeuronSet):
            reason = next((text for kind, text in _REASONS if isinstance(part, kind)), "")
            raise EventError(f"{part!r} cannot be ablated: {reason or 'it is no set of neurons'}")
    terms = expand(event, topology, partitions)
    if not terms:
        raise EventError(f"{event!r} holds no neuron: there is nothing to ablate")
    ((_, clause),) = terms
    return {layer: literal.mask for layer, literal in clause.items()}


_REASONS: tuple[tuple[type[Event], str], ...] = (
    (
        Edge,
        "neurons are ablated for all their readers, and an edge is what one of them reads; name "
        "one of its ends, or take ng.evaluate.faithfulness(..., by='edges')",
    ),
    (
        Not,
        "what walks avoid is no set of neurons; within a layer write Layer('a')[:] - Layer('a')[3]",
    ),
    (
        Or,
        "sets of several layers are ablated together with &; within a layer | joins two sets",
    ),
)


@dataclass(frozen=True)
class _Asked:
    """What is ablated, and how."""

    event: Event
    baseline: str
    factor: float
    batch_size: int


def _ablation(
    asked: _Asked,
    net: Network,
    partitions: Sequence[Partition],
    reference: Callable[[], Iterable[Batch]],
) -> tuple[Ablation, Masks]:
    """Return a network with the event's neurons as unit 1 of their layers, and these."""
    masks = neurons_of(asked.event, net.layout.topology, partitions)
    parts = list(partitions)
    for layer, mask in masks.items():
        place_of(net, layer)  # refused before anything is computed
        parts[layer] = Partition("custom", mask.astype(np.int32), 2)
    baselines = means(net, tuple(masks), reference()) if asked.baseline == "mean" else None
    return Ablation(net, tuple(parts), baselines, asked.factor), masks


def _of_store(
    db: View,
    chosen: InputGroup,
    asked: _Asked,
    reference: object,
    device: str | torch.device,
    progress: bool,
) -> Ablated:
    """Ablate in the stored network, for each of some inputs."""
    if not (reference is None or isinstance(reference, str)):
        raise InputError(
            "of a store reference is a SQL condition over inputs, such as \"label = 'cat'\", found "
            f"{type(reference).__name__}"
        )
    net = network_for(db, chosen, device)
    averaged = once(group(db, reference, mixed_targets=True))
    ablation, masks = _ablation(
        asked, net, db.partitions, lambda: batches(db, net, averaged, asked.batch_size)
    )
    whole, ablated = [], []
    with Progress("ablation", len(chosen), "inputs", progress) as meter:
        for xs in batches(db, net, chosen, asked.batch_size):
            whole.append(unablated(net, xs))
            ablated.append(ablation.without_units(xs, {layer: {1} for layer in masks}))
        outputs = torch.cat(whole)
        check_outputs(net, chosen, outputs)
        relevance = []
        for identity in chosen.ids.tolist():
            relevance.append(stored_measure(db, identity, device=device)(asked.event))
            meter.advance()
    at = seeds(chosen, 0, len(chosen), outputs.shape[1])
    columns = {
        "input_id": chosen.ids,
        "key": chosen.keys,
        "label": chosen.labels,
        "target": [None if isinstance(aim, str) else aim for aim in chosen.aims],
        "relevance": np.array(relevance),
    }
    count = len(averaged) if asked.baseline == "mean" else 0
    return _result(asked, net, masks, count, (outputs, torch.cat(ablated)), at, columns)


def _of_measure(m: Measure, asked: _Asked, reference: object) -> Ablated:
    """Ablate in the network of a measure, for its input."""
    if m.condition is not None:
        raise InputError(
            "a conditioned measure is of walks, and what is ablated is the whole network: pass the "
            "measure without its condition"
        )
    if asked.baseline == "mean" and (reference is None or isinstance(reference, str)):
        raise InputError(
            "a measure knows of no other inputs to take means over: pass reference= a batch "
            "(N, ...) of them, or the database in place of the measure"
        )
    net = m.network
    xs = tuple(m.state.values[name] for name, _ in net.program.inputs)
    others: list[Tensor] = []
    if asked.baseline == "mean":
        spec, like = input_spec(net.program), m.state.output
        batch = fitting(net.program, reference)  # type: ignore[arg-type]  # it is checked there
        others = [spec.cast(k, x, like.dtype).to(like.device) for k, x in enumerate(batch.values())]
    size, count = asked.batch_size, len(others[0]) if others else 0
    ablation, masks = _ablation(
        asked,
        net,
        m.partitions,
        lambda: (tuple(x[i : i + size] for x in others) for i in range(0, count, size)),
    )
    ablated = ablation.without_units(xs, {layer: {1} for layer in masks})
    columns: dict[str, Any] = {"input_id": [None], "key": [None], "label": [None]}
    columns["target"] = [m.target]
    columns["relevance"] = np.array([replace(m, scale=1.0)(asked.event)])
    return _result(asked, net, masks, count, (m.state.output, ablated), m.weights, columns)


def _result(
    asked: _Asked,
    net: Network,
    masks: Masks,
    averaged: int,
    runs: tuple[Tensor, Tensor],
    at: Tensor,
    columns: Mapping[str, Any],
) -> Ablated:
    """Put together outputs before and after, what is explained of them, and relevances."""
    whole, ablated = (outputs.cpu().double() for outputs in runs)
    logit, rest = (logits_of(outputs, at.cpu()).numpy() for outputs in (whole, ablated))
    computed = {
        "logit": logit,
        "ablated": rest,
        "drop": logit - rest,
        "relevance_x_logit": columns["relevance"] * logit,
        "predicted": whole.argmax(1).numpy(),
        "ablated_predicted": ablated.argmax(1).numpy(),
    }
    rows = {**columns, **computed}
    return Ablated(
        asked.event,
        asked.baseline,
        asked.factor,
        averaged,
        {net.layout.topology.layers[i].name: int(mask.sum()) for i, mask in masks.items()},
        pa.table({name: rows[name] for name in _SCHEMA.names}, schema=_SCHEMA),
        whole.numpy(),
        ablated.numpy(),
    )
