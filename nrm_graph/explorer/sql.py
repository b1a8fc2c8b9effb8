"""Read-only SQL over the store, with limits of rows, time and memory, as a table and a chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from dash import dcc, html

from nrm_graph.errors import NrmError, QueryError
from nrm_graph.explorer import parts
from nrm_graph.explorer.charts import POINTS, chart
from nrm_graph.network.topology import ENDS
from nrm_graph.store.read.interruptible import OutOfMemory
from nrm_graph.store.read.sql import SqlReader
from nrm_graph.store.read.table_queries import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dash.development.base_component import Component

    from nrm_graph.database import Database
    from nrm_graph.explorer.page import Page

ROWS = 10_000
"""Rows that are fetched at most."""
SECONDS = 20.0
"""Time that a query may take."""
MEMORY = "1GB"
"""Memory that DuckDB may work in, and as much that it may spill to disk."""
LETTERS = 2_000
"""Letters of a cell; longer ones are cut, and end in an ellipsis."""
SHOWN = 160
"""Letters of a cell that the page shows."""
COLUMNS = 40
"""Columns that the page shows."""

_CUT = "\N{HORIZONTAL ELLIPSIS}"
_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "BOOLEAN")  # HUGEINT, UTINYINT, ... hold INT


@dataclass(frozen=True)
class Answer:
    """Rows of a query, within the limits.

    Attributes
    ----------
    rows : pyarrow.Table
        At most :data:`ROWS` rows; what is neither number nor truth value is text, of at most
        :data:`LETTERS` letters.
    more : bool
        Whether there are further rows.
    """

    rows: pa.Table
    more: bool


def answer(page: Page) -> Answer:
    """Run the query of the address, or return what it gave before.

    Raises
    ------
    QueryError
        If it is refused, fails or needs more time or memory than it may have.
    """
    db, query = page.db, page.address.query
    return page.answers.remembered(("sql", str(db.path), query), lambda: _run(page, query))


def _run(page: Page, query: str) -> Answer:
    db = page.db
    # Circuits of this store need more: their limits are those of the machine.
    reader = page.answers.remembered(
        ("sql reader", str(db.path)),
        lambda: SqlReader(
            db._tables(),
            db._running,
            (f"memory_limit = '{MEMORY}'", f"max_temp_directory_size = '{MEMORY}'"),
        ),
    )
    try:
        relation = reader.query(query, timeout=SECONDS)
        columns = [
            f"#{i} AS {quoted(name)}"
            if any(kind in str(type_) for kind in _NUMBERS) and "[" not in str(type_)
            else f"left(CAST(#{i} AS VARCHAR), {LETTERS + 1}) AS {quoted(name)}"
            for i, (name, type_) in enumerate(zip(relation.columns, relation.types, strict=True), 1)
        ]
        rows = relation.project(", ".join(columns)).limit(ROWS + 1).to_arrow_table()
    except OutOfMemory as error:
        raise QueryError(
            f"the query needs more than {MEMORY} of memory, which is what it may have here: "
            "ask for less, or run it in Python, by db.sql(...)"
        ) from error
    return Answer(_cut(rows.slice(0, ROWS), LETTERS), len(rows) > ROWS)


def _cut(rows: pa.Table, most: int) -> pa.Table:
    """Cut long texts."""
    for i, field in enumerate(rows.schema):
        if pa.types.is_string(field.type):
            texts = rows.column(i).to_pylist()
            texts = [t if t is None or len(t) <= most else t[:most] + _CUT for t in texts]
            rows = rows.set_column(i, field.name, pa.array(texts, pa.string()))
    return rows


def render(page: Page) -> list[Component]:
    """Return the field of the query, what there is to ask, and the answer."""
    db, query = page.db, page.address.query
    described = page.answers.remembered(("tables", str(db.path)), lambda: tables(db))
    offered = page.answers.remembered(("examples", str(db.path)), lambda: examples(db))
    links = [
        parts.link(page.href(query=one.query, chart=one.chart), one.title, className="chip")
        for one in offered
    ]
    kinds = {"": "none", "bar": "bars", "line": "lines", "points": "points"}
    entry = html.Div(
        [
            html.Label(
                [
                    html.Span("one SELECT, read-only"),
                    dcc.Textarea(
                        id={"text": "query"}, value=query, className="query", spellCheck=False
                    ),
                ],
                className="control",
            ),
            html.Div(
                [
                    html.Button("Run", id={"submit": "query"}, className="button submit"),
                    parts.choice("chart", page.address.chart, "chart", kinds),
                    *parts.store_choice(page),
                ],
                className="controls",
            ),
            html.Div(links, className="chips", id="sql-examples"),
            parts.note(
                f"Up to {ROWS:,} rows, {SECONDS:g} s, {MEMORY} of memory for DuckDB to work in and "
                f"{LETTERS:,} letters a cell."
            ),
        ]
    )
    listed = [
        html.Details(
            [html.Summary(name), html.Code(", ".join(columns))], open=name in ("inputs", "flows")
        )
        for name, columns in described.items()
    ]
    asked = html.Div(
        [html.Div(entry, className="asked"), html.Div(listed, className="schema")],
        className="columns",
    )
    return [asked, *([_result(page)] if query.strip() else [])]


def _result(page: Page) -> html.Section:
    try:
        found = answer(page)
    except NrmError as error:
        said = str(error).partition("\n")[0]  # below stands the place in the query
        return parts.section("Result", parts.problem(said), name="result")
    rows = found.rows
    blocks: list[Any] = []
    if page.address.chart:
        try:
            figure = chart(rows, page.address.chart)
            blocks.append(parts.graph("chart", figure))
        except NrmError as error:
            blocks.append(parts.problem(str(error)))
    said = f"{len(rows):,} row{'s' * (len(rows) != 1)}"
    if found.more:
        said = f"The first {ROWS:,} rows: there are more, which neither page nor export has."
    if page.address.chart and len(rows) > POINTS:
        said += f"; the chart is of the first {POINTS:,}"
    if rows.num_columns > COLUMNS:
        said += f", of whose {rows.num_columns:,} columns {COLUMNS} are shown"
    names = _distinct(rows.column_names)[:COLUMNS]
    shown = _cut(rows.select(list(range(len(names)))).rename_columns(names), SHOWN)
    blocks += [parts.note(said), parts.table(shown, links=_links(page, rows))]
    return parts.section("Result", *blocks, name="result")


def _links(page: Page, rows: pa.Table) -> Mapping[str, Callable[[Mapping[str, Any]], str | None]]:
    """Return what makes links of the keys of inputs."""
    if "key" not in rows.column_names:
        return {}
    known = page.db._snapshot.by_key

    def href(row: Mapping[str, Any]) -> str | None:
        key = row["key"]
        if not isinstance(key, str) or key not in known:
            return None
        target = row.get("target")
        asked = {"input": key, "target": target if isinstance(target, int) else ""}
        return page.href(view="flow", second="", event="", unit="", **asked)

    return {"key": href}


def _distinct(names: list[str]) -> list[str]:
    """Return names of which none comes again: a row is shown by its columns' names."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        numbered = name if seen[name] == 1 else f"{name} ({seen[name]})"
        while numbered in distinct:
            seen[name] += 1
            numbered = f"{name} ({seen[name]})"
        distinct.append(numbered)
    return distinct


