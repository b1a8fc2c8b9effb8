"""How a function becomes a command, and the options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from os import PathLike, fspath
from typing import Any

import click

from nrm_graph.cli.arguments import nodes, positive, resolution
from nrm_graph.cli.output import TABLE_FORMATS

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

EXIT_CODES = """\
Exit codes:
  0  done
  1  other known failure
  2  wrong usage
  3  an input is not right
  4  the model or composite cannot be used
  5  an expression does not parse or fit, or a conditional is undefined
  6  the store is missing, damaged or in conflict
  7  the SQL query was refused or failed
  130 interrupted, 143 by SIGTERM, 129 by SIGHUP"""

EXPRESSIONS = """\
Expressions, as in Python with NumPy's indexing into a layer's shape:
  features.28[12]                     channel 12       A | B  either
  classifier.3[1] & features.28[12]   both             A - B  A and not B
  ~features.28[12]                    everything else
  classifier.3[1] -> classifier.0[7]  the direct step
  features.21[[3, 7], 4:9, :]         features.28.units([1, 2])
Names with other characters stand in quotes: "odd name"[3].
@FILE reads an event from JSON, as --save-event and ng.event_to_json write it."""

GRAPH_FORMATS = """\
Formats of graphs, by the suffix of --output:
  .graphml, .gexf, .json (node-link), .parquet, .neo4j.csv, .svg or .png
  .attribution.json (circuit-tracer, Neuronpedia)
  .html (one page that answers clicks; needs nrm-graph[explorer])"""

_WORD = re.compile(r"-?|[^-].*|-[\d.].*|.*\s.*", re.DOTALL)
"""No option: what begins without a dash or as a negative number, and text of several words."""


class AnyPath(click.Path):
    """A path that is judged where it is used; completion offers files."""

    def convert(self, value: str | PathLike[str], param: object, ctx: object) -> str:
        """Return it as it is."""
        return fspath(value)


class Command(click.Command):
    """A command with an example in its help, to which ``-1`` and ``-- comment`` are no options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set options and arguments apart: an option is never taken for the value of another."""
        valued = {
            name
            for option in self.get_params(ctx)
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        options: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for text in rest:
            if text == "--":
                words += rest
            elif text in valued:
                value = next(rest, None)
                if value is not None and _WORD.fullmatch(value):
                    options.append(f"{text}={value}")
                elif not ctx.resilient_parsing:
                    ctx.fail(
                        f"Option {text!r} expects a value, found nothing."
                        if value is None
                        else f"Option {text!r} expects a value, found {value!r}; if that is it, "
                        f"write {text}={value}"
                    )
            elif text.partition("=")[0] in valued or not _WORD.fullmatch(text):
                options.append(text)
            else:
                words.append(text)
        return super().parse_args(ctx, [*options, "--", *words])

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence of the help, however long it is."""
        return super().get_short_help_str(len(self.help or ""))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lines of the epilog as they are."""
        formatter.write(f"\n{self.epilog}\n")


def command(example: str, *more: str) -> Callable[[Function], click.Command]:
    """Make a command of a function; its docstring is the help.

    Parameters
    ----------
    example : str
        A call of it.
    *more : str
        What its help says below the options.
    """
    epilog = "\n\n".join([*more, f"Example:\n  {example}", EXIT_CODES])
    return click.command(cls=Command, epilog=epilog)


def _together(*options: Decorator) -> Decorator:
    """Return several options as one decorator, in the order in which help shows them."""
    return lambda function: functools.reduce(lambda f, option: option(f), options[::-1], function)


def averaging(weight: str) -> Decorator:
    """Let a command say what is averaged over inputs (by default ``weight``), and of which."""
    return _together(
        click.option(
            "--weight",
            type=click.Choice(("unit", "logit")),
            default=weight,
            help="average R, or R x logit",
        ),
        click.option("--target", metavar="N", help="only inputs of this target"),
        click.option(
            "--mixed-targets", is_flag=True, help="allow inputs that explain other outputs"
        ),
    )


exact = click.option(
    "--exact",
    is_flag=True,
    help="compute the chosen edges for every input, where the store leaves some out",
)


def most(what: str, number: int) -> Decorator:
    """Let a command say how many answers it shows at most."""
    text = f"how many {what} to show, the strongest"
    return click.option("--k", type=positive, default=number, metavar="N", help=text)


def form(text: str) -> Decorator:
    """Let a command write a table in a format; ``text`` is its help."""
    return click.option("--format", "form", type=click.Choice(TABLE_FORMATS), help=text)


reduction = _together(
    click.option(
        "--watch",
        multiple=True,
        metavar="LAYER",
        help='layers to watch, by name or pattern ("layer?.?", * crosses dots), or neurons '
        '("conv2[3]"); several times for several',
    ),
    click.option(
        "--by",
        type=resolution,
        default="unit",
        metavar="HOW",
        help="what neurons of a layer are one node: unit, neuron, channel, feature, token, head, "
        "layer; or LAYER=HOW,...",
    ),
    click.option(
        "--nodes",
        type=nodes,
        default="200",
        metavar="N",
        help="how many units are watched, the strongest: a number, all, or LAYER=N,...",
    ),
)
units = click.option(
    "--by",
    type=resolution,
    metavar="HOW",
    help="sum units when asked: channel, feature, token, head or neuron in layers of that kind, or "
    "LAYER=HOW,...",
)
tables = click.option(
    "--tables", metavar="NAME", help="reduced tables that were materialized, by their name"
)

FILE = AnyPath()
store = click.argument("store", type=FILE)
given = click.option("--given", metavar="EXPR", help="condition on this event")
measured = _together(
    click.option("--input", "key", required=True, metavar="KEY", help="key of the input"),
    click.option(
        "--target",
        metavar="N",
        help="which of several targets: its number, class or POSITION:CLASS (-1:464); or weights "
        "of outputs, 3=1,5=-1",
    ),
)
weights = click.option(
    "--weights",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="weights of the network, as safetensors, where the store names them alone; several times "
    "for several files",
)
where = click.option(
    "--where", metavar="SQL", help="condition over inputs, such as \"label = 'cat'\" (all)"
)
table = _together(
    form("by default that of --output"),
    click.option("--output", type=FILE, metavar="FILE", help="write here, not to standard output"),
)
top = click.option("--top", type=positive, default=200, metavar="N", help="edges to keep, at most")
connected = click.option(
    "--connected/--no-connected",
    default=True,
    help="edges on ways from the target to an end, or the strongest wherever they stand",
)
quiet = click.option("--quiet", is_flag=True, help="show no progress bar")
