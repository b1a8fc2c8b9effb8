"""The commands about a store as a whole: what it holds, SQL, and its upkeep."""

from __future__ import annotations

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import FILE, command, form, store, table, weights
from nrm_graph.cli.output import (
    one_line,
    print_facts,
    printable,
    table_format,
    write_table,
)
from nrm_graph.errors import StoreError

SHOWN_FAILURES = 10


@command("nrm-graph info relevance.nrm")
@store
@table
def info(store: str, form: str | None, output: str | None) -> None:
    """Show what a store holds and the names of its layers.

    Expressions accept a layer's name and its aliases. --format csv, json or parquet gives the
    table of layers alone.
    """
    table_format(form, output)

    from nrm_graph import database
    from nrm_graph.cli import overview

    with database.open(store) as db:
        if output is None and form in (None, "table"):
            print_facts(overview.facts(db))
            print()
            conditions = overview.conditions(db)
            for line in conditions:
                print(one_line(f"condition: {line}"))
            names = overview.names(db)
            for line in names:
                print(one_line(f"named: {line}"))
            if conditions or names:
                print()
            failures = db.sql("SELECT key, error FROM failures ORDER BY key").fetchall()
            for key, error in failures[:SHOWN_FAILURES]:
                print(f"failed: {one_line(f'{key}: {error}')}")
            if len(failures) > SHOWN_FAILURES:
                print(f"... {len(failures) - SHOWN_FAILURES:,} more in the table failures")
            if failures:
                print()
        write_table(overview.layers(db), form, output)


@command('nrm-graph sql relevance.nrm "SELECT key, logit FROM inputs" --format csv')
@store
@click.argument("query")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="stop a query that takes longer, exit code 7 (no limit)",
)
@table
def sql(
    store: str, query: str, timeout: float | None, form: str | None, output: str | None
) -> None:
    """Run a SQL query over inputs, layers, nodes, edges, flows and units.

    Exact zeros are not stored: a mean is sum(relevance) / number of inputs, not avg().

    Tables of conditions: NAME_inputs, NAME_nodes and NAME_edges, see materialize.
    """
    table_format(form, output)

    from nrm_graph import database

    with database.open(store) as db:
        rows = db.sql(query, timeout=timeout).to_arrow_table()
        write_table(rows, form, output)


@command("nrm-graph name relevance.nrm features.28 99 eyes")
@store
@click.argument("layer")
@click.argument("unit", type=int)
@click.argument("name", required=False, default="")
def name(store: str, layer: str, unit: int, name: str) -> None:
    """Name a unit of a layer by its number; without NAME its name is taken away.

    Graphs, pictures and tables show names, and SQL has them in the table units.
    """
    from nrm_graph.store.format.words import counted
    from nrm_graph.store.naming import name_units

    after = name_units(store, layer, {unit: name})
    now = f"is {after[unit]!r}" if unit in after else "has no name"
    print(one_line(f"{layer}, unit {unit} {now}; the layer has {counted(len(after), 'name')}"))


@command("nrm-graph compact relevance.nrm --older-than 3600")
@store
@click.option(
    "--older-than",
    type=float,
    default=86400.0,
    show_default=False,
    metavar="SECONDS",
    help="delete files that were replaced so long ago (a day)",
)
def compact(store: str, older_than: float) -> None:
    """Merge the small shards of a store, and delete files that were replaced long ago.

    Readers and writers may be at work meanwhile: one that opened the store before goes on with the
    old files until they are deleted.
    """
    from nrm_graph.store.write.compaction import compact

    print(compact(store, older_than=older_than))


@command("nrm-graph delete relevance.nrm cat.png dog.png")
@store
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def delete(store: str, keys: tuple[str, ...]) -> None:
    """Delete keys with all their targets, so that they can be extracted again.

    Their files are deleted by the next compact, once they are old enough.
    """
    from nrm_graph.store.write.deletion import delete

    print(delete(store, list(keys)))


@command("nrm-graph drop relevance.nrm given_b")
@store
@click.argument("name")
def drop(store: str, name: str) -> None:
    """Drop a condition, so that its name can be used again.

    Its files are deleted by the next compact, once they are old enough.
    """
    from nrm_graph.store.format.words import counted
    from nrm_graph.store.write.dropping import drop

    inputs = counted(drop(store, name), "input")
    print(
        f"{store}: dropped {name}, which held {inputs}; a compaction deletes its files "
        "once they are old enough"
    )


@command("nrm-graph verify relevance.nrm --sample 10")
@store
@click.option(
    "--sample",
    type=arguments.count,
    default=3,
    metavar="N",
    help="inputs to compute again from the stored program",
)
@weights
@form("findings as a table")
@click.option("--output", type=FILE, metavar="FILE", help="write that table here")
def verify(
    store: str, sample: int, weights: tuple[str, ...], form: str | None, output: str | None
) -> None:
    """Check a store: checksums, rows, conservation, and a sample computed again.

    One line per finding says what is wrong and where. Notes leave a store sound (exit 0); an
    error means that it is damaged (exit 6).
    """
    table_format(form, output)

    from nrm_graph.store.format.words import counted
    from nrm_graph.store.verify import verify

    report = verify(store, sample=sample, progress=True, weights=weights or None)
    if form is not None or output is not None:
        write_table(report.to_table(), form, output)
    else:
        for finding in report.findings:
            print(printable(str(finding)))
    if form is None:
        print(report)
    if not report.sound:
        errors = counted(len(report.errors), "error")
        raise StoreError(
            f"{store} is damaged ({errors}): copy it again, or remove the shards named and "
            "extract their inputs anew"
        )
