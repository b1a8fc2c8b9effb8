"""The commands that show inputs: ``concepts`` of a class, and ``references`` of a unit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nrm_graph.cli import arguments
from nrm_graph.cli.options import (
    EXPRESSIONS,
    FILE,
    averaging,
    command,
    form,
    most,
    store,
    units,
    weights,
    where,
)
from nrm_graph.cli.output import print_lines, table_format, write_table
from nrm_graph.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from nrm_graph.tables.html_tables import Tabular

_PICTURES = (".png", ".svg")
_SHOWN = ["key", "label", "target", "relevance", "activation"]
_output = click.option(
    "--output", type=FILE, metavar="FILE", help="write a picture (.png, .svg) or the table here"
)


@command(
    "nrm-graph concepts relevance.nrm --where \"label = 'cat'\" --layer features.28 \\\n"
    "      --k 8 --output concepts.png"
)
@store
@click.option("--layer", required=True, metavar="NAME", help="whose units to rank")
@where
@most("units", 8)
@click.option(
    "--examples", type=arguments.positive, default=6, metavar="N", help="inputs of each unit"
)
@click.option(
    "--among", metavar="SQL", help="inputs that examples are chosen from (those of --where)"
)
@units
@averaging("logit")
@weights
@form("of the table of units")
@_output
def concepts(
    store: str,
    layer: str,
    target: str | None,
    weights: tuple[str, ...],
    form: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Show the units of a layer that carry a class, each with inputs that tell what it is.

    Units are channels in convolutions, and those of largest positive mean R x logit over the
    inputs that --where chooses. A picture has for each the inputs in which it is most relevant,
    with the heat map of R(pixel given the unit).
    """
    picture = _picture(form, output)

    from nrm_graph import database
    from nrm_graph.network.target_texts import read_target

    with database.open(store, weights=weights or None) as db:
        aim = read_target(target, db.classes, db.outputs)
        found = db.concepts(layer=layer, target=aim, **options)
        _write(found, found.plot, picture, form, output)


@command(
    'nrm-graph references relevance.nrm "features.28[12]" --where "label = \'cat\'" \\\n'
    "      --output unit.png",
    EXPRESSIONS,
)
@store
@click.argument("expression", metavar="EXPR")
@where
@most("inputs", 9)
@click.option(
    "--by",
    type=click.Choice(("relevance", "activation")),
    default="relevance",
    help="what the network uses the unit for, or what the unit detects",
)
@click.option(
    "--weight", type=click.Choice(("unit", "logit")), default="unit", help="rank by R, or R x logit"
)
@weights
@form("of the table of inputs")
@_output
def references(
    store: str,
    expression: str,
    weights: tuple[str, ...],
    form: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Show the inputs in which a unit is most relevant, or most active, and what it reads there.

    EXPR is of whole units of one layer, such as a channel. The box of an input is the smallest that
    holds half of the positive R(pixel given the unit).
    """
    picture = _picture(form, output)
    event: Any = arguments.event(expression)

    from nrm_graph import database

    with database.open(store, weights=weights or None) as db:
        found = db.references(event, **options)

        def plot() -> Figure:
            from nrm_graph.plots import plot_references

            return plot_references(found, classes=db.classes)

        _write(found, plot, picture, form, output)
        if output is None and form is None:
            write_table(found.table.select(_SHOWN), "table")


def _picture(form: str | None, output: str | None) -> Path | None:
    """Check what is to be written, before it is computed; return the path of a picture."""
    if output is None or Path(output).suffix.lower() not in _PICTURES:
        table_format(form, output)
        return None
    if form is not None:
        raise InputError(
            f"--format {form} is of a table: leave it out, {output} is to be a picture"
        )
    from nrm_graph.output_files import in_folder

    return in_folder(Path(output))


def _write(
    found: Tabular,
    plot: Callable[[], Figure],
    picture: Path | None,
    form: str | None,
    output: str | None,
) -> None:
    """Write a picture or a table, or say what was found."""
    if picture is not None:
        from nrm_graph.plots.common import save_figure

        save_figure(plot(), picture)
        print_lines(found)
    elif output is None and form is None:
        print_lines(found)
    else:
        write_table(found.to_arrow(), form, output)
