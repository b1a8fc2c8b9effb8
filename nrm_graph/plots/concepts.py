"""Concepts of a class: a row for each unit, its reference inputs beside it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import InputError
from nrm_graph.plots.common import TEXT, new_figure, percent, wrapped
from nrm_graph.plots.gallery import draw_example
from nrm_graph.plots.token_strip import NAME, drawn_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nrm_graph.plots.protocols import ConceptsLike

_SIDE, _GAP, _BETWEEN, _LABEL, _ROW = 0.95, 0.04, 0.2, 1.9, 0.3  # inches


def plot_concepts(found: ConceptsLike, *, crop: bool = False) -> Figure:
    """Draw the units that carry a class, each with its reference inputs.

    Parameters
    ----------
    found : Concepts
        Of :meth:`nrm_graph.database.Database.concepts`.
    crop : bool
        Show the region and a margin around it instead of the whole input.

    Returns
    -------
    matplotlib.figure.Figure
        ``savefig`` writes it.

    Raises
    ------
    InputError
        If there is nothing to draw.

    Notes
    -----
    Each input is shown twice, as :func:`nrm_graph.plots.plot_references` shows it: as it is stored,
    and in grey below R(pixel given the unit), each on its own scale.  Frames are the smallest boxes
    that hold half of the positive conditional relevance.

    References
    ----------
    .. [1] R. Achtibat et al., "From attribution maps to human-understandable explanations through
       Concept Relevance Propagation", Nature Machine Intelligence 5 (2023), figure 2.
    """
    if not len(found):
        raise InputError("there is nothing to draw: no unit was found")
    columns = max(len(concept.references.images) for concept in found)
    step = 2 * _SIDE + _GAP + _BETWEEN
    width, head = _LABEL + columns * step + 0.1, 0.75
    height = head + len(found) * (_SIDE + _ROW)
    figure = new_figure(width, height, layout=None)
    style: dict[str, Any] = {"va": "center", "color": TEXT, "parse_math": False}
    sign = "R" if found.weight == "unit" else "R \N{MULTIPLICATION SIGN} logit"
    for line, concept in enumerate(found):
        bottom = height - head - line * (_SIDE + _ROW) - _SIDE
        spread = ""
        if concept.stderr == concept.stderr:  # no NaN
            spread = f" \N{PLUS-MINUS SIGN} {concept.stderr:.2g}"
        name = wrapped(drawn_words(concept.name, 3 * NAME), 72 * (_LABEL - 0.2), 8.0)
        text = (
            f"{name}\n{sign} {concept.relevance:.3g}{spread}\n{percent(concept.share)} of the layer"
        )
        figure.text(0.12 / width, (bottom + _SIDE / 2) / height, text, fontsize=8, **style)
        shown = concept.references
        for place, row in enumerate(shown.table.to_pylist()):
            x = _LABEL + place * step
            left, right = (
                figure.add_axes((at / width, bottom / height, _SIDE / width, _SIDE / height))
                for at in (x, x + _SIDE + _GAP)
            )
            draw_example(left, right, row, shown.images[place], shown.heatmaps[place], crop)
            caption = textwrap.shorten(drawn_words(row["key"]), 24, placeholder=" ...")
            middle = (x + _SIDE + _GAP / 2) / width
            place_below = (bottom - 0.09) / height
            figure.text(middle, place_below, caption, fontsize=6.5, ha="center", **style)
    chosen = "all inputs" if found.where is None else textwrap.shorten(found.where, 60)
    title = (
        f"Units of {drawn_words(found.layer)} that carry {found.keys:,} keys ({chosen}), by mean "
        f"{sign}; the inputs in which each is most relevant, and R(pixel given the unit)"
    )
    lines = wrapped(title, 72 * (width - 0.3), 9.0)
    figure.text(0.5, 1 - 0.3 / height, lines, fontsize=9, ha="center", **style)
    return figure