def tables(db: Database) -> dict[str, list[str]]:
    """Return the tables that SQL sees, with their columns."""
    first = ("inputs", "flows", "units", "layers", "nodes", "edges")
    every = db._tables().names
    names = [name for name in first if name in every] + sorted(every - set(first))
    return {name: list(db.sql(f"SELECT * FROM {quoted(name)} LIMIT 0").columns) for name in names}


@dataclass(frozen=True)
class Example:
    """A query that fits a store.

    Attributes
    ----------
    title, query, chart : str
        What it asks, in words and as SQL; how it is drawn.
    """

    title: str
    query: str
    chart: str


def examples(db: Database) -> list[Example]:
    """Return three queries that fit a store."""
    label, key = _some(db)
    inner = [layer for layer in db.topology.layers if layer.kind not in ENDS]
    layer = (inner[-2:] or db.topology.layers)[0].name
    group = "label IS NULL" if label is None else f"label = {literal(label)}"
    name = "inputs without a label" if label is None else label
    return [
        Example(
            "logits by label",
            "SELECT label, avg(logit) AS mean_logit, min(logit) AS least, max(logit) AS most,\n"
            "  count(*) FILTER (WHERE predicted <> target) AS wrong, count(*) AS inputs\n"
            "FROM inputs GROUP BY label ORDER BY mean_logit DESC, label",
            "bar",
        ),
        Example(
            f"units of {layer} that carry {name}",
            "SELECT unit, sum(relevance) / (SELECT count(*) FROM inputs WHERE "
            f"{group}) AS mean_relevance\n"
            "FROM nodes JOIN inputs USING (input_id) JOIN layers USING (layer_id)\n"
            f"WHERE inputs.{group} AND layers.name = {literal(layer)} AND unit >= 0\n"
            "GROUP BY unit ORDER BY abs(sum(relevance)) DESC, unit LIMIT 30",
            "bar",
        ),
        Example(
            f"strongest edges of {key}",
            "SELECT src_name, dst_name, relevance, conditional\n"
            f"FROM flows WHERE key = {literal(key)}\n"
            "ORDER BY abs(relevance) DESC LIMIT 50",
            "",
        ),
    ]


def _some(db: Database) -> tuple[str | None, str]:
    """Return the commonest label and a key."""
    rows = db.sql(
        "SELECT label, min(key) FROM inputs GROUP BY label "
        "ORDER BY label IS NULL, count(*) DESC, label LIMIT 1"
    ).fetchall()
    return rows[0] if rows else (None, "")
