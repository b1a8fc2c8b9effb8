"""Flows: the strongest units of chosen layers and the joint relevance between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError
from nrm_graph.events.sets import And, Layer, NeuronSet
from nrm_graph.plots.canvas import Canvas, LayerColumn, label
from nrm_graph.plots.common import heading, new_axes, notes, report_rows, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from nrm_graph.plots.common import ReportRow
    from nrm_graph.plots.protocols import MeasureLike

_COLUMNS = 8  # so many layers are drawn unless they are named


def plot_flow(
    m: MeasureLike,
    ax: Axes | None = None,
    *,
    layers: Sequence[str] | None = None,
    top: int = 8,
    edges: Mapping[tuple[str, str], npt.ArrayLike] | None = None,
    units: Mapping[str, Sequence[int]] | None = None,
    images: Mapping[tuple[str, int], npt.ArrayLike] | None = None,
) -> Axes:
    r"""Draw the strongest units of chosen layers and the relevance that passes through pairs.

    Parameters
    ----------
    m : Measure
        The measure, conditioned or not.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; by default those of a new figure, whose size follows the columns.
    layers : sequence of str, optional
        Layers to draw; columns stand in execution order from the input (left) to the output.
        By default all, or 8 of them evenly apart.
    top : int
        Number of units of a layer, those with the largest \|relevance\|.
    edges : mapping of (layer, layer) to array_like, optional
        Joint relevance of all units of the first layer (rows) and of the second (columns), for
        neighbouring columns in either order.  By default ``m.joint`` computes it for the
        units drawn; with a mapping, pairs that it lacks have no links.
    units : mapping of layer to sequence of int, optional
        Units to draw of the layers named, instead of the strongest.
    images : mapping of (layer, unit) to array_like, optional
        Maps (H, W) of signed numbers that are shown at their units, such as the heat map of a
        measure given the unit; each is coloured on its own scale, centred at zero.  Fine maps
        are shown as sums over blocks.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; ``ax.figure.savefig`` writes the picture.

    Raises
    ------
    InputError
        If a layer, unit, array or ``top`` does not fit the measure.

    Notes
    -----
    Areas of circles and squares are proportional to \|relevance\| on one scale; vermillion is
    positive, blue negative.  The circles of a column, with the pale one for the units not drawn,
    add up to the share below the layer's name.  The grey square is what the layer, and layers
    skipped between it and the next column to the left, absorb: where no walk bypasses a column,
    a column's share less its square is the share of the column to its left.  Links are exact
    joint relevances of two units, never products of edges; their widths grow as the diameters of
    circles do, and the strongest of each pair of columns are the most opaque.  A black ring marks
    a unit that the measure's condition names.

    References
    ----------
    .. [1] P. Xiong et al., "Normalized Relevance Measure as a Unifying Framework to Explain
       Neural Network Latent Structures", arXiv:2606.00557 (2026).

    Examples
    --------
    >>> import torch, nrm_graph as ng
    >>> from nrm_graph.plots import plot_flow
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> m = ng.measure(net, torch.ones(3), target=0)
    >>> ax = plot_flow(m)
    >>> [label.get_text().split()[0] for label in ax.get_xticklabels()]
    ['input', '0', '2']
    """
    rows = report_rows(m)
    whole = total(rows)
    columns = _columns(m, rows, layers, top, units)
    links = _links(m, columns, edges)
    maps = _images(m, columns, images)
    floor = 0.65 if maps else 1.2
    _arrange(columns, links, floor)
    is_new = ax is None
    if ax is None:
        height = max(len(column.heights) + (column.more > 0) for column in columns)
        step = 0.8 if maps else 0.4
        ax = new_axes(1.1 + 1.25 * max(len(columns), 3), 1.9 + step * max(height, 3))
    label(ax, columns, whole, heading(m, "flow of relevance"), notes(m), is_new)
    canvas = Canvas(ax, columns, whole, maps, links)
    canvas.draw_links()
    canvas.draw_units(m, _conditioned(m, columns))
    canvas.draw_lost()
    return ax


# What to draw


def _columns(
    m: MeasureLike,
    rows: Sequence[ReportRow],
    layers: Sequence[str] | None,
    top: int,
    units: Mapping[str, Sequence[int]] | None,
) -> list[LayerColumn]:
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"top must be at least 1, found {top!r}")
    all_layers = m.topology.layers
    if layers is None:
        picked = np.unique(
            np.linspace(0, len(all_layers) - 1, min(_COLUMNS, len(all_layers))).round()
        )
        chosen = [all_layers[int(i)] for i in picked]
    elif isinstance(layers, str):
        raise InputError(f"layers must be a list of names, found {layers!r}")
    else:
        chosen = sorted((m.topology.layer(name) for name in layers), key=lambda i: i.layer_id)
    if not chosen:
        raise InputError("there is nothing to draw: layers is empty")
    if len({info.layer_id for info in chosen}) < len(chosen):
        raise InputError(f"layers names one layer twice: {', '.join(map(str, layers or ()))}")
    if units is not None and not isinstance(units, Mapping):
        raise InputError(f"units must be a mapping of layer to units, found {units!r}")
    named = {}
    for name, ids in (units or {}).items():
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise InputError(f"units of {name} must be a list, found {ids!r}")
        named[m.topology.layer(name).layer_id] = list(ids)
    for layer_id in named.keys() - {info.layer_id for info in chosen}:
        raise InputError(
            f"units names {all_layers[layer_id].name}, which is not among the layers drawn"
        )
    reports = {row.layer: row for row in rows}
    columns = []
    for below, info in zip([None, *chosen], chosen, strict=False):
        relevance = np.asarray(m.marginal(info.name), dtype=np.float64)
        shown = named.get(info.layer_id)
        if shown is None:
            order = np.argsort(-np.abs(relevance), kind="stable")[: int(top)]
            shown = [int(i) for i in order if relevance[i] != 0]
        for unit in shown:
            if not isinstance(unit, int | np.integer) or not 0 <= unit < len(relevance):
                raise InputError(
                    f"layer {info.name} has units 0 to {len(relevance) - 1}, found {unit!r}"
                )
        shown = list(dict.fromkeys(int(unit) for unit in shown))
        layer_sum = reports[info.name].sum
        floor = -1 if below is None else below.layer_id
        lost = sum(reports[e.name].absorbed for e in all_layers[floor + 1 : info.layer_id + 1])
        values = relevance[shown]
        more = int(np.count_nonzero(relevance)) - int(np.count_nonzero(values))
        columns.append(
            LayerColumn(info, shown, values, layer_sum, lost, more, layer_sum - float(values.sum()))
        )
    return columns


def _links(
    m: MeasureLike,
    columns: list[LayerColumn],
    edges: Mapping[tuple[str, str], npt.ArrayLike] | None,
) -> list[npt.NDArray[np.float64] | None]:
    """Joint relevance of the units drawn, (units to the left, units to the right), by pair."""
    if edges is not None and not isinstance(edges, Mapping):
        raise InputError(f"edges must be a mapping of pairs of layers, found {edges!r}")
    matrices: dict[tuple[int, ...], npt.ArrayLike] = {}
    for names, values in (edges or {}).items():
        if not isinstance(names, tuple) or len(names) != 2:
            raise InputError(f"edges needs pairs of layers as keys, found {names!r}")
        matrices[tuple(m.topology.layer(name).layer_id for name in names)] = values
    joints: list[npt.NDArray[np.float64] | None] = []
    for left, right in itertools.pairwise(columns):
        key = left.layer.layer_id, right.layer.layer_id
        if edges is None:
            if not left.units or not right.units:
                joints.append(None)
                continue
            sets = [Layer(column.layer.name).units(column.units) for column in (left, right)]
            joint = m.joint(*sets)  # of the units drawn alone: far fewer passes
            ids = [joint.rows.units.tolist(), joint.columns.units.tolist()]
            values = np.asarray(joint.values, dtype=np.float64)
        else:
            matrix = matrices.pop(key, None)
            if matrix is None and (turned := matrices.pop(key[::-1], None)) is not None:
                matrix = np.asarray(turned, dtype=np.float64).T
            if matrix is None:
                joints.append(None)
                continue
            values = np.asarray(matrix, dtype=np.float64)
            ids = [list(range(m.partitions[i].n_units)) for i in key]
            if values.shape != (len(ids[0]), len(ids[1])):
                raise InputError(
                    f"the joint relevance of {left.layer.name} and {right.layer.name} must have "
                    f"one row and one column per unit, {len(ids[0])} and {len(ids[1])}; found "
                    f"{values.shape}"
                )
        places = [{unit: i for i, unit in enumerate(axis)} for axis in ids]
        padded = np.pad(values, ((0, 1), (0, 1)))  # units that the matrix leaves out hold 0
        at = [
            [place.get(unit, -1) for unit in column.units]
            for place, column in zip(places, (left, right), strict=True)
        ]
        joints.append(padded[np.ix_(*at)])
    if matrices:
        pair = " and ".join(m.topology.layers[i].name for i in next(iter(matrices)))
        raise InputError(f"edges names {pair}, which are not neighbouring columns")
    return joints


def _images(
    m: MeasureLike,
    columns: list[LayerColumn],
    images: Mapping[tuple[str, int], npt.ArrayLike] | None,
) -> dict[tuple[int, int], npt.NDArray[np.float64]]:
    """Return the maps of drawn units, by layer id and unit."""
    drawn = {(column.layer.layer_id, unit) for column in columns for unit in column.units}
    maps = {}
    for key, values in (images or {}).items():
        if not isinstance(key, tuple) or len(key) != 2:
            raise InputError(f"images needs (layer, unit) as keys, found {key!r}")
        name, unit = key
        place = m.topology.layer(name).layer_id, int(unit)
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or not array.size:
            raise InputError(
                f"the image of {name}[{unit}] must have the shape (H, W), found {array.shape}"
            )
        if place in drawn:  # those of weaker units are left out
            maps[place] = array
    return maps


def _arrange(
    columns: list[LayerColumn], links: list[npt.NDArray[np.float64] | None], floor: float
) -> None:
    """Heights of the units: from the top by relevance, or near what they are linked to.

    A row is 1 high; the squares stand at 0, the lowest row at ``floor``.
    """
    tallest = max(len(column.units) + (column.more > 0) for column in columns)
    for i in reversed(range(len(columns))):
        column = columns[i]
        order = np.argsort(-np.abs(column.values), kind="stable")
        joint = links[i] if i < len(links) else None
        if joint is not None and np.abs(joint).sum() > 0 and len(columns[i + 1].units) > 1:
            right = columns[i + 1]
            weights = np.abs(joint)
            pulls = weights @ [right.heights[unit] for unit in right.units]
            order = np.argsort(-pulls / np.maximum(weights.sum(1), 1e-300), kind="stable")
        count = len(column.units) + (column.more > 0)
        top = floor + (tallest + count) / 2.0 - 0.5  # in the middle
        column.heights = {column.units[k]: top - rank for rank, k in enumerate(order)}
        column.beneath = top - len(column.units)


def _conditioned(m: MeasureLike, columns: list[LayerColumn]) -> set[tuple[int, int]]:
    """Units that the measure's condition names, as (column, unit)."""
    sets = m.condition.parts if isinstance(m.condition, And) else (m.condition,)
    ringed = set()
    for part in sets:
        if not isinstance(part, NeuronSet):
            continue
        info = m.topology.layer(part.layer)
        partition = m.partitions[info.layer_id]
        ids = np.unique(partition.labels[part.mask(info.shape, partition)]).tolist()
        for x, column in enumerate(columns):
            if column.layer == info:
                ringed |= {(x, unit) for unit in column.units if unit in ids}
    return ringed
