"""The commands over many inputs: ``materialize``, ``circuit`` and ``contrast``."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import (
    EXPRESSIONS,
    FILE,
    GRAPH_FORMATS,
    averaging,
    command,
    connected,
    exact,
    form,
    quiet,
    reduction,
    store,
    table,
    tables,
    top,
    units,
    weights,
    where,
)
from nrm_graph.cli.output import (
    draws_graph,
    print_facts,
    print_lines,
    print_notes,
    save_graph,
    table_format,
    write_table,
)
from nrm_graph.errors import InputError

_ENDS = ("src", "src_unit", "dst", "dst_unit")


@command(
    'nrm-graph materialize relevance.nrm --name given_b "features.28[12]"\n'
    '  nrm-graph sql relevance.nrm "SELECT * FROM given_b_nodes"\n'
    '  nrm-graph materialize relevance.nrm --name blocks --watch "layer?.?"',
    EXPRESSIONS,
)
@store
@click.argument("expression", metavar="[EXPR]", required=False)
@click.option("--name", required=True, metavar="NAME", help="of the tables: letters, digits and _")
@where
@reduction
@click.option("--device", default="cpu", metavar="NAME", help="auto, cpu, cuda, ...")
@weights
@quiet
def materialize(
    store: str,
    expression: str | None,
    name: str,
    where: str | None,
    watch: tuple[str, ...],
    by: str | dict[str, str],
    nodes: int | dict[str, int] | None,
    device: str,
    weights: tuple[str, ...],
    quiet: bool,
) -> None:
    """Store the tables of many inputs, conditioned on an event or reduced to nodes, for SQL.

    Tables NAME_nodes and NAME_edges hold R(node and event) / R(event), NAME_inputs holds R(event)
    by input, and why an input is undefined. The same command again goes on where it stopped.

    With --watch they are reduced tables, with or without an event: exact steps between nodes that
    are chosen once for all inputs, by mean |R|; NAME_layers lists the watched layers.
    """
    if expression is None and not watch:
        raise click.UsageError("expected EXPR, --watch, or both: found neither")
    event = None if expression is None else arguments.event(expression)
    chosen = arguments.watched(watch) or None

    from nrm_graph import database

    with database.open(store, weights=weights or None) as db:
        db.materialize(
            event,
            name=name,
            where=where,
            watch=chosen,
            by=by,
            nodes=nodes,
            device=device,
            progress=not quiet,
        )
        condition = {row["name"]: row for row in db.conditions().to_pylist()}[name]
        undefined = ""
        if condition["undefined"]:
            undefined = f", {condition['undefined']:,} undefined (see reason in {name}_inputs)"
        print(
            f"{store} holds {name}_nodes and {name}_edges of "
            f"{condition['inputs']:,} inputs{undefined}"
        )


@command(
    "nrm-graph circuit relevance.nrm --where \"label = 'cat'\" --output cat.svg",
    GRAPH_FORMATS,
    EXPRESSIONS,
)
@store
@where
@top
@connected
@click.option(
    "--given",
    metavar="NAME|EXPR",
    help="a condition that was materialized, by its name or event: ratios of means",
)
@tables
@units
@click.option("--per-input", is_flag=True, help="with --given: the mean of single conditionals")
@click.option("--layers", metavar="A,B,...", type=arguments.names, help="only edges between these")
@averaging("unit")
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    help="where sums are made",
)
@exact
@weights
@form("of the printed edges (table)")
@click.option("--output", type=FILE, metavar="FILE", help="write the graph here")
def circuit(
    store: str,
    where: str | None,
    given: str | None,
    target: str | None,
    weights: tuple[str, ...],
    form: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Show strong edges that a group of inputs has in common, with statistics.

    Relevances are means over the group; exact zeros count. Where the store leaves edges out, a mean
    is told with what it lies between. Without --output the edges are printed.
    """
    from nrm_graph.graphs.formats import graph_path

    path = None if output is None else graph_path(output)
    table_format(form, None)
    if path is not None and form is not None:
        raise InputError(
            f"--format {form} is of printed edges: leave it out, for the suffix of --output "
            "names a graph's format"
        )

    from nrm_graph import database
    from nrm_graph.cli import overview
    from nrm_graph.network.target_texts import read_target

    with database.open(store, weights=weights or None) as db:
        condition: Any = given
        if given is not None and not given.isidentifier():  # no expression is a name alone
            condition = arguments.event(given)
        graph = db.circuit(
            where,
            given=condition,
            target=read_target(target, db.classes, db.outputs),
            **options,
        )
        if path is not None:
            save_graph(graph, path, facts={"store": db.path.name})
        elif form in (None, "table"):
            print_facts(overview.circuit(graph), overview.SHARED)
            print()
            write_table(overview.circuit_edges(graph), "table")
        else:
            write_table(overview.circuit_edges(graph), form)
        print_notes(graph.graph["flags"])


@command(
    "nrm-graph contrast relevance.nrm \"label = 'cat'\" \"label = 'dog'\" --target 3\n"
    "  nrm-graph contrast base.nrm \"label = 'cat'\" --other finetuned.nrm"
)
@store
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--other", type=FILE, metavar="STORE", help="in place of B: the same inputs in another store"
)
@click.option(
    "--edges", type=arguments.positive, default=1000, metavar="N", help="edges to compare"
)
@click.option(
    "--adjust", type=click.Choice(("bh", "by")), default="bh", help="q-values of BH or Yekutieli"
)
@click.option("--draws", type=arguments.positive, default=10_000, metavar="N", help="permutations")
@click.option("--seed", type=arguments.count, default=0, metavar="N", help="of permutations")
@averaging("logit")
@tables
@units
@exact
@weights
@table
def contrast(
    store: str,
    a: str,
    b: str | None,
    other: str | None,
    target: str | None,
    weights: tuple[str, ...],
    form: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Where two groups of inputs differ: differences of edges, with p- and q-values over keys.

    Or where two networks do, or two versions of the same inputs: with --other the keys of A in both
    stores are pairs.

    A and B are SQL conditions over inputs. Without --output or --format the strongest are shown;
    an --output that ends in .html, .svg, .png, .graphml or .gexf is their graph.
    It needs scipy: pip install 'nrm-graph[stats]'.
    """
    from nrm_graph.graphs.formats import graph_path

    drawn = form is None and draws_graph(output)
    path = graph_path(output) if output is not None and drawn else None
    if path is None:
        table_format(form, output)

    from nrm_graph import database
    from nrm_graph.network.target_texts import read_target

    with contextlib.ExitStack() as opened:
        db = opened.enter_context(database.open(store, weights=weights or None))
        second = None if other is None else opened.enter_context(database.open(other))
        comparison = db.contrast(
            a, b, other=second, target=read_target(target, db.classes, db.outputs), **options
        )
    if path is not None:
        save_graph(comparison.graph(), path, facts={"store": db.path.name})
        print_notes(comparison.notes)
    elif output is None and form is None:
        print_lines(comparison)
    else:
        rows = comparison.table
        columns = [name for name in rows.column_names if name not in _ENDS]
        write_table(rows.select([*_ENDS, *columns]), form, output)
        print_notes(comparison.notes)
