"""The reference inputs of a unit as cards: where it is most relevant or active, and what it reads.

Pictures have the region framed and R(pixel given the unit) beside them; texts have their tokens
coloured by R(token given the unit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dash import html

from nrm_graph.circuits.references import references
from nrm_graph.errors import InputError, NrmError, UndefinedConditional
from nrm_graph.explorer import parts
from nrm_graph.explorer.input_picture import token_relevance
from nrm_graph.explorer.pictures import framed_pngs
from nrm_graph.explorer.stored_texts import shown, strip

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from dash.development.base_component import Component

    from nrm_graph.circuits.references import References
    from nrm_graph.database import Database
    from nrm_graph.events.sets import NeuronSet
    from nrm_graph.explorer.page import Page

SHOWN = 8
"""Reference inputs."""

SHARE = 0.5
"""Of the positive relevance of a picture that its frame holds at least."""


def reference_cards(page: Page, event: NeuronSet) -> list[Component]:
    """Return the cards of a unit's reference inputs, and what their pictures show.

    Raises
    ------
    NrmError
        As :func:`nrm_graph.circuits.references.references` does.
    """
    db, address = page.db, page.address
    name = ("references", str(db.path), repr(event), address.ranked, address.where)
    found, bodies, lost = page.answers.remembered(name, lambda: _computed(page, event))
    if not len(found):
        return [parts.note("No input matches.")]
    cards = []
    for row, body in zip(found.table.to_pylist(), bodies, strict=True):
        entry = db._snapshot.entries[row["input_id"]]
        target = page.target_of(row["input_id"])
        href = page.href(view="flow", input=row["key"], target=target, event=repr(event))
        label = [] if row["label"] is None else [html.Div(["label: ", shown(row["label"], 40)])]
        words = db.outputs.text(entry.aim, db.classes)
        cards.append(
            html.Article(
                [
                    parts.link(href, [body, html.Strong(shown(row["key"], 40))], className="look"),
                    *label,
                    html.Div(["explained: ", shown(words, 40)]),
                    html.Div(
                        f"R {parts.number(row['relevance'])}, activation "
                        f"{parts.number(row['activation'])}"
                    ),
                ],
                className="card",
            )
        )
    ranked = "relevance R(unit)" if address.ranked == "relevance" else "mean activation"
    texts = [
        f"The {len(found)} of {found.inputs:,} keys with the largest {ranked}, by stored values; "
        "what is drawn in them is exact, of this input given the unit, each on its own scale."
    ]
    if any(row["box"] for row in found.table.to_pylist()):
        texts.append(
            f"Frame: the smallest box that holds {SHARE:.0%} of the positive R(pixel given it)."
        )
    notes = [parts.note(" ".join(texts)), *([parts.note(lost)] if lost else [])]
    return [*notes, html.Div(cards, className="cards gallery reference-cards")]


def _computed(page: Page, event: NeuronSet) -> tuple[References, list[Component], str]:
    """Find references, with the body of each one's card, and why there are no pictures."""
    db, address = page.db, page.address
    options: dict[str, Any] = {"k": SHOWN, "by": address.ranked}
    options["where"] = address.where if address.where.strip() else None
    drawn = any(info.kind == "input" for info in db.topology.inputs)  # others have words
    try:
        ranked = references(db, event, share=SHARE if drawn else None, **options)
    except InputError as error:
        ranked = references(db, event, share=None, **options)  # raises what is not of tensors
        return ranked, [html.Div() for _ in range(len(ranked))], f"No pictures: {error}"
    rows = ranked.table.to_pylist()
    bodies = [
        _words(db, event, row["input_id"])
        if not drawn or ranked.images[i] is None
        else _pictures(row, ranked.images[i], ranked.heatmaps[i])
        for i, row in enumerate(rows)
    ]
    return ranked, bodies, ""


def _pictures(
    row: dict[str, Any], image: npt.NDArray[Any] | None, heat: npt.NDArray[np.float64] | None
) -> Component:
    assert image is not None
    left, right = framed_pngs(image, heat, row["box"])
    pair = [parts.picture(left, "the input, its region framed", className="reference")]
    if right is not None:
        about = "relevance of its pixels given the unit"
        pair.append(parts.picture(right, about, className="reference"))
    reason = [] if row["reason"] is None else [parts.note(row["reason"])]
    return html.Div([html.Div(pair, className="pair"), *reason])


def _words(db: Database, event: NeuronSet, identity: int) -> Component:
    """Tokens of an input, coloured by their relevance given the unit."""
    try:
        m = db.measure(identity)
        if m.tokens is None:
            return parts.note("The input is no image, and has no words.")
        try:
            sums = token_relevance(m.given(event))
        except UndefinedConditional as error:
            return html.Div([strip(m.tokens), parts.note(str(error))])
    except NrmError as error:
        return parts.note(str(error))
    if sums is None:
        return parts.note("The input is no image, and has no words.")
    return strip(m.tokens, sums.tolist())
