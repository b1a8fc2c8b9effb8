"""What the commands of the command line do: each calls the library and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrm_graph.cli import arguments
from nrm_graph.cli.output import (
    graph_path,
    one_line,
    print_facts,
    table_format,
    write_graph,
    write_json,
    write_table,
)
from nrm_graph.errors import InputError, StoreError
from nrm_graph.output_files import in_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import networkx as nx

    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure


def demo(args: argparse.Namespace) -> None:
    """Make and tour the demo's store."""
    from nrm_graph.cli.demo import tour as demo

    demo.run(args.store, args.picture)


def extract(args: argparse.Namespace) -> None:
    """Extract a store or continue it."""
    names = _checked_options(args)

    from nrm_graph.cli import inputs as sources
    from nrm_graph.cli import models

    model, preprocessing, classes = models.load_model(args.model)
    inputs = sources.load_inputs(args.inputs, preprocessing)

    import nrm_graph as ng
    from nrm_graph.cli import overview

    with ng.extract(
        model,
        inputs,
        args.store,
        composite=args.composite,
        target=args.target,
        resolution=args.resolution,
        coverage=args.coverage,
        top=args.top,
        mantissa_bits=args.mantissa_bits,
        batch_size=args.batch_size,
        device=args.device,
        progress=not args.quiet,
        classes=classes if names is None else names,
        preprocessing=inputs.preprocessing if args.preprocessing is None else args.preprocessing,
        tensors=args.tensors,
        on_error=args.on_error,
        output=args.output[0] if args.output and len(args.output) == 1 else args.output,
        engine=args.engine,
        workers=args.workers,
    ) as db:
        ((failed,),) = db.sql("SELECT count(*) FROM failures").fetchall()
        failures = f", {failed:,} failed" if failed else ""
        print(f"{args.store} holds {len(db):,} inputs{failures}; next: nrm-graph info {args.store}")
        flagged = overview.flagged(db)
        if flagged != "none":
            _notes([f"flags of the inputs, as the column flags of inputs holds them: {flagged}"])


def _checked_options(args: argparse.Namespace) -> list[str] | None:
    """Refuse what is wrong whatever the network is, before one is loaded; return the classes."""
    from nrm_graph import _optional
    from nrm_graph.network import units
    from nrm_graph.store.format.files import local_path
    from nrm_graph.store.format.place import check_place
    from nrm_graph.tables import pruning, rounding

    check_place(local_path(args.store))
    pruning.check(args.coverage, args.top)
    rounding.check_bits(args.mantissa_bits)
    units.check(args.resolution)
    if args.engine == "ray":
        _optional.installed()
    elif args.workers is not None:
        raise InputError(f"--workers {args.workers} goes with --engine ray: leave one of them out")
    names = None if args.classes is None else arguments.lines(args.classes)

    from nrm_graph.cli import inputs as sources
    from nrm_graph.cli import models
    from nrm_graph.measures.create import device_of
    from nrm_graph.rules import composites

    composites.get(args.composite)
    device_of(args.device)
    models.check_model(args.model)
    sources.located(args.inputs)
    return names


SHOWN_FAILURES = 10


def info(args: argparse.Namespace) -> None:
    """Show what a store holds."""
    table_format(args.format, args.output)

    import nrm_graph as ng
    from nrm_graph.cli import overview

    with ng.open(args.store) as db:
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


def sql(args: argparse.Namespace) -> None:
    """Run a query."""
    table_format(args.format, args.output)

    import nrm_graph as ng

    with ng.open(args.store) as db:
        rows = db.sql(args.query, timeout=args.timeout).to_arrow_table()
        write_table(rows, args.format, args.output)


def relevance(args: argparse.Namespace) -> None:
    """Show the relevance of an event."""
    table_format(args.format, args.output)
    if args.save_event is not None:
        in_folder(Path(args.save_event))
    event = arguments.event(args.expression)
    given = None if args.given is None else arguments.event(args.given)

    import pyarrow as pa

    import nrm_graph as ng
    from nrm_graph.cli import overview

    with ng.open(args.store) as db:
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
            write_json(ng.event_to_json(event), args.save_event)
        if args.output is None and args.format is None:
            print_facts(overview.answer(row, m, db.meta["classes"]))
        else:
            write_table(pa.Table.from_pylist([row]), args.format, args.output)
        _notes(m.flags)


def _target(db: Database, text: str | None) -> Any:
    """Read the target of a group of inputs."""
    return None if text is None else arguments.which(text, db.meta["classes"], db.outputs)


def _measure(db: Database, args: argparse.Namespace) -> Measure:
    """Measure of the input and target that are named."""
    return db.measure(
        args.input, target=arguments.which(args.target, db.meta["classes"], db.outputs)
    )


