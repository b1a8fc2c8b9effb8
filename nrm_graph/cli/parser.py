"""The commands of the command line and their options."""

from __future__ import annotations

import argparse
from typing import Any

from nrm_graph.cli import arguments, commands
from nrm_graph.cli.output import TABLE_FORMATS

EXIT_CODES = """\
exit codes:
  0 done                    5 an expression does not parse or fit, or a conditional is undefined
  1 other known failure     6 the store is missing, damaged or in conflict
  2 wrong usage             7 the SQL query was refused or failed
  3 an input is not right   130 interrupted, 143 by SIGTERM, 129 by SIGHUP
  4 the model or composite cannot be used"""

EXPRESSIONS = """\
expressions, as in Python with NumPy's indexing into a layer's shape:
  features.28[12]                      channel 12          features.21[[3, 7], 4:9, :]
  classifier.3[1] & features.28[12]    both                A | B   either
  ~features.28[12]                     everything else     A - B   A and not B
  classifier.3[1] -> classifier.0[7]   the direct step     features.28.units([1, 2])
Names with other characters stand in quotes: "odd name"[3].
@FILE reads an event from JSON, as --save-event and ng.event_to_json write it."""

SUFFIXES = """\
.graphml, .gexf, .json (node-link),
.attribution.json (circuit-tracer, Neuronpedia), .parquet, .neo4j.csv, .svg or .png."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from nrm_graph import __version__

    whole = argparse.ArgumentParser(
        prog="nrm-graph",
        description="Turn a trained network and inputs into a relevance database, and ask it.",
        epilog=f"start here:\n  nrm-graph demo\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"nrm-graph {__version__}")
    subparsers = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, call: Any, text: str, example: str, more: str = "") -> Any:
        sub = subparsers.add_parser(
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
        commands.demo,
        "Extract a store of the images that the package ships, and tour it.",
        "nrm-graph demo --store demo.nrm --picture demo.svg",
    )
    demo.add_argument("--store", default="nrm-demo.nrm", help="store to write (nrm-demo.nrm)")
    demo.add_argument("--picture", default="nrm-demo.png", help="picture to write (nrm-demo.png)")

    extract = add(
        "extract",
        commands.extract,
        "Extract the relevance of inputs into a store, or continue it.",
        "nrm-graph extract torchvision:vgg16@weights.pt photos/ --store relevance.nrm",
        "MODEL is torchvision:NAME (pretrained), torchvision:NAME@weights.pt,\n"
        "torchvision:NAME@random:SEED, a file of torch.export.save (.pt2) or\n"
        "package.module:function, which gives a model, or (model, preprocessing, classes).\n"
        "The last two RUN CODE: use only files and modules that you trust.\n\n"
        "INPUTS is a folder of images (sub-folders are labels), an image, or an .npy or .npz\n"
        "file (arrays images or inputs, and labels); float arrays are taken as they are, whole\n"
        "numbers as token ids. Several arrays named like forward's arguments feed a network of\n"
        "several inputs; an array of texts named tokens names the positions.\n"
        "Images are read without their EXIF orientation and transparency, as torchvision does.\n\n"
        "The same command again goes on where it stopped. With --on-error skip, inputs that\n"
        "fail are kept in the table failures, which info shows, and the exit code is 0.\n\n"
        "A large network in little space:\n"
        "  nrm-graph extract torchvision:vgg16 photos/ --store small.nrm --coverage 0.99 \\\n"
        "      --mantissa-bits 10 --tensors omit --on-error skip",
    )
    extract.add_argument("model", metavar="MODEL")
    extract.add_argument("inputs", metavar="INPUTS")
    extract.add_argument("--store", required=True, help="store to write or continue")
    extract.add_argument("--composite", default="epsilon_gamma", help="rules (epsilon_gamma)")
    extract.add_argument(
        "--target",
        default="predicted",
        type=arguments.target,
        help="predicted, label, an output's number, POSITION:CLASS (-1:464 or -1:predicted) of an "
        "output of several axes, NAME:... of several outputs; several with commas; or weights of "
        "outputs, 3=1,5=-1 (predicted)",
    )
    extract.add_argument(
        "--output",
        metavar="NAME",
        type=arguments.names,
        help="of a network that returns several tensors, the one to explain, or several with "
        "commas, by name; those of a tuple by their numbers from 0",
    )
    extract.add_argument(
        "--resolution",
        default="auto",
        type=arguments.resolution,
        help="auto, neuron, channel, feature, token, head, or by layer: features.0=channel,... "
        "(auto)",
    )
    extract.add_argument(
        "--coverage", type=float, default=1.0, help="keep the strongest edges up to this share (1)"
    )
    extract.add_argument(
        "--top",
        type=arguments.positive,
        help="keep at most so many edges for each input and pair of layers",
    )
    extract.add_argument(
        "--mantissa-bits", type=arguments.positive, help="round edges, 1 to 22 bits (lossless)"
    )
    extract.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what an input that cannot be read or explained does (stop)",
    )
    extract.add_argument(
        "--tensors",
        choices=("keep", "omit"),
        default="keep",
        help="keep the inputs in the store, which exact queries need, or omit them (keep)",
    )
    extract.add_argument(
        "--classes", metavar="FILE", help="names of the outputs, one a line (those of the model)"
    )
    extract.add_argument(
        "--preprocessing", metavar="WORDS", help="how the inputs were prepared, kept in the store"
    )
    extract.add_argument(
        "--batch-size", type=arguments.positive, default=16, help="inputs at once (16)"
    )
    extract.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (auto)")
    extract.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where inputs are explained; ray needs pip install 'nrm-graph[ray]' (local)",
    )
    extract.add_argument(
        "--workers", type=arguments.positive, metavar="N", help="processes with --engine ray"
    )
    extract.add_argument("--quiet", action="store_true", help="show no progress bar")

    info = add(
        "info",
        commands.info,
        "Show what a store holds and the names of its layers.",
        "nrm-graph info relevance.nrm",
        "Expressions accept a layer's name and its aliases.\n"
        "--format csv, json or parquet gives the table of layers alone.",
    )
    sql = add(
        "sql",
        commands.sql,
        "Run a SQL query over inputs, layers, nodes, edges and flows.",
        'nrm-graph sql relevance.nrm "SELECT key, logit FROM inputs" --format csv',
        "Exact zeros are not stored: a mean is sum(relevance) / number of inputs, not avg().\n"
        "Tables of conditions: NAME_inputs, NAME_nodes and NAME_edges, see materialize.",
    )
    relevance = add(
        "relevance",
        commands.relevance,
        "Exact relevance of an event for one input.",
        'nrm-graph relevance relevance.nrm --input cat.png "features.28[12] & features.21[3]"',
        EXPRESSIONS,
    )
    paths = add(
        "paths",
        commands.paths,
        "The strongest walks of one input through given layers, with their exact relevance.",
        "nrm-graph paths relevance.nrm --input cat.png --layers features.28,features.21 --k 20",
        "The last line says how strong a path can be that is not listed, and whether the list is\n"
        "certified to hold the strongest.\n\n" + EXPRESSIONS,
    )
    materialize = add(
        "materialize",
        commands.materialize,
        "Store the tables of many inputs, conditioned on an event, for SQL.",
        'nrm-graph materialize relevance.nrm --name given_b "features.28[12]"\n'
        '  nrm-graph sql relevance.nrm "SELECT * FROM given_b_nodes"',
        "Tables NAME_nodes and NAME_edges hold R(node and event) / R(event), NAME_inputs holds\n"
        "R(event) by input, and why an input is undefined.  The same command again goes on\n"
        "where it stopped.\n\n" + EXPRESSIONS,
    )
    subgraph = add(
        "subgraph",
        commands.subgraph,
        "Write the strongest edges of one input as a graph or picture.",
        "nrm-graph subgraph relevance.nrm --input cat.png --top 100 --output cat.svg",
        "The suffix of --output names the format: " + SUFFIXES,
    )
    circuit = add(
        "circuit",
        commands.circuit,
        "The strongest edges that a group of inputs has in common, with statistics.",
        "nrm-graph circuit relevance.nrm --where \"label = 'cat'\" --output cat.svg",
        "Relevances are means over the group; exact zeros count.  Without --output the edges are\n"
        "printed.  Its suffix names the format: " + SUFFIXES + "\n\n" + EXPRESSIONS,
    )
    contrast = add(
        "contrast",
        commands.contrast,
        "Where two groups of inputs differ: differences of edges, with p- and q-values over keys.",
        "nrm-graph contrast relevance.nrm \"label = 'cat'\" \"label = 'dog'\" --target 3",
        "A and B are SQL conditions over inputs.  Without --output or --format the strongest are\n"
        "shown.  It needs scipy: pip install 'nrm-graph[stats]'.",
    )
    compact = add(
        "compact",
        commands.compact,
        "Merge the small shards of a store, and delete files that were replaced long ago.",
        "nrm-graph compact relevance.nrm --older-than 3600",
        "Readers and writers may be at work meanwhile: one that opened the store before goes on\n"
        "with the old files until they are deleted.",
    )
    delete = add(
        "delete",
        commands.delete,
        "Delete keys with all their targets, so that they can be extracted again.",
        "nrm-graph delete relevance.nrm cat.png dog.png",
        "Their files are deleted by the next compact, once they are old enough.",
    )
    drop = add(
        "drop",
        commands.drop,
        "Drop a condition, so that its name can be used again.",
        "nrm-graph drop relevance.nrm given_b",
        "Its files are deleted by the next compact, once they are old enough.",
    )
    verify = add(
        "verify",
        commands.verify,
        "Check a store: checksums, rows, conservation, and a sample computed again.",
        "nrm-graph verify relevance.nrm --sample 10",
        "One line per finding says what is wrong and where.  Notes leave a store sound (exit 0);\n"
        "an error means that it is damaged (exit 6).",
    )
    verify.add_argument("store", metavar="STORE")
    verify.add_argument(
        "--sample",
        type=arguments.count,
        default=3,
        metavar="N",
        help="inputs to compute again from the stored program (3)",
    )
    verify.add_argument("--format", choices=TABLE_FORMATS, help="findings as a table")
    verify.add_argument("--output", metavar="FILE", help="write that table here")
    for sub in (
        *(info, sql, relevance, paths, materialize, subgraph),
        *(circuit, contrast, compact, delete, drop),
    ):
        sub.add_argument("store", metavar="STORE")
    sql.add_argument("query", metavar="QUERY")
    sql.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="stop a query that takes longer, exit code 7 (no limit)",
    )
    drop.add_argument("name", metavar="NAME")
    relevance.add_argument("expression", metavar="EXPR")
    relevance.add_argument("--save-event", metavar="FILE", help="write the event as JSON")
    paths.add_argument(
        "--layers",
        metavar="A,B,...",
        type=arguments.names,
        help="layers to pass (those that every walk passes)",
    )
    paths.add_argument("--k", type=arguments.positive, default=10, help="number of paths (10)")
    paths.add_argument(
        "--by",
        choices=("unit", "neuron", "channel", "feature", "token", "head"),
        default="unit",
        help="what a step of a path is: the store's unit, or another (unit)",
    )
    for sub in (relevance, paths, subgraph):
        sub.add_argument("--given", metavar="EXPR", help="condition on this event")
    contrast.add_argument("a", metavar="A")
    contrast.add_argument("b", metavar="B")
    contrast.add_argument(
        "--edges", type=arguments.positive, default=1000, help="edges to compare (1000)"
    )
    contrast.add_argument(
        "--adjust", choices=("bh", "by"), default="bh", help="q-values of BH or Yekutieli (bh)"
    )
    contrast.add_argument(
        "--draws", type=arguments.positive, default=10_000, help="permutations (10000)"
    )
    contrast.add_argument("--seed", type=arguments.count, default=0, help="of permutations (0)")
    compact.add_argument(
        "--older-than",
        type=float,
        default=86400.0,
        metavar="SECONDS",
        help="delete files that were replaced so long ago (a day)",
    )
    delete.add_argument("keys", metavar="KEY", nargs="+")
    circuit.add_argument(
        "--where", metavar="SQL", help="condition over inputs, such as \"label = 'cat'\" (all)"
    )
    circuit.add_argument("--top", type=arguments.positive, default=200, help="edges to keep (200)")
    circuit.add_argument(
        "--given",
        metavar="NAME|EXPR",
        help="a condition that was materialized, by its name or event: ratios of means",
    )
    circuit.add_argument(
        "--per-input", action="store_true", help="with --given: the mean of single conditionals"
    )
    circuit.add_argument(
        "--layers", metavar="A,B,...", type=arguments.names, help="only edges between these"
    )
    for sub, weight in ((circuit, "unit"), (contrast, "logit")):
        sub.add_argument(
            "--weight",
            choices=("unit", "logit"),
            default=weight,
            help=f"average R, or R x logit ({weight})",
        )
        sub.add_argument("--target", metavar="N", help="only inputs of this target")
        sub.add_argument(
            "--mixed-targets", action="store_true", help="allow inputs that explain other outputs"
        )
    circuit.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where sums are made (local)"
    )
    circuit.add_argument("--format", choices=TABLE_FORMATS, help="of the printed edges (table)")
    circuit.add_argument("--output", metavar="FILE", help="write the graph here")
    materialize.add_argument("event", metavar="EXPR")
    materialize.add_argument("--name", required=True, help="of the tables: letters, digits and _")
    materialize.add_argument(
        "--where", metavar="SQL", help="condition over inputs, such as \"label = 'cat'\" (all)"
    )
    materialize.add_argument("--device", default="cpu", help="auto, cpu, cuda, ... (cpu)")
    materialize.add_argument("--quiet", action="store_true", help="show no progress bar")
    for sub in (relevance, paths, subgraph):
        sub.add_argument("--input", required=True, metavar="KEY", help="key of the input")
        sub.add_argument(
            "--target",
            metavar="N",
            help="which of several targets: its number, class or POSITION:CLASS (-1:464); or "
            "weights of outputs, 3=1,5=-1",
        )
    for sub in (info, sql, relevance, paths, contrast):
        sub.add_argument("--format", choices=TABLE_FORMATS, help="by default that of --output")
        sub.add_argument("--output", metavar="FILE", help="write here, not to standard output")
    subgraph.add_argument("--top", type=arguments.positive, default=200, help="edges to keep (200)")
    subgraph.add_argument("--output", required=True, metavar="FILE")
    return whole
