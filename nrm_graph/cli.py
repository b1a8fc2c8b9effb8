"""The command line: it parses, calls the library and turns errors into messages."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError, NrmError, StoreError
from nrm_graph.export import TABLE_FORMATS, graph_path, write_graph, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXIT_CODES = """\
exit codes:
  0 done                    5 an expression does not parse or fit, or a conditional is undefined
  1 other known failure     6 the store is missing, damaged or in conflict
  2 wrong usage             7 the SQL query was refused or failed
  3 an input is not right   130 interrupted
  4 the model or composite cannot be used"""

EXPRESSIONS = """\
expressions, as in Python with NumPy's indexing into a layer's shape:
  features.28[12]                      channel 12          features.21[[3, 7], 4:9, :]
  classifier.3[1] & features.28[12]    both                A | B   either
  ~features.28[12]                     everything else     A - B   A and not B
  classifier.3[1] -> classifier.0[7]   the direct step     features.28.units([1, 2])
Names with other characters stand in quotes: "odd name"[3]."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or usage
        return stop.code if isinstance(stop.code, int) else 2
    try:
        args.command(args)
        sys.stdout.flush()
    except NrmError as error:
        message = " ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"nrm-graph: {message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nrm-graph: interrupted; what is in the store stays valid", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, head for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    from nrm_graph import __version__

    parser = argparse.ArgumentParser(
        prog="nrm-graph",
        description="Turn a trained network and inputs into a relevance database, and ask it.",
        epilog=f"start here:\n  nrm-graph demo\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nrm-graph {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, call: Any, text: str, example: str, more: str = "") -> Any:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"{more}{chr(10) * 2 if more else ''}example:\n  {example}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=call)
        return sub

    demo = add(
        "demo",
        _demo,
        "Extract a store of the images that the package ships, and tour it.",
        "nrm-graph demo --store demo.nrm --picture demo.svg",
    )
    demo.add_argument("--store", default="nrm-demo.nrm", help="store to write (nrm-demo.nrm)")
    demo.add_argument("--picture", default="nrm-demo.png", help="picture to write (nrm-demo.png)")

    extract = add(
        "extract",
        _extract,
        "Extract the relevance of inputs into a store, or continue it.",
        "nrm-graph extract torchvision:vgg16@weights.pt photos/ --store relevance.nrm",
        "MODEL is torchvision:NAME (pretrained), torchvision:NAME@weights.pt,\n"
        "torchvision:NAME@random:SEED, a file of torch.export.save (.pt2) or\n"
        "package.module:function, which gives a model, or (model, preprocessing, classes).\n"
        "The last two RUN CODE: use only files and modules that you trust.\n\n"
        "INPUTS is a folder of images (sub-folders are labels), an image, or an .npy or .npz\n"
        "file (arrays images or inputs, and labels); float arrays are taken as they are.",
    )
    extract.add_argument("model", metavar="MODEL")
    extract.add_argument("inputs", metavar="INPUTS")
    extract.add_argument("--store", required=True, help="store to write or continue")
    extract.add_argument("--composite", default="epsilon_gamma", help="rules (epsilon_gamma)")
    extract.add_argument(
        "--target",
        default="predicted",
        type=_target,
        help="predicted, label, an output's number, or several with commas (predicted)",
    )
    extract.add_argument(
        "--resolution",
        default="auto",
        type=_resolution,
        help="auto, neuron, channel, feature, token, or by layer: features.0=channel,... (auto)",
    )
    extract.add_argument("--batch-size", type=_positive, default=16, help="inputs at once (16)")
    extract.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (auto)")
    extract.add_argument("--quiet", action="store_true", help="show no progress bar")

    info = add(
        "info",
        _info,
        "Show what a store holds and the names of its layers.",
        "nrm-graph info relevance.nrm",
        "--format csv, json or parquet gives the table of layers alone.",
    )
    sql = add(
        "sql",
        _sql,
        "Run a SQL query over inputs, layers, nodes, edges and flows.",
        'nrm-graph sql relevance.nrm "SELECT key, logit FROM inputs" --format csv',
        "Exact zeros are not stored: a mean is sum(relevance) / number of inputs, not avg().",
    )
    relevance = add(
        "relevance",
        _relevance,
        "Exact relevance of an event for one input.",
        'nrm-graph relevance relevance.nrm --input cat.png "features.28[12] & features.21[3]"',
        EXPRESSIONS,
    )
    subgraph = add(
        "subgraph",
        _subgraph,
        "Write the strongest edges of one input as a graph or picture.",
        "nrm-graph subgraph relevance.nrm --input cat.png --top 100 --output cat.svg",
        "The suffix names the format: .graphml, .json (node-link), .svg or .png.",
    )
    verify = add(
        "verify",
        _verify,
        "Check a store: checksums, rows, conservation, and a sample computed again.",
        "nrm-graph verify relevance.nrm --sample 10",
        "One line per finding says what is wrong and where.  Notes leave a store sound (exit 0);\n"
        "an error means that it is damaged (exit 6).",
    )
    verify.add_argument("store", metavar="STORE")
    verify.add_argument(
        "--sample",
        type=_count,
        default=3,
        metavar="N",
        help="inputs to compute again from the stored program (3)",
    )
    verify.add_argument("--format", choices=TABLE_FORMATS, help="findings as a table")
    verify.add_argument("--output", metavar="FILE", help="write that table here")
    for sub in (info, sql, relevance, subgraph):
        sub.add_argument("store", metavar="STORE")
    sql.add_argument("query", metavar="QUERY")
    relevance.add_argument("expression", metavar="EXPR")
    relevance.add_argument("--given", metavar="EXPR", help="condition on this event")
    for sub in (relevance, subgraph):
        sub.add_argument("--input", required=True, metavar="KEY", help="key of the input")
        sub.add_argument("--target", type=int, metavar="N", help="which of several targets")
    for sub in (info, sql, relevance):
        sub.add_argument("--format", choices=TABLE_FORMATS, help="by default that of --output")
        sub.add_argument("--output", metavar="FILE", help="write here, not to standard output")
    subgraph.add_argument("--top", type=_positive, default=200, help="edges to keep (200)")
    subgraph.add_argument("--output", required=True, metavar="FILE")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {value}")
    return value


def _target(text: str) -> Any:
    parts = [part.strip() for part in text.split(",")]
    found: list[str | int] = []
    for part in parts:
        number = part.removeprefix("-")
        if part not in ("predicted", "label") and not (number.isascii() and number.isdigit()):
            raise argparse.ArgumentTypeError(
                f"expected predicted, label or a number, found {part!r}"
            )
        found.append(part if part in ("predicted", "label") else int(part))
    return found[0] if len(found) == 1 else found


def _resolution(text: str) -> str | dict[str, str]:
    if "=" not in text:
        return text
    pairs = [part.rpartition("=") for part in text.split(",")]
    if not all(name and how for name, _, how in pairs):
        raise argparse.ArgumentTypeError(f"expected LAYER=RESOLUTION,..., found {text!r}")
    return {name.strip(): how.strip() for name, _, how in pairs}


def _demo(args: argparse.Namespace) -> None:
    from nrm_graph import demo

    demo.run(args.store, args.picture)


def _extract(args: argparse.Namespace) -> None:
    from nrm_graph import sources

    if os.path.lexists(args.store) and not os.path.isdir(args.store):  # noqa: PTH112
        raise InputError(f"--store {args.store} is a file: expected a store or a new name")
    model, preprocessing, classes = sources.load_model(args.model)
    inputs = sources.load_inputs(args.inputs, preprocessing)

    import nrm_graph as ng

    with ng.extract(
        model,
        inputs,
        args.store,
        composite=args.composite,
        target=args.target,
        resolution=args.resolution,
        batch_size=args.batch_size,
        device=args.device,
        progress=not args.quiet,
        classes=classes,
    ) as db:
        held = db.sql("SELECT count(*) AS n FROM inputs").to_arrow_table()["n"][0].as_py()
    print(f"{args.store} holds {held:,} inputs; next: nrm-graph info {args.store}")


def _info(args: argparse.Namespace) -> None:
    import nrm_graph as ng

    with ng.open(args.store) as db:
        layers = db.sql("SELECT * FROM layers ORDER BY layer_id").to_arrow_table()
        if args.output is None and args.format in (None, "table"):
            counts = db.sql(
                "SELECT (SELECT count(*) FROM inputs) AS inputs, "
                "(SELECT count(DISTINCT key) FROM inputs) AS keys, "
                "(SELECT count(*) FROM edges) AS edges"
            ).to_arrow_table()
            facts: Mapping[str, Any] = {**counts.to_pylist()[0], **_facts(db.meta)}
            width = max(map(len, facts))
            for name, value in facts.items():
                shown = f"{value:,}" if isinstance(value, int) else value
                print(f"{name:<{width}}  {shown}")
            print()
        write_table(layers, args.format, args.output)


def _facts(meta: Any) -> dict[str, Any]:
    """Return the entries of a store's settings that fit on a line."""
    found: dict[str, Any] = {}
    for name, value in dict(meta).items():
        if name == "composite" and isinstance(value, dict):
            value = value.get("name") or "custom"
        if isinstance(value, str | int | float | bool):
            found[str(name)] = value if isinstance(value, str) else str(value)
    return found


def _sql(args: argparse.Namespace) -> None:
    import nrm_graph as ng

    with ng.open(args.store) as db:
        write_table(db.sql(args.query).to_arrow_table(), args.format, args.output)


def _relevance(args: argparse.Namespace) -> None:
    from nrm_graph.expressions import parse

    event = parse(args.expression)
    given = None if args.given is None else parse(args.given)

    import pyarrow as pa

    import nrm_graph as ng

    with ng.open(args.store) as db:
        m = db.measure(args.input, target=args.target)
        value = m(event, given=given)
        row = {"input": args.input, "target": m.target, "logit": m.logit, "event": repr(event)}
        if given is not None:
            row |= {"given": repr(given), "amplification": getattr(value, "amplification", None)}
        _notes(m.flags)
        table = pa.Table.from_pylist([row | {"relevance": float(value)}])
        write_table(table, args.format, args.output)


def _subgraph(args: argparse.Namespace) -> None:
    path = graph_path(args.output)

    import nrm_graph as ng

    with ng.open(args.store) as db:
        m = db.measure(args.input, target=args.target)
        graph = m.subgraph(top=args.top)
        write_graph(graph, path)
        _notes(m.flags)
    print(f"{path}: {graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges")


def _verify(args: argparse.Namespace) -> None:
    from nrm_graph.verify import verify
    from nrm_graph.verify.report import counted

    report = verify(args.store, sample=args.sample, progress=True)
    if args.format or args.output:
        write_table(report.to_table(), args.format, args.output)
    else:
        for finding in report.findings:
            print("".join(c if c.isprintable() else "?" for c in str(finding)))
    if args.format is None:
        print(report)
    if not report.sound:
        errors = counted(len(report.errors), "error")
        raise StoreError(
            f"{args.store} is damaged ({errors}): copy it again, or remove the shards named and "
            "extract their inputs anew"
        )


def _notes(flags: Sequence[str]) -> None:
    for flag in flags:
        print(f"note: {flag}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
