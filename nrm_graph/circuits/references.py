"""Reference inputs of a unit: where it is most relevant or active, and what it reads there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.errors import EventError, InputError, UndefinedConditional
from nrm_graph.events.sets import NeuronSet
from nrm_graph.progress import Progress
from nrm_graph.store.input_group import WEIGHTS, group
from nrm_graph.store.measure import measure
from nrm_graph.tables.html_tables import Description, HtmlTable, Picture, Tabular, table_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from nrm_graph.measures.measure import Measure
    from nrm_graph.store.input_group import InputGroup
    from nrm_graph.store.view import View

PICTURES = 12
"""Heat maps at most that a notebook shows in a table."""
RANKINGS = ("relevance", "activation")
BOX = pa.struct([(name, pa.int32()) for name in ("top", "left", "bottom", "right")])
_SCHEMA = pa.schema(
    [
        ("input_id", pa.int64()),
        ("key", pa.string()),
        ("label", pa.string()),
        ("target", pa.int64()),
        ("relevance", pa.float64()),
        ("activation", pa.float64()),
        ("box", BOX),
        ("held", pa.float64()),
        ("amplification", pa.float64()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False, repr=False)
class References(Tabular):
    r"""The inputs for which a set of neurons is most relevant, or most active.

    Attributes
    ----------
    event : NeuronSet
        The set.
    by : str
        What they are ranked by: ``relevance`` or ``activation``.
    weight : str
        ``unit``, or ``logit`` where ``relevance`` is R times the input's logit.
    where : str or None
        SQL condition over ``inputs`` that chose those that were ranked.
    inputs : int
        Number of keys that were ranked.
    share : float or None
        Share of the positive conditional relevance that a box holds at least.
    table : pyarrow.Table
        One row per input, the first in rank first: ``input_id``, ``key``, ``label``, ``target``
        (null of weights), ``relevance`` (of the set, 0 where the store has no row),
        ``activation`` (mean over the set's neurons), ``box`` (``top``, ``left``, ``bottom``,
        ``right``: rows top to bottom - 1 and columns left to right - 1 of the input), ``held``
        (share of the positive conditional relevance inside of the box), ``amplification`` (of
        rounding, by the condition) and ``reason`` (why there is no box, else null).
    images : tuple of ndarray or None
        The stored input of each row, (H, W) or (H, W, C), as the network takes it; None where
        it is no image.
    heatmaps : tuple of ndarray of float64, (H, W), or None
        R(input neuron given the set), summed over the channels: signed, and exact.  None where
        it is undefined.
    classes : tuple of str or None
        Names of the outputs, where the store has them.
    name : str or None
        Name that the user gave the unit which the set is.
    """

    event: NeuronSet
    by: str
    weight: str
    where: str | None
    inputs: int
    share: float | None
    table: pa.Table
    images: tuple[npt.NDArray[Any] | None, ...]
    heatmaps: tuple[npt.NDArray[np.float64] | None, ...]
    classes: tuple[str, ...] | None = None
    name: str | None = None

    @property
    def event_text(self) -> str:
        """The set as text, with the name of its unit in front, where it has one."""
        return repr(self.event) if self.name is None else f"{self.name} ({self.event!r})"

    def __len__(self) -> int:
        return len(self.table)

    def _description(self) -> Description:
        inputs = f"{len(self)} of {self.inputs:,} inputs"
        return Description(f"{inputs} by {self.by} of {self.event_text}")

    def _html_tables(self) -> tuple[HtmlTable, ...]:
        table = table_of(self.table, [n for n in self.table.column_names if n != "input_id"])
        maps = self.heatmaps[: len(table.rows)]
        if all(heat is None for heat in maps):
            return (table,)
        from nrm_graph.plots.gallery import heat_map

        pictures = [
            None if heat is None else Picture(heat_map(heat), "heat map")
            for heat in maps[:PICTURES]
        ]
        pictures += [None] * (len(table.rows) - len(pictures))
        rows = tuple((*row, cell) for row, cell in zip(table.rows, pictures, strict=True))
        return (replace(table, columns=(*table.columns, "R(pixel given it)"), rows=rows),)

    def to_arrow(self) -> pa.Table:
        """Return :attr:`table`."""
        return self.table


def references(
    db: View,
    event: NeuronSet,
    *,
    k: int = 9,
    by: str = "relevance",
    where: str | None = None,
    weight: str = "unit",
    share: float | None = 0.5,
) -> References:
    r"""Find the inputs for which a set of neurons is most relevant, or most active.

    Inputs of the largest activation show what the set detects; those of the largest relevance
    show what the network uses it for [1]_.  Both are ranked by the tables of the store.

    Parameters
    ----------
    db : Database
        The store.
    event : NeuronSet
        Neurons of one layer that make up whole units of the store, such as
        ``ng.Layer("features.28")[12]``.
    k : int
        Number of inputs.
    by : "relevance" or "activation"
        Rank by R(event), the sum over the set's units; or by the mean activation of its neurons.
    where : str, optional
        SQL condition over ``inputs``, such as ``"label = 'cat'"``; all by default.  Relevance is
        that of each input's own target: ``"target = 3"`` keeps to one.
    weight : "unit" or "logit"
        With ``logit``, relevance is R times the input's logit, so that confident decisions come
        first.
    share : float, optional
        The region of an input is the smallest box that holds at least this share, over 0 and at
        most 1, of the positive conditional relevance: see Notes.  None finds no regions, which
        needs neither torch nor stored inputs.

    Returns
    -------
    found : References
        ``table``, ``images`` and ``heatmaps``; :func:`nrm_graph.plots.plot_references` draws them.

    Raises
    ------
    EventError
        If the event is no set of neurons of one layer, is empty, or divides units of the store.
    InputError
        If an argument is unknown, no input is chosen, or the store keeps no tensors.
    QueryError
        If ``where`` is not one SQL condition over ``inputs``.

    Notes
    -----
    A key with several targets is ranked once, with the target of its largest value.  Absent rows
    are zeros, so that an input in which the set does nothing has its place behind those in which
    it does something.  Ties go to the smaller key.

    R(pixel given the set) is computed from the stored program, at the neuron level whatever the
    store's resolution.  Of its positive part a box of h rows and w columns is chosen that holds
    at least ``share`` and of which h * w is least; among several, the one that holds most, then
    the topmost and leftmost.  Where R(set) is negative, positive conditional relevance is what made
    it so.  Where R(set) is below rounding the conditional is undefined, and ``reason`` says so in
    place of a box.

    References
    ----------
    .. [1] R. Achtibat et al., "From attribution maps to human-understandable explanations through
       Concept Relevance Propagation", Nature Machine Intelligence 5 (2023): reference samples by
       relevance maximization and by activation maximization.
    """
    _check(k, by, weight, share)
    layer_id, units, sizes = whole_units(db, event)
    chosen = group(db, where, mixed_targets=True)
    relevance, activation = _values(db, chosen, layer_id, units, sizes)
    relevance = relevance * chosen.weights(weight)
    ranked = _ranked(chosen, relevance if by == "relevance" else activation)
    rows: list[dict[str, Any]] = []
    images, maps, aims = [], [], chosen.aims
    with Progress("references", len(ranked[:k]), "inputs") as meter:
        for i in meter.over(ranked[:k]):
            row: dict[str, Any] = {
                "input_id": int(chosen.ids[i]),
                "key": chosen.keys[i],
                "label": chosen.labels[i],
                "target": aims[i] if isinstance(aims[i], int) else None,
                "relevance": float(relevance[i]),
                "activation": float(activation[i]),
            }
            image, heat = None, None
            if share is not None:
                m = measure(db, row["input_id"])
                image = _image(m)
                heat = _region(m, event, share, row)
            rows.append(row)
            images.append(image)
            maps.append(heat)
    table = pa.Table.from_pylist(rows, _SCHEMA)
    return References(
        event,
        by,
        weight,
        where,
        len(ranked),
        share,
        table,
        tuple(images),
        tuple(maps),
        db.classes,
        db.partitions[layer_id].names.get(int(units[0])) if len(units) == 1 else None,
    )


def box(positive: npt.NDArray[np.float64], share: float) -> tuple[int, int, int, int]:
    """Return the smallest box that holds a share of the sum of an array.

    Parameters
    ----------
    positive : ndarray, (H, W)
        Numbers of at least 0, not all 0.
    share : float
        Over 0, at most 1.

    Returns
    -------
    top, left, bottom, right : int
        The box is ``positive[top:bottom, left:right]``; see :func:`references` for ties.

    Examples
    --------
    >>> import numpy as np
    >>> box(np.array([[1.0, 0, 0, 0], [0, 0, 4, 5]]), 0.9)
    (1, 2, 2, 4)
    """
    height, width = positive.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = positive.cumsum(0).cumsum(1)
    # Less a rounding of the sums, so that a share of 1 finds what holds everything.
    need = share * sums[-1, -1] * (1.0 - 1e-12)
    best: tuple[Any, ...] = (math.inf,)
    w = width
    for h in range(1, height + 1):
        inside = _windows(sums, h, w)
        if inside.max() < need:
            continue
        # More rows never need more columns.
        while w > 1 and (narrower := _windows(sums, h, w - 1)).max() >= need:
            w, inside = w - 1, narrower
        top, left = np.unravel_index(int(inside.argmax()), inside.shape)
        best = min(best, (h * w, -float(inside.max()), top, left, h, w))
    _, _, top, left, rows, columns = best
    return int(top), int(left), int(top + rows), int(left + columns)


def _windows(sums: npt.NDArray[np.float64], h: int, w: int) -> npt.NDArray[np.float64]:
    """Sum of every box of h rows and w columns, from cumulative sums."""
    return sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]


def _check(k: object, by: object, weight: object, share: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k must be a number of inputs, at least 1, found {k!r}")
    if not isinstance(by, str) or by not in RANKINGS:
        raise InputError(f"by must be 'relevance' or 'activation', found {by!r}")
    if not isinstance(weight, str) or weight not in WEIGHTS:
        raise InputError(f"weight must be 'unit' or 'logit', found {weight!r}")
    number = isinstance(share, Real) and not isinstance(share, bool)
    if share is not None and not (number and 0 < share <= 1):  # type: ignore[operator]
        raise InputError(f"share must be over 0 and at most 1, or None, found {share!r}")


def whole_units(db: View, event: object) -> tuple[int, npt.NDArray[Any], npt.NDArray[Any]]:
    """Layer, units and numbers of neurons of a set that is made of whole units of a store.

    Raises
    ------
    EventError
        If it is no set of neurons of one layer, is empty, or divides units of the store.
    """
    if not isinstance(event, NeuronSet):
        raise EventError(
            f"expected neurons of one layer such as ng.Layer('conv1')[3], found {event!r}"
        )
    info = db.topology.layer(event.layer)
    part = db.partitions[info.layer_id]
    mask = event.mask(info.shape, part)
    if not mask.any():
        raise EventError(f"{event!r} holds no neuron of layer {info.name}, of shape {info.shape}")
    inside = np.bincount(part.labels[mask], minlength=part.n_units)
    sizes = np.bincount(part.labels.ravel(), minlength=part.n_units)
    (units,) = np.nonzero(inside)
    divided = units[inside[units] < sizes[units]]
    if len(divided):
        # Its relevance would take a pass through the network for every input of the store.
        raise EventError(
            f"{event!r} divides {part.resolution} {divided[0]} of {info.name}, of which the store "
            f"holds only the whole; name whole units, extract with resolution={{{info.name!r}: "
            "'neuron'}, or db.materialize(...) the event and rank its table of inputs"
        )
    return info.layer_id, units, sizes[units]


def _values(
    db: View,
    chosen: InputGroup,
    layer_id: int,
    units: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Relevance and mean activation of a set, (N,) each, in the order of the group."""
    members = pa.table({"unit": units.astype(np.int32), "neurons": sizes.astype(np.float64)})
    sums = db.sql(
        "SELECT input_id, sum(CAST(relevance AS DOUBLE)) AS relevance, "
        "sum(CAST(activation AS DOUBLE) * neurons) AS activation "
        "FROM nodes JOIN members USING (unit) WHERE layer_id = ? GROUP BY input_id",
        inputs=None if chosen.where is None else chosen.ids.tolist(),
        params=[layer_id],
        tables={"members": members},
    ).to_arrow_table()
    place = np.searchsorted(chosen.ids, sums["input_id"].to_numpy())
    columns = []
    for name in ("relevance", "activation"):
        values = np.zeros(len(chosen))
        values[place] = sums[name].to_numpy()
        columns.append(values)
    return columns[0], columns[1] / sizes.sum()


