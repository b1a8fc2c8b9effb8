"""The inputs of a store, to choose from: pictures or words, what they are, what was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dash import html

from nrm_graph.errors import InputError, NrmError
from nrm_graph.explorer import parts
from nrm_graph.explorer.input_filters import CLASSES, filters_of
from nrm_graph.explorer.pictures import stored_image, thumbnail_png
from nrm_graph.explorer.stored_texts import TOKENS, shown, strip, tame
from nrm_graph.propagation.flags import SHORT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dash.development.base_component import Component

    from nrm_graph.database import Database
    from nrm_graph.explorer.input_filters import InputFilters
    from nrm_graph.explorer.page import Page

SHOWN = 48
"""Inputs at once."""

CHOICES = 200
"""Labels and predictions that the filters list, the most frequent first."""

BYTES = 700_000
"""Of what a page of cards sends: of very long keys and large pictures fewer are shown."""

_COUNTS = """
SELECT count(*), count(DISTINCT key), count(*) FILTER (WHERE is_right),
  count(*) FILTER (WHERE NOT is_right)
FROM ({facts}) {where}
"""
_PAGE = """
SELECT input_id, key, label, predicted, words, is_right, logit, tokens[1:{most}] AS tokens,
  len(tokens) AS token_count
FROM ({facts}) {where}
ORDER BY item NULLS LAST, key, target NULLS LAST, input_id LIMIT $limit OFFSET $first
"""
_CHOICES = """
SELECT {column}, count(*) AS inputs FROM ({facts}) WHERE length({column}) <= 1000
GROUP BY ALL ORDER BY inputs DESC, {column} LIMIT {limit}
"""


@dataclass(frozen=True)
class Matching:
    """How many inputs the filters leave: pairs of key and target, keys, and how many are right."""

    pairs: int
    keys: int
    right: int
    wrong: int


def render(page: Page) -> list[Component]:
    """Return the gallery: filters, what is chosen, and cards of the inputs that match."""
    question = _Question(page, filters_of(page))
    try:
        matching = question.matching()
    except NrmError as error:
        return [_filters(page, question), *_chosen(page), parts.problem(str(error))]
    first = page.address.first
    if first >= matching.pairs:  # other filters left more inputs
        first = max(0, matching.pairs - 1) // SHOWN * SHOWN
    rows = question.rows(first) if matching.pairs else []
    pictures = page.answers.remembered(
        ("thumbnails", str(page.db.path), tuple(row["input_id"] for row in rows)),
        lambda: {row["input_id"]: _picture(page.db, row) for row in rows},
    )
    cards: list[html.Article] = []
    size = 0
    for row in rows:
        card, length = _card(page, row, pictures[row["input_id"]])
        size += length
        if cards and size > BYTES:
            break
        cards.append(card)
    return [
        _filters(page, question),
        *_chosen(page),
        _pages(page, matching, first, len(cards)),
        html.Div(cards, className="cards gallery"),
    ]


@dataclass(frozen=True)
class _Question:
    """What the filters of the address ask, as SQL with bound values."""

    page: Page
    filters: InputFilters

    def _ask(self, query: str, **params: Any) -> Any:
        used = {k: v for k, v in (self.filters.params | params).items() if f"${k}" in query}
        tables = {CLASSES: self.filters.classes}
        return self.page.db.sql(query, params=used, tables=tables)

    def matching(self) -> Matching:
        query = _COUNTS.format(facts=self.filters.facts, where=self.filters.where())
        return Matching(*self._ask(query).fetchall()[0])

    def rows(self, first: int) -> list[dict[str, Any]]:
        query = _PAGE.format(facts=self.filters.facts, where=self.filters.where(), most=TOKENS)
        rows: list[dict[str, Any]] = (
            self._ask(query, limit=SHOWN, first=first).to_arrow_table().to_pylist()
        )
        return rows

    def choices(self, column: str) -> dict[str, int]:
        """Values of a column and how many inputs of the whole store have each."""
        query = _CHOICES.format(column=column, facts=self.filters.facts, limit=CHOICES)
        return self.page.answers.remembered(
            ("choices", str(self.page.db.path), column), lambda: dict(self._ask(query).fetchall())
        )


def _filters(page: Page, question: _Question) -> html.Div:
    address = page.address
    listed = {}
    for name, column in (("label", "label"), ("prediction", "words")):
        counts = question.choices(column)
        options = {"": "any", **{v: f"{tame(v, 40)} ({n:,})" for v, n in counts.items()}}
        value = getattr(address, name)
        listed[name] = options if value in options else {**options, value: tame(value, 40)}
    outcomes = {"": "any", "right": "predicted right", "wrong": "predicted wrong"}
    where = {"placeholder": "SQL, such as logit < 2 AND label = 'cat'", "className": "wide"}
    return html.Div(
        [
            *parts.store_choice(page),
            parts.choice("label", address.label, "label", listed["label"]),
            parts.choice("prediction", address.prediction, "prediction", listed["prediction"]),
            parts.choice("outcome", address.outcome, "outcome", outcomes),
            parts.control("text", address.text, "text in key, label or tokens"),
            parts.control("where", address.where, "condition over inputs", **where),
        ],
        className="controls",
    )


def _pages(page: Page, matching: Matching, first: int, count: int) -> html.Div:
    address, texts = page.address, []
    total = f"{len(page.db):,}"
    if not matching.pairs:
        texts.append(f"No input of {total} matches.")
    else:
        texts.append(f"{first + 1:,} to {first + count:,} of {matching.pairs:,} inputs that match")
        texts.append(f" (the store has {total})" if matching.pairs != len(page.db) else "")
        if matching.keys != matching.pairs:
            texts.append(f", of {matching.keys:,} keys: a key stands once for each of its targets")
        if matching.right or matching.wrong:
            texts.append(f"; {matching.right:,} predicted right, {matching.wrong:,} wrong")
    links = []
    if first:
        links.append(parts.link(page.href(first=0), "first"))
        links.append(parts.link(page.href(first=max(0, first - SHOWN)), "previous"))
    if first + count < matching.pairs:
        links.append(parts.link(page.href(first=first + count), "next"))
    blank = {"where": "", "label": "", "prediction": "", "text": "", "outcome": "", "first": 0}
    if address.changed(**blank) != address.changed(first=0):
        links.append(parts.link(page.href(**blank), "without filters"))
    return html.Div([html.Span("".join(texts), className="matching"), *links], className="pages")


def _chosen(page: Page) -> list[Component]:
    """Say which inputs are chosen, one or two, with links to what can be done with them."""
    address = page.address
    if not address.input:
        return []
    none: dict[str, Any] = {"input": address.second, "target": address.second_target}
    none |= {"second": "", "second_target": ""}
    pieces: list[Any] = ["Chosen: ", *_named(page, address.input)]
    pieces.append(parts.link(page.href(**none), "take away", className="away"))
    if address.second:
        without = page.href(second="", second_target="")
        pieces += [" and ", *_named(page, address.second)]
        pieces += [parts.link(without, "take away", className="away"), " "]
        pieces.append(parts.link(page.href(view="flow"), "look at both", className="look"))
    else:
        pieces += [" ", parts.link(page.href(view="flow"), "look at it", className="look")]
        pieces.append(html.Span(" or choose a second one to compare it with.", className="note"))
    return [html.P(pieces, className="chosen")]


def _named(page: Page, key: str) -> list[Any]:
    here = key in page.db._snapshot.by_key
    return [shown(key), " " if here else " (not in this store) "]


def _card(
    page: Page, row: Mapping[str, Any], picture: bytes | str | None
) -> tuple[html.Article, int]:
    """Return the card of an input, and about how many bytes it takes."""
    db, address, key = page.db, page.address, row["key"]
    entry = db._snapshot.entries[row["input_id"]]
    target = page.target_of(row["input_id"])
    flow = page.href(view="flow", input=key, target=target, second="", second_target="")
    body: list[Any] = []
    if isinstance(picture, bytes):
        body.append(parts.picture(picture, "", className="thumbnail"))
    elif row["tokens"]:
        body.append(strip(row["tokens"], count=row["token_count"]))
    elif picture is not None:
        body.append(parts.note(picture))
    lines: list[Any] = [
        parts.link(flow, [*body, html.Strong(shown(key, 40))], className="look"),
        html.Div(_facts(db, row)),
    ]
    if entry.aim != row["predicted"]:
        words = db.outputs.text(entry.aim, db.classes)
        lines.append(html.Div(["explained: ", shown(words)]))
    lines.append(html.Div(f"logit {parts.number(float(row['logit']))}", className="logit"))
    flags = [
        html.Span(shown(SHORT.get(flag, flag), 40), className="chip") for flag in entry.flags or ()
    ]
    if flags:
        lines.append(html.Div(flags, className="flags"))
    first = (address.input, address.target) == (key, target)
    second = (address.second, address.second_target) == (key, target)
    lines.append(_choosing(page, key, target, first, second))
    state = " chosen-card" if first or second else ""
    size = len(flow) * 3 + 1500 + (4 * len(picture) // 3 if isinstance(picture, bytes) else 0)
    return html.Article(lines, className=f"card{state}"), size


def _facts(db: Database, row: Mapping[str, Any]) -> list[Any]:
    marks = {True: ("\N{CHECK MARK}", "right"), False: ("\N{BALLOT X}", "wrong")}
    predicted = row["words"]
    if len(db.outputs.parts) > 1 or len(db.outputs.parts[0][1]) > 1:
        predicted = db.outputs.text(row["predicted"], db.classes)
    facts: list[Any] = []
    if row["label"] is not None:
        facts += [html.Div(["label: ", shown(row["label"])])]
    line: list[Any] = ["predicted: ", shown(predicted)]
    if row["is_right"] is not None:
        mark, word = marks[row["is_right"]]
        line += [" ", html.Span([mark, f" {word}"], className=f"outcome {word}")]
    return [*facts, html.Div(line)]


def _choosing(page: Page, key: str, target: str, first: bool, second: bool) -> html.Div:
    """Link that chooses an input, the second one to compare, or takes it away again."""
    address = page.address
    values: dict[str, Any]
    if first:
        text, values = "chosen: take away", {"input": address.second, "second": ""}
        values |= {"target": address.second_target, "second_target": ""}
    elif second:
        text, values = "to compare: take away", {"second": "", "second_target": ""}
    elif address.input:
        text, values = "compare", {"second": key, "second_target": target}
    else:
        text, values = "choose", {"input": key, "target": target}
    return html.Div(parts.link(page.href(**values), text, className="choosing"))


def _picture(db: Database, row: Mapping[str, Any]) -> bytes | str | None:
    """Thumbnail of an input, or why there is none; nothing of words, which are shown as such."""
    if row["tokens"]:
        return None
    try:
        image = stored_image(db, db._snapshot.tensors(row["input_id"]))
    except InputError:
        return "no picture: the store was made without tensors"
    except NrmError as error:
        return f"no picture: {tame(str(error), 200)}"
    return "no picture: the input is no image" if image is None else thumbnail_png(image)
