"""The commands about one input: ``relevance``, ``paths`` and ``subgraph``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import (
    EXPRESSIONS,
    FILE,
    GRAPH_FORMATS,
    command,
    connected,
    given,
    measured,
    most,
    store,
    table,
    top,
    units,
    weights,
)
from nrm_graph.cli.output import (
    one_line,
    print_facts,
    print_notes,
    save_graph,
    table_format,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure


@command(
    "nrm-graph relevance relevance.nrm --input cat.png \\\n"
    '      "features.28[12] & features.21[3]"',
    EXPRESSIONS,
)
@store
@click.argument("expression", metavar="EXPR")
@click.option("--save-event", type=FILE, metavar="FILE", help="write the event as JSON")
@given
@measured
@weights
@table
def relevance(
    store: str,
    expression: str,
    save_event: str | None,
    given: str | None,
    key: str,
    target: str | None,
    weights: tuple[str, ...],
    form: str | None,
    output: str | None,
) -> None:
    """Show the exact relevance of an event for one input."""
    from nrm_graph.output_files import in_folder

    table_format(form, output)
    if save_event is not None:
        in_folder(Path(save_event))
    event = arguments.event(expression)
    condition = None if given is None else arguments.event(given)

    import pyarrow as pa

    from nrm_graph import database
    from nrm_graph.cli import overview
    from nrm_graph.events.serialization import to_json

    with database.open(store, weights=weights or None) as db:
        m = _measure(db, key, target)
        value = m(event, given=condition)
        if m.target is not None:
            several = isinstance(m.outputs.place(m.target), tuple)
            named = m.outputs.text(m.target) if several else m.target
        row = {
            "input": key,
            "target": target if m.target is None else named,
            "logit": m.logit,
            "event": repr(event),
        }
        if condition is not None:
            row |= {"given": repr(condition)}
            row |= {name: getattr(value, name, None) for name in ("error", "amplification")}
        row["relevance"] = float(value)
        row["absorbed"] = float(getattr(value, "absorbed", m.absorbed))
        if save_event is not None:
            write_json(to_json(event), save_event)
        if output is None and form is None:
            meanings = overview.ANSWERED if condition is None else overview.CONDITIONED
            print_facts(overview.answer(row, m), meanings)
        else:
            write_table(pa.Table.from_pylist([row]), form, output)
        print_notes(m.flags)


def _measure(db: Database, key: str, target: str | None) -> Measure:
    """Measure of the input and target that are named."""
    from nrm_graph.network.target_texts import read_target

    return db.measure(key, target=read_target(target, db.classes, db.outputs))


@command(
    "nrm-graph paths relevance.nrm --input cat.png --k 20 \\\n"
    "      --layers features.28,features.21",
    EXPRESSIONS,
)
@store
@click.option(
    "--layers",
    metavar="A,B,...",
    type=arguments.names,
    help="layers to pass (those that every walk passes)",
)
@most("paths", 10)
@click.option(
    "--by",
    type=click.Choice(("unit", "neuron", "channel", "feature", "token", "head")),
    default="unit",
    help="what a step of a path is: the store's unit, or another",
)
@given
@measured
@weights
@table
def paths(
    store: str,
    layers: list[str] | None,
    k: int,
    by: str,
    given: str | None,
    key: str,
    target: str | None,
    weights: tuple[str, ...],
    form: str | None,
    output: str | None,
) -> None:
    """Show the strongest walks of one input through given layers, with their exact relevance.

    The last line says how strong a path can be that is not listed, and whether the list is
    certified to hold the strongest.
    """
    table_format(form, output)
    condition = None if given is None else arguments.event(given)

    from nrm_graph import database
    from nrm_graph.cli import overview

    with database.open(store, weights=weights or None) as db:
        m = _measure(db, key, target)
        if condition is not None:
            m = m.given(condition)
        strongest = m.paths(k=k, layers=layers, by=by, progress=True)
        sure = "certified" if strongest.certified else "not certified"
        bound = f"a path that is not listed has at most {strongest.bound:.3g}: {sure}"
        table = overview.paths(strongest, m, by)
        if output is None and form in (None, "table"):
            for row in table.to_pylist():
                path = one_line(row["path"])
                print(f"{row['rank']:>4}  {row['relevance']:< 12.6g}  {path}")
                if m.tokens is not None:
                    print(f"{'':>20}{one_line(' > '.join(row['names']))}")
            print(bound)
        else:
            write_table(table, form, output)
            print_notes([bound])
        print_notes(m.flags)


@command(
    "nrm-graph subgraph relevance.nrm --input cat.png --top 100 --output cat.svg", GRAPH_FORMATS
)
@store
@given
@measured
@weights
@top
@connected
@units
@click.option("--output", type=FILE, required=True, metavar="FILE", help="write the graph here")
def subgraph(
    store: str,
    given: str | None,
    key: str,
    target: str | None,
    weights: tuple[str, ...],
    top: int,
    connected: bool,
    by: str | dict[str, str] | None,
    output: str,
) -> None:
    """Write strong edges of one input as a graph or picture."""
    from nrm_graph.graphs.formats import graph_path

    path = graph_path(output)
    condition = None if given is None else arguments.event(given)

    from nrm_graph import database

    with database.open(store, weights=weights or None) as db:
        m = _measure(db, key, target)
        if condition is not None:
            m = m.given(condition)
        graph = m.subgraph(top, connected=connected, by=by)
        save_graph(graph, path, facts={"store": db.path.name, "input": key})
        print_notes(m.flags)
