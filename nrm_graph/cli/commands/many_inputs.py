"""The commands over many inputs: ``materialize``, ``circuit`` and ``contrast``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrm_graph.cli import arguments
from nrm_graph.cli.options import (
    EXPRESSIONS,
    GRAPH_FORMATS,
    add_averaging,
    add_command,
    add_quiet,
    add_store,
    add_table,
    add_top,
    add_where,
)
from nrm_graph.cli.output import (
    TABLE_FORMATS,
    print_facts,
    print_notes,
    printable,
    save_graph,
    table_format,
    write_table,
)
from nrm_graph.errors import InputError
from nrm_graph.graphs.formats import graph_path

if TYPE_CHECKING:
    import argparse

    from nrm_graph.cli.options import Commands
    from nrm_graph.database import Database


def add_materialize(commands: Commands) -> None:
    """Add the command ``materialize``."""
    parser = add_command(
        commands,
        "materialize",
        materialize,
        "Store the tables of many inputs, conditioned on an event, for SQL.",
        'nrm-graph materialize relevance.nrm --name given_b "features.28[12]"\n'
        '  nrm-graph sql relevance.nrm "SELECT * FROM given_b_nodes"',
        "Tables NAME_nodes and NAME_edges hold R(node and event) / R(event), NAME_inputs holds\n"
        "R(event) by input, and why an input is undefined.  The same command again goes on\n"
        "where it stopped.\n\n" + EXPRESSIONS,
    )
    add_store(parser)
    parser.add_argument("event", metavar="EXPR")
    parser.add_argument("--name", required=True, help="of the tables: letters, digits and _")
    add_where(parser)
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, ... (cpu)")
    add_quiet(parser)


def materialize(args: argparse.Namespace) -> None:
    """Store conditioned tables, and say how many inputs are undefined."""
    event = arguments.event(args.event)

    from nrm_graph import database

    with database.open(args.store) as db:
        db.materialize(
            event,
            name=args.name,
            where=args.where,
            device=args.device,
            progress=not args.quiet,
        )
        condition = {row["name"]: row for row in db.conditions().to_pylist()}[args.name]
        undefined = ""
        if condition["undefined"]:
            undefined = f", {condition['undefined']:,} undefined (see reason in {args.name}_inputs)"
        print(
            f"{args.store} holds {args.name}_nodes and {args.name}_edges of "
            f"{condition['inputs']:,} inputs{undefined}"
        )


def add_circuit(commands: Commands) -> None:
    """Add the command ``circuit``."""
    parser = add_command(
        commands,
        "circuit",
        circuit,
        "The strongest edges that a group of inputs has in common, with statistics.",
        "nrm-graph circuit relevance.nrm --where \"label = 'cat'\" --output cat.svg",
        "Relevances are means over the group; exact zeros count.  Without --output the edges are\n"
        "printed.  Its suffix names the format: " + GRAPH_FORMATS + "\n\n" + EXPRESSIONS,
    )
    add_store(parser)
    add_where(parser)
    add_top(parser)
    parser.add_argument(
        "--given",
        metavar="NAME|EXPR",
        help="a condition that was materialized, by its name or event: ratios of means",
    )
    parser.add_argument(
        "--per-input", action="store_true", help="with --given: the mean of single conditionals"
    )
    parser.add_argument(
        "--layers", metavar="A,B,...", type=arguments.names, help="only edges between these"
    )
    add_averaging(parser, "unit")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where sums are made (local)"
    )
    parser.add_argument("--format", choices=TABLE_FORMATS, help="of the printed edges (table)")
    parser.add_argument("--output", metavar="FILE", help="write the graph here")


def circuit(args: argparse.Namespace) -> None:
    """Write or show the strongest edges of a group of inputs."""
    path = None if args.output is None else graph_path(args.output)
    table_format(args.format, None)
    if path is not None and args.format is not None:
        raise InputError(
            f"--format {args.format} is of printed edges: leave it out, for the suffix of --output "
            "names a graph's format"
        )

    from nrm_graph import database
    from nrm_graph.cli import overview

    with database.open(args.store) as db:
        given = args.given
        if given is not None and not given.isidentifier():  # no expression is a name alone
            given = arguments.event(given)
        graph = db.circuit(
            args.where,
            top=args.top,
            given=given,
            layers=args.layers,
            weight=args.weight,
            per_input=args.per_input,
            target=_target(db, args.target),
            mixed_targets=args.mixed_targets,
            engine=args.engine,
        )
        if path is not None:
            save_graph(graph, path)
        elif args.format in (None, "table"):
            print_facts(overview.circuit(graph, db))
            print()
            write_table(overview.circuit_edges(graph), "table")
        else:
            write_table(overview.circuit_edges(graph), args.format)
        print_notes(graph.graph["flags"])


def add_contrast(commands: Commands) -> None:
    """Add the command ``contrast``."""
    parser = add_command(
        commands,
        "contrast",
        contrast,
        "Where two groups of inputs differ: differences of edges, with p- and q-values over keys.",
        "nrm-graph contrast relevance.nrm \"label = 'cat'\" \"label = 'dog'\" --target 3",
        "A and B are SQL conditions over inputs.  Without --output or --format the strongest are\n"
        "shown.  It needs scipy: pip install 'nrm-graph[stats]'.",
    )
    add_store(parser)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument(
        "--edges", type=arguments.positive, default=1000, help="edges to compare (1000)"
    )
    parser.add_argument(
        "--adjust", choices=("bh", "by"), default="bh", help="q-values of BH or Yekutieli (bh)"
    )
    parser.add_argument(
        "--draws", type=arguments.positive, default=10_000, help="permutations (10000)"
    )
    parser.add_argument("--seed", type=arguments.count, default=0, help="of permutations (0)")
    add_averaging(parser, "logit")
    add_table(parser)


def contrast(args: argparse.Namespace) -> None:
    """Compare two groups of inputs."""
    table_format(args.format, args.output)

    from nrm_graph import database

    with database.open(args.store) as db:
        comparison = db.contrast(
            args.a,
            args.b,
            edges=args.edges,
            weight=args.weight,
            target=_target(db, args.target),
            mixed_targets=args.mixed_targets,
            adjust=args.adjust,
            draws=args.draws,
            seed=args.seed,
        )
    if args.output is None and args.format is None:
        print("\n".join(printable(line) for line in str(comparison).split("\n")))
    else:
        write_table(comparison.table, args.format, args.output)
        print_notes(comparison.notes)


def _target(db: Database, text: str | None) -> Any:
    """Read the target of a group of inputs."""
    return None if text is None else arguments.which(text, db.meta["classes"], db.outputs)