def _ranked(chosen: InputGroup, values: npt.NDArray[np.float64]) -> list[int]:
    """Places in the group from the largest value down, each key once."""
    order = sorted(
        range(len(chosen)), key=lambda i: (-values[i], chosen.keys[i], chosen.targets[i])
    )
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(chosen.keys[i], i)
    return list(first.values())


def _channel_axis(m: Measure, axes: int) -> int:
    info = m.topology.inputs[0]
    last = m.partitions[info.layer_id].resolution in ("feature", "token")
    return axes - 1 if last else 0


def _image(m: Measure) -> npt.NDArray[Any] | None:
    """Return the stored input with its channels last, or None where it is no image."""
    if (info := m.topology.inputs[0]).kind != "input":  # an embedding of token ids
        return None
    name = info.name
    values: npt.NDArray[Any] = m.state.values[name][0].cpu().numpy()
    if values.ndim == 3:
        return np.moveaxis(values, _channel_axis(m, 3), -1)
    return values if values.ndim == 2 else None


def _region(
    m: Measure, event: NeuronSet, share: float, row: dict[str, Any]
) -> npt.NDArray[np.float64] | None:
    """Heat map of a measure given a set; the row gets its box, or the reason for having none."""
    info = m.topology.inputs[0]
    if info.kind != "input" or len(info.shape) not in (2, 3):
        row["reason"] = f"the {info.kind} {info.name} of shape {info.shape} is no image"
        return None
    try:
        conditional = m.given(event)
    except UndefinedConditional as error:
        row["reason"] = str(error)
        return None
    row["amplification"] = float(conditional.amplification)
    heat: npt.NDArray[np.float64] = conditional.marginal(info.name, by="neuron").astype(np.float64)
    if heat.ndim == 3:
        heat = heat.sum(_channel_axis(m, 3))
    positive = np.maximum(heat, 0.0)
    if not positive.any():
        row["reason"] = "no pixel has positive conditional relevance"
        return heat
    top, left, bottom, right = box(positive, share)
    row["box"] = {"top": top, "left": left, "bottom": bottom, "right": right}
    row["held"] = float(positive[top:bottom, left:right].sum() / positive.sum())
    return heat
