"""Positions of texts: an aggregate knows them only where all its texts are of one length.

Position 3 of one prompt is not that of another, unless both follow one template.  Lengths are what
a store can tell; that prompts of one length are of one template is the caller's to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from nrm_graph.errors import InputError
from nrm_graph.network.text_positions import position_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from nrm_graph.network.topology import LayerInfo
    from nrm_graph.network.units import Partition
    from nrm_graph.store.read.reduced import RecordedNodes
    from nrm_graph.store.view import View

    Labels = npt.NDArray[np.integer]

_ADVICE = (
    "positions of different prompts are not the same thing: sum over them with by='auto' (each "
    "layer by 'feature' or 'head'), or choose prompts of one template with where="
)

_LENGTHS = (
    "SELECT min(len(tokens)), max(len(tokens)) FROM inputs JOIN chosen_texts USING (input_id)"
)


def shared_length(
    db: View,
    ids: npt.NDArray[np.integer],
    partitions: Sequence[Partition],
    nodes: RecordedNodes | None,
) -> int | None:
    """Return the tokens of every text of a group, where units tell their positions apart.

    Parameters
    ----------
    db : View
        The store.
    ids : ndarray of int64
        The inputs that are aggregated.
    partitions : sequence of Partition
        Units of every layer.
    nodes : RecordedNodes or None
        Nodes of reduced tables, which are the units then.

    Returns
    -------
    int or None
        None where no unit is of a position, or the store is not of texts.

    Raises
    ------
    InputError
        If units are of positions, and the texts are of different lengths.
    """
    if "language" not in db.meta or db._snapshot.fields.types.get("tokens") != "strings":
        return None
    length = int(db.meta["language"]["length"])
    units = [
        (layer, part.labels) for layer, part in zip(db.topology.layers, partitions, strict=True)
    ]
    if nodes is not None:
        units = [(layer.info, layer.labels) for layer in nodes.labels]
    by_position = (layer.name for layer, own in units if tells_positions(layer, own, length))
    name = next(by_position, None)
    if name is None:
        return None
    chosen = pa.table({"input_id": ids})
    ((least, most),) = db.sql(_LENGTHS, tables={"chosen_texts": chosen}).fetchall()
    if least is None:
        return None
    if least != most:
        raise InputError(
            f"the {len(ids):,} texts are of {least:,} to {most:,} tokens, and units of {name} are "
            f"of positions: {_ADVICE}"
        )
    return int(most)


def check_same_length(first: int | None, second: int | None) -> None:
    """Refuse to compare two groups position by position whose texts are of different lengths.

    Raises
    ------
    InputError
        If they are.
    """
    if first is not None and second is not None and first != second:
        raise InputError(
            f"the texts of the groups are of {first:,} and {second:,} tokens, and units are of "
            f"positions: {_ADVICE}"
        )


def position_notes(length: int | None) -> tuple[str, ...]:
    """Say what an aggregate by position takes for granted."""
    if length is None:
        return ()
    return (
        f"units are of positions: all texts are of {length:,} tokens, and a position is the same "
        "thing in each only if they follow one template",
    )


def tells_positions(layer: LayerInfo, labels: Labels, length: int) -> bool:
    """Whether units of a layer lie at some positions of a text and not at others."""
    return length > 1 and any(
        bool((labels != labels.take([0], axis)).any())
        for axis in position_axes(layer.shape, length)
    )
