"""The commands about a store as a whole: what it holds, SQL, and its upkeep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.cli import arguments
from nrm_graph.cli.options import add_command, add_store, add_table
from nrm_graph.cli.output import (
    TABLE_FORMATS,
    one_line,
    print_facts,
    printable,
    table_format,
    write_table,
)
from nrm_graph.errors import StoreError

if TYPE_CHECKING:
    import argparse

    from nrm_graph.cli.options import Commands

SHOWN_FAILURES = 10


def add_info(commands: Commands) -> None:
    """Add the command ``info``."""
    parser = add_command(
        commands,
        "info",
        info,
        "Show what a store holds and the names of its layers.",
        "nrm-graph info relevance.nrm",
        "Expressions accept a layer's name and its aliases.\n"
        "--format csv, json or parquet gives the table of layers alone.",
    )
    add_store(parser)
    add_table(parser)


def info(args: argparse.Namespace) -> None:
    """Show what a store holds."""
    table_format(args.format, args.output)

    from nrm_graph import database
    from nrm_graph.cli import overview

    with database.open(args.store) as db:
        if args.output is None and args.format in (None, "table"):
            print_facts(overview.facts(db))
            print()
            conditions = overview.conditions(db)
            for line in conditions:
                print(one_line(f"condition: {line}"))
            if conditions:
                print()
            failures = db.sql("SELECT key, error FROM failures ORDER BY key").fetchall()
            for key, error in failures[:SHOWN_FAILURES]:
                print(f"failed: {one_line(f'{key}: {error}')}")
            if len(failures) > SHOWN_FAILURES:
                print(f"... {len(failures) - SHOWN_FAILURES:,} more in the table failures")
            if failures:
                print()
        write_table(overview.layers(db), args.format, args.output)


def add_sql(commands: Commands) -> None:
    """Add the command ``sql``."""
    parser = add_command(
        commands,
        "sql",
        sql,
        "Run a SQL query over inputs, layers, nodes, edges and flows.",
        'nrm-graph sql relevance.nrm "SELECT key, logit FROM inputs" --format csv',
        "Exact zeros are not stored: a mean is sum(relevance) / number of inputs, not avg().\n"
        "Tables of conditions: NAME_inputs, NAME_nodes and NAME_edges, see materialize.",
    )
    add_store(parser)
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="stop a query that takes longer, exit code 7 (no limit)",
    )
    add_table(parser)


def sql(args: argparse.Namespace) -> None:
    """Run a query."""
    table_format(args.format, args.output)

    from nrm_graph import database

    with database.open(args.store) as db:
        rows = db.sql(args.query, timeout=args.timeout).to_arrow_table()
        write_table(rows, args.format, args.output)


def add_compact(commands: Commands) -> None:
    """Add the command ``compact``."""
    parser = add_command(
        commands,
        "compact",
        compact,
        "Merge the small shards of a store, and delete files that were replaced long ago.",
        "nrm-graph compact relevance.nrm --older-than 3600",
        "Readers and writers may be at work meanwhile: one that opened the store before goes on\n"
        "with the old files until they are deleted.",
    )
    add_store(parser)
    parser.add_argument(
        "--older-than",
        type=float,
        default=86400.0,
        metavar="SECONDS",
        help="delete files that were replaced so long ago (a day)",
    )


def compact(args: argparse.Namespace) -> None:
    """Merge small shards and delete old files."""
    from nrm_graph.store.write.compaction import compact

    print(compact(args.store, older_than=args.older_than))


def add_delete(commands: Commands) -> None:
    """Add the command ``delete``."""
    parser = add_command(
        commands,
        "delete",
        delete,
        "Delete keys with all their targets, so that they can be extracted again.",
        "nrm-graph delete relevance.nrm cat.png dog.png",
        "Their files are deleted by the next compact, once they are old enough.",
    )
    add_store(parser)
    parser.add_argument("keys", metavar="KEY", nargs="+")


def delete(args: argparse.Namespace) -> None:
    """Delete keys."""
    from nrm_graph.store.write.deletion import delete

    print(delete(args.store, args.keys))


def add_drop(commands: Commands) -> None:
    """Add the command ``drop``."""
    parser = add_command(
        commands,
        "drop",
        drop,
        "Drop a condition, so that its name can be used again.",
        "nrm-graph drop relevance.nrm given_b",
        "Its files are deleted by the next compact, once they are old enough.",
    )
    add_store(parser)
    parser.add_argument("name", metavar="NAME")


def drop(args: argparse.Namespace) -> None:
    """Drop a condition."""
    from nrm_graph.store.write.compaction import counted
    from nrm_graph.store.write.dropping import drop

    inputs = counted(drop(args.store, args.name), "input")
    print(
        f"{args.store}: dropped {args.name}, which held {inputs}; a compaction deletes its files "
        "once they are old enough"
    )


def add_verify(commands: Commands) -> None:
    """Add the command ``verify``."""
    parser = add_command(
        commands,
        "verify",
        verify,
        "Check a store: checksums, rows, conservation, and a sample computed again.",
        "nrm-graph verify relevance.nrm --sample 10",
        "One line per finding says what is wrong and where.  Notes leave a store sound (exit 0);\n"
        "an error means that it is damaged (exit 6).",
    )
    add_store(parser)
    parser.add_argument(
        "--sample",
        type=arguments.count,
        default=3,
        metavar="N",
        help="inputs to compute again from the stored program (3)",
    )
    parser.add_argument("--format", choices=TABLE_FORMATS, help="findings as a table")
    parser.add_argument("--output", metavar="FILE", help="write that table here")


def verify(args: argparse.Namespace) -> None:
    """Check a store."""
    table_format(args.format, args.output)

    from nrm_graph.store.verify import verify
    from nrm_graph.store.verify.report import counted

    report = verify(args.store, sample=args.sample, progress=True)
    if args.format is not None or args.output is not None:
        write_table(report.to_table(), args.format, args.output)
    else:
        for finding in report.findings:
            print(printable(str(finding)))
    if args.format is None:
        print(report)
    if not report.sound:
        errors = counted(len(report.errors), "error")
        raise StoreError(
            f"{args.store} is damaged ({errors}): copy it again, or remove the shards named and "
            "extract their inputs anew"
        )