def paths(args: argparse.Namespace) -> None:
    """Show the strongest paths of an input, and how strong a missed one may be."""
    table_format(args.format, args.output)
    given = None if args.given is None else arguments.event(args.given)

    import nrm_graph as ng
    from nrm_graph.cli import overview

    with ng.open(args.store) as db:
        m = _measure(db, args)
        if given is not None:
            m = m.given(given)
        found = m.paths(k=args.k, layers=args.layers, by=args.by, progress=True)
        sure = "certified" if found.certified else "not certified"
        bound = f"a path that is not listed has at most {found.bound:.3g}: {sure}"
        table = overview.paths(found, m, args.by)
        if args.output is None and args.format in (None, "table"):
            for row in table.to_pylist():
                path = one_line(row["path"])
                print(f"{row['rank']:>4}  {row['relevance']:< 12.6g}  {path}")
                if m.tokens is not None:
                    print(f"{'':>20}{one_line(' > '.join(row['names']))}")
            print(bound)
        else:
            write_table(table, args.format, args.output)
            _notes([bound])
        _notes(m.flags)


def materialize(args: argparse.Namespace) -> None:
    """Store conditioned tables, and say how many inputs are undefined."""
    event = arguments.event(args.event)

    import nrm_graph as ng

    with ng.open(args.store) as db:
        db.materialize(
            event,
            name=args.name,
            where=args.where,
            device=args.device,
            progress=not args.quiet,
        )
        found = {row["name"]: row for row in db.conditions().to_pylist()}[args.name]
        undefined = ""
        if found["undefined"]:
            undefined = f", {found['undefined']:,} undefined (see reason in {args.name}_inputs)"
        print(
            f"{args.store} holds {args.name}_nodes and {args.name}_edges of "
            f"{found['inputs']:,} inputs{undefined}"
        )


def subgraph(args: argparse.Namespace) -> None:
    """Write the strongest edges."""
    path = graph_path(args.output)
    given = None if args.given is None else arguments.event(args.given)

    import nrm_graph as ng

    with ng.open(args.store) as db:
        m = _measure(db, args)
        if given is not None:
            m = m.given(given)
        graph = m.subgraph(top=args.top)
        _write(graph, path)
        _notes(m.flags)


def circuit(args: argparse.Namespace) -> None:
    """Write or show the strongest edges of a group of inputs."""
    path = None if args.output is None else graph_path(args.output)
    table_format(args.format, None)
    if path is not None and args.format is not None:
        raise InputError(
            f"--format {args.format} is of printed edges: leave it out, for the suffix of --output "
            "names a graph's format"
        )

    import nrm_graph as ng
    from nrm_graph.cli import overview

    with ng.open(args.store) as db:
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
            _write(graph, path)
        elif args.format in (None, "table"):
            print_facts(overview.circuit(graph, db))
            print()
            write_table(overview.circuit_edges(graph), "table")
        else:
            write_table(overview.circuit_edges(graph), args.format)
        _notes(graph.graph["flags"])


def contrast(args: argparse.Namespace) -> None:
    """Compare two groups of inputs."""
    table_format(args.format, args.output)

    import nrm_graph as ng

    with ng.open(args.store) as db:
        found = db.contrast(
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
        print("\n".join(_plain(line) for line in str(found).split("\n")))
    else:
        write_table(found.table, args.format, args.output)
        _notes(found.notes)


def compact(args: argparse.Namespace) -> None:
    """Merge small shards and delete old files."""
    from nrm_graph.store.write.compaction import compact

    print(compact(args.store, older_than=args.older_than))


def drop(args: argparse.Namespace) -> None:
    """Drop a condition."""
    from nrm_graph.store.write.compaction import counted
    from nrm_graph.store.write.dropping import drop

    held = counted(drop(args.store, args.name), "input")
    print(
        f"{args.store}: dropped {args.name}, which held {held}; a compaction deletes its files "
        "once they are old enough"
    )


def delete(args: argparse.Namespace) -> None:
    """Delete keys."""
    from nrm_graph.store.write.deletion import delete

    print(delete(args.store, args.keys))


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
            print(_plain(str(finding)))
    if args.format is None:
        print(report)
    if not report.sound:
        errors = counted(len(report.errors), "error")
        raise StoreError(
            f"{args.store} is damaged ({errors}): copy it again, or remove the shards named and "
            "extract their inputs anew"
        )


def _write(graph: nx.DiGraph, path: Path) -> None:
    """Write a graph, and say where it is."""
    files = ", ".join(str(file) for file in write_graph(graph, path))
    print(f"{files}: {graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges")


def _notes(flags: Sequence[str]) -> None:
    for flag in flags:
        print(f"note: {one_line(flag)}", file=sys.stderr)


def _plain(line: str) -> str:
    """Text without characters that would steer a terminal, its spaces kept."""
    return "".join(c if c.isprintable() else "?" for c in line)
