"""The commands about one input: ``relevance``, ``paths`` and ``subgraph``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nrm_graph.cli import arguments
from nrm_graph.cli.options import (
    EXPRESSIONS,
    GRAPH_FORMATS,
    add_command,
    add_given,
    add_input,
    add_store,
    add_table,
    add_top,
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
from nrm_graph.graphs.formats import graph_path
from nrm_graph.output_files import in_folder

if TYPE_CHECKING:
    import argparse

    from nrm_graph.cli.options import Commands
    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure


def add_relevance(commands: Commands) -> None:
    """Add the command ``relevance``."""
    parser = add_command(
        commands,
        "relevance",
        relevance,
        "Exact relevance of an event for one input.",
        'nrm-graph relevance relevance.nrm --input cat.png "features.28[12] & features.21[3]"',
        EXPRESSIONS,
    )
    add_store(parser)
    parser.add_argument("expression", metavar="EXPR")
    parser.add_argument("--save-event", metavar="FILE", help="write the event as JSON")
    add_given(parser)
    add_input(parser)
    add_table(parser)


def relevance(args: argparse.Namespace) -> None:
    """Show the relevance of an event."""
    table_format(args.format, args.output)
    if args.save_event is not None:
        in_folder(Path(args.save_event))
    event = arguments.event(args.expression)
    given = None if args.given is None else arguments.event(args.given)

    import pyarrow as pa

    from nrm_graph import database
    from nrm_graph.cli import overview
    from nrm_graph.events.serialization import to_json

    with database.open(args.store) as db:
        m = _measure(db, args)
        value = m(event, given=given)
        target = args.target if m.target is None else m.target
        if m.target is not None and isinstance(m.outputs.place(m.target), tuple):
            target = m.outputs.text(m.target)
        row = {"input": args.input, "target": target, "logit": m.logit, "event": repr(event)}
        if given is not None:
            row |= {"given": repr(given)}
            row |= {name: getattr(value, name, None) for name in ("error", "amplification")}
        row["relevance"] = float(value)
        row["absorbed"] = float(getattr(value, "absorbed", m.absorbed))
        if args.save_event is not None:
            write_json(to_json(event), args.save_event)
        if args.output is None and args.format is None:
            print_facts(overview.answer(row, m, db.meta["classes"]))
        else:
            write_table(pa.Table.from_pylist([row]), args.format, args.output)
        print_notes(m.flags)


def _measure(db: Database, args: argparse.Namespace) -> Measure:
    """Measure of the input and target that are named."""
    return db.measure(
        args.input, target=arguments.which(args.target, db.meta["classes"], db.outputs)
    )


def add_paths(commands: Commands) -> None:
    """Add the command ``paths``."""
    parser = add_command(
        commands,
        "paths",
        paths,
        "The strongest walks of one input through given layers, with their exact relevance.",
        "nrm-graph paths relevance.nrm --input cat.png --layers features.28,features.21 --k 20",
        "The last line says how strong a path can be that is not listed, and whether the list is\n"
        "certified to hold the strongest.\n\n" + EXPRESSIONS,
    )
    add_store(parser)
    parser.add_argument(
        "--layers",
        metavar="A,B,...",
        type=arguments.names,
        help="layers to pass (those that every walk passes)",
    )
    parser.add_argument("--k", type=arguments.positive, default=10, help="number of paths (10)")
    parser.add_argument(
        "--by",
        choices=("unit", "neuron", "channel", "feature", "token", "head"),
        default="unit",
        help="what a step of a path is: the store's unit, or another (unit)",
    )
    add_given(parser)
    add_input(parser)
    add_table(parser)


def paths(args: argparse.Namespace) -> None:
    """Show the strongest paths of an input, and how strong a missed one may be."""
    table_format(args.format, args.output)
    given = None if args.given is None else arguments.event(args.given)

    from nrm_graph import database
    from nrm_graph.cli import overview

    with database.open(args.store) as db:
        m = _measure(db, args)
        if given is not None:
            m = m.given(given)
        strongest = m.paths(k=args.k, layers=args.layers, by=args.by, progress=True)
        sure = "certified" if strongest.certified else "not certified"
        bound = f"a path that is not listed has at most {strongest.bound:.3g}: {sure}"
        table = overview.paths(strongest, m, args.by)
        if args.output is None and args.format in (None, "table"):
            for row in table.to_pylist():
                path = one_line(row["path"])
                print(f"{row['rank']:>4}  {row['relevance']:< 12.6g}  {path}")
                if m.tokens is not None:
                    print(f"{'':>20}{one_line(' > '.join(row['names']))}")
            print(bound)
        else:
            write_table(table, args.format, args.output)
            print_notes([bound])
        print_notes(m.flags)


def add_subgraph(commands: Commands) -> None:
    """Add the command ``subgraph``."""
    parser = add_command(
        commands,
        "subgraph",
        subgraph,
        "Write the strongest edges of one input as a graph or picture.",
        "nrm-graph subgraph relevance.nrm --input cat.png --top 100 --output cat.svg",
        "The suffix of --output names the format: " + GRAPH_FORMATS,
    )
    add_store(parser)
    add_given(parser)
    add_input(parser)
    add_top(parser)
    parser.add_argument("--output", required=True, metavar="FILE")


def subgraph(args: argparse.Namespace) -> None:
    """Write the strongest edges."""
    path = graph_path(args.output)
    given = None if args.given is None else arguments.event(args.given)

    from nrm_graph import database

    with database.open(args.store) as db:
        m = _measure(db, args)
        if given is not None:
            m = m.given(given)
        graph = m.subgraph(top=args.top)
        save_graph(graph, path)
        print_notes(m.flags)
