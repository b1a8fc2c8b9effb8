"""How a command is added to the parser, and the options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nrm_graph.cli.arguments import positive
from nrm_graph.cli.output import TABLE_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What commands are added to."""

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

GRAPH_FORMATS = """\
.graphml, .gexf, .json (node-link),
.attribution.json (circuit-tracer, Neuronpedia), .parquet, .neo4j.csv, .svg or .png."""


def add_command(
    commands: Commands,
    name: str,
    call: Callable[[argparse.Namespace], None],
    text: str,
    example: str,
    more: str = "",
) -> argparse.ArgumentParser:
    """Add a command without options.

    Parameters
    ----------
    commands : subparsers action
        Of the whole parser.
    name : str
        What it is called by.
    call : callable
        What runs it.
    text : str
        What it does, in one line.
    example : str
        A call of it.
    more : str
        What its help says beside its options.

    Returns
    -------
    argparse.ArgumentParser
        What its options are added to.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"{more}{chr(10) * 2 if more else ''}example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=call)
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """Let a command take the store that it is about."""
    parser.add_argument("store", metavar="STORE")


def add_given(parser: argparse.ArgumentParser) -> None:
    """Let a command condition on an event."""
    parser.add_argument("--given", metavar="EXPR", help="condition on this event")


def add_input(parser: argparse.ArgumentParser) -> None:
    """Let a command name an input, and which of its targets."""
    parser.add_argument("--input", required=True, metavar="KEY", help="key of the input")
    parser.add_argument(
        "--target",
        metavar="N",
        help="which of several targets: its number, class or POSITION:CLASS (-1:464); or "
        "weights of outputs, 3=1,5=-1",
    )


def add_where(parser: argparse.ArgumentParser) -> None:
    """Let a command choose inputs by SQL."""
    parser.add_argument(
        "--where", metavar="SQL", help="condition over inputs, such as \"label = 'cat'\" (all)"
    )


def add_averaging(parser: argparse.ArgumentParser, weight: str) -> None:
    """Let a command say what is averaged over inputs (by default ``weight``), and of which."""
    parser.add_argument(
        "--weight",
        choices=("unit", "logit"),
        default=weight,
        help=f"average R, or R x logit ({weight})",
    )
    parser.add_argument("--target", metavar="N", help="only inputs of this target")
    parser.add_argument(
        "--mixed-targets", action="store_true", help="allow inputs that explain other outputs"
    )


def add_table(parser: argparse.ArgumentParser) -> None:
    """Let a command write its table in a format, and to a file."""
    parser.add_argument("--format", choices=TABLE_FORMATS, help="by default that of --output")
    parser.add_argument("--output", metavar="FILE", help="write here, not to standard output")


def add_top(parser: argparse.ArgumentParser) -> None:
    """Let a command say how many edges its graph keeps."""
    parser.add_argument("--top", type=positive, default=200, help="edges to keep (200)")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Let a command show no progress bar."""
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
