"""The command about the reduced graph of one input: ``reduce``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import (
    EXPRESSIONS,
    FILE,
    GRAPH_FORMATS,
    command,
    given,
    measured,
    reduction,
    store,
    weights,
)
from nrm_graph.cli.output import print_notes, save_graph, write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from nrm_graph.measures.reduced.reduced import Reduced
    from nrm_graph.network.unit_names import UnitKind

_COLUMNS = """\
share: what its nodes hold of the layer's sum of |relevance|; bias, stabilizer, remainder, input:
what ends there before a next node; into, out_of: by how much relevance and steps differ, at most"""
SHOWN = 20
"""Steps that are printed."""


@command(
    'nrm-graph reduce relevance.nrm --input cat.png --watch "layer?.?" --nodes 100',
    EXPRESSIONS,
    GRAPH_FORMATS,
)
@store
@reduction
@given
@measured
@weights
@click.option("--output", type=FILE, metavar="FILE", help="write the graph here")
def reduce(
    store: str,
    watch: tuple[str, ...],
    by: str | dict[str, str],
    nodes: int | dict[str, int] | None,
    given: str | None,
    key: str,
    target: str | None,
    weights: tuple[str, ...],
    output: str | None,
) -> None:
    """Show exact steps between chosen neurons of one input, whatever lies between them.

    Of every walk only its visits to the watched neurons count: a step holds the walks from one to
    the next, and an end those that visit no further one. Without --watch the layers that people
    think in are watched. The report says what every layer holds and keeps; below it stand the
    strongest steps and ends. A picture (.svg, .png) holds the strongest steps that make a connected
    graph, every other file all of them. Of an image a page (.html) shows it, and the heat map of
    every unit.
    """
    from nrm_graph.graphs.formats import PICTURES, graph_path

    path = None if output is None else graph_path(output)
    condition = None if given is None else arguments.event(given)
    chosen = arguments.watched(watch) or "auto"

    from nrm_graph import database
    from nrm_graph.measures.reduced.reduced import PICTURED
    from nrm_graph.network.target_texts import read_target

    with database.open(store, weights=weights or None) as db:
        m = db.measure(key, target=read_target(target, db.classes, db.outputs))
        if condition is not None:
            m = m.given(condition)
        reduced = m.reduced(chosen, by, nodes)
        if path is not None:
            shown: dict[str, Any] = {}
            if path.suffix.lower() == ".html":
                shown = {"image": reduced.image, "images": reduced.maps()}
            facts = {"store": db.path.name, "input": key}
            is_picture = path.suffix.lower() in PICTURES
            graph = reduced.graph(PICTURED if is_picture else None)
            save_graph(graph, path, facts=facts, **shown)
        write_table(reduced.report(), "table")
        print(_COLUMNS)
        print()
        write_table(_strongest(reduced), "table")
        print_notes(m.flags)


def _strongest(reduced: Reduced) -> pa.Table:
    """Return the strongest steps and ends, their units by name."""
    import pyarrow as pa

    from nrm_graph.graphs.largest import largest

    rows = pa.concat_tables([reduced.edges, reduced.ends])
    kinds = reduced.kinds
    sizes = abs(rows["relevance"].to_numpy())
    shown: list[dict[str, Any]] = [
        {
            "src": _end(reduced, kinds[row["src_layer"]], row["src_layer"], row["src_unit"]),
            "dst": _end(reduced, kinds[row["dst_layer"]], row["dst_layer"], row["dst_unit"]),
            "relevance": row["relevance"],
            "conditional": row["conditional"],
        }
        for row in rows.take(largest(sizes, SHOWN)).to_pylist()
    ]
    return pa.Table.from_pylist(shown)


def _end(reduced: Reduced, kind: UnitKind, layer_id: int, unit: int) -> str:
    """Write an end of a step: as an expression that names its neurons, with its token or class."""
    from nrm_graph.network.topology import PSEUDO_UNITS
    from nrm_graph.network.unit_coordinates import written
    from nrm_graph.network.unit_names import stands_for

    if unit < 0:
        return f"({PSEUDO_UNITS[unit]})"
    layer = reduced.topology.layers[layer_id]
    text = stands_for(layer, kind, unit, reduced.measure.tokens)
    part = "" if kind.spelled else "part of "
    return f"{part}{written(layer, kind, unit)}" + ("" if text is None else f" {text!r}")
