"""Beside a circuit: how stable it is, and whether the running network depends on it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from nrm_graph.errors import NrmError
from nrm_graph.explorer import groups, parts
from nrm_graph.store.input_group import group

if TYPE_CHECKING:
    from collections.abc import Hashable

    from dash.development.base_component import Component

    from nrm_graph.circuits.stability import Stability
    from nrm_graph.evaluate.curves import Curves
    from nrm_graph.explorer.groups import Question
    from nrm_graph.explorer.page import Page

SPLITS, RESAMPLES = 100, 1000
"""Halvings and resamples of a group's keys."""
DRAWS = 20
"""Random orders that ablation compares with."""

_STABLE = ("edge", "mean", "low", "high", "frequency")


def checks(page: Page, asked: Question) -> list[Component]:
    """Return what was computed of stability and faithfulness, and links that compute the rest."""
    if asked.given is not None:
        said = "Stability and faithfulness are of the circuit of whole inputs, without an event."
        return [parts.note(said)]
    if asked.contrasts:
        return [parts.note("Stability and faithfulness are of the circuit of one group.")]
    return [_stability(page, asked), _faithfulness(page, asked)]


def stability_of(page: Page, asked: Question) -> Stability:
    """Compute how far the circuit depends on its inputs."""
    return page.answers.remembered(
        _stability_name(asked),
        lambda: asked.db.stability(
            asked.where, top=asked.edges, by=asked.by, splits=SPLITS, draws=RESAMPLES
        ),
    )


def faithfulness_of(page: Page, asked: Question) -> Curves:
    """Ablate a circuit of three quarters of the group's keys on the last quarter."""
    return page.answers.remembered(_faithfulness_name(asked), lambda: _ablated(asked))


def _ablated(asked: Question) -> Curves:
    from nrm_graph import evaluate

    halves = evaluate.split(asked.db, asked.where)
    circuit = asked.db.circuit(asked.where, inputs=halves.circuit, top=asked.edges, by=asked.by)
    own = "" if asked.where is None else f"({asked.where}\n) AND "
    return evaluate.faithfulness(
        asked.db, circuit, own + halves.held_out_where, draws=DRAWS, progress=False
    )


def _stability_name(asked: Question) -> tuple[Hashable, ...]:
    return "stability", *asked.name


def _faithfulness_name(asked: Question) -> tuple[Hashable, ...]:
    return "faithfulness", *asked.name


def _stability(page: Page, asked: Question) -> Component:
    title = "Stability: does it hold in halves and resamples of its inputs?"
    if not _wanted(page, "stability", _stability_name(asked)):
        keys = len(set(group(asked.db, asked.where).keys))
        said = (
            f"Reads every edge of the {keys:,} inputs once, and sums them for {2 * SPLITS + 1:,} "
            f"halves and {RESAMPLES:,} resamples: seconds, or minutes of millions of edges."
        )
        return _offer(page, title, "stability", said)
    try:
        found = stability_of(page, asked)
    except NrmError as error:
        return parts.section(title, parts.problem(str(error)), name="stability")
    ranks = found.rank_correlation
    said = (
        f"{found.n_keys:,} keys, and the {found.top:,} strongest edges, wherever they stand (those "
        "of the figure are chosen so that they connect). Two random halves, mean of "
        f"{len(found.splits):,}, have {found.overlap:.0%} in common (Jaccard "
        f"{found.jaccard:.3f}), rank correlation {'undefined' if ranks is None else f'{ranks:.3f}'}"
        f". Of {found.draws:,} resamples come the {found.level:.0%} intervals low to high, and the "
        "frequency with which the edge is among the strongest."
    )
    if not found.certified:
        said += f" Not certified: only the {found.candidates:,} largest edges were compared."
    if found.unknown:
        said += f" {found.unknown:,} edges that some input has no row of are left out."
    ends = (
        [groups.expression(asked, row[end], row[f"{end}_unit"]) for end in ("src", "dst")]
        for row in found.edges.to_pylist()
    )
    table = found.edges.append_column("edge", [[" → ".join(both) for both in ends]])
    return parts.section(title, parts.note(said), parts.table(table, _STABLE), name="stability")


def _faithfulness(page: Page, asked: Question) -> Component:
    title = "Faithfulness: does the network depend on it?"
    if not _wanted(page, "faithfulness", _faithfulness_name(asked)):
        from nrm_graph.evaluate.budgets import FRACTIONS
        from nrm_graph.evaluate.faithfulness import RIVALS

        keys = len(set(group(asked.db, asked.where).keys))
        runs = len(FRACTIONS) * (1 + DRAWS + len(RIVALS) - 1)
        said = (
            "Computes a circuit of three quarters of the keys, and ablates its units step by step "
            f"on the others, beside units in other orders: {runs:,} runs of the network on about "
            f"{round(keys / 4):,} inputs."
        )
        return _offer(page, title, "faithfulness", said)
    try:
        curves = faithfulness_of(page, asked)
        picture = _curves_png(curves)
    except NrmError as error:
        return parts.section(title, parts.problem(str(error)), name="faithfulness")
    areas = curves.areas()
    rows = areas.filter([score == "logit" for score in areas["score"].to_pylist()])
    columns = ("method", "area", "low", "high", "difference", "p")
    return parts.section(
        title,
        parts.note(
            f"A circuit of {curves.trained:,} inputs, its strongest units ablated on "
            f"{len(set(curves.keys)):,} others: the lower its curve, the more the network depends "
            "on it. area: mean height of the curve of the logit; difference: from the circuit's; "
            "p: share of random orders that do as well."
        ),
        parts.picture(picture, "faithfulness curves", className="plot"),
        parts.table(rows, columns),
        name="faithfulness",
    )


def _curves_png(curves: Curves) -> bytes:
    from nrm_graph.plots import plot_faithfulness

    figure: Any = plot_faithfulness(curves).get_figure(root=True)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, facecolor="white", bbox_inches="tight")
    return sink.getvalue()


def _wanted(page: Page, name: str, remembered: tuple[Hashable, ...]) -> bool:
    """Whether it was asked for, or is there already."""
    return page.address.computed == name or page.answers.knows(remembered)


def _offer(page: Page, title: str, name: str, said: str) -> Component:
    link = parts.link(page.href(computed=name), "Compute it", className="button")
    return parts.section(title, parts.note(said), link, name=name)
