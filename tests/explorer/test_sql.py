"""The SQL view: results, limits, refusals as sentences, and hostile texts shown as text."""

import json

import plotly
import pytest
from dash import html
from helpers import explored

from nrm_graph.errors import QueryError
from nrm_graph.explorer import sql
from nrm_graph.explorer.stored_texts import tame


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    return explored.store(tmp_path_factory.mktemp("sql") / "s.nrm", target=2)


def asked(db, query, **address):
    return explored.page(db, view="sql", query=query, **address)


@pytest.mark.smoke
def test_rows_are_those_of_sql(db):
    query = "SELECT key, label, logit FROM inputs ORDER BY logit"
    page = asked(db, query)
    assert sql.answer(page).rows == db.sql(query).to_arrow_table()
    view = sql.render(page)
    rows = explored.cells(view, "result")
    expected = db.sql(query).fetchall()
    assert rows[0] == ["key", "label", "logit"]
    assert [r[:2] for r in rows[1:]] == [list(r[:2]) for r in expected]
    assert [float(r[2]) for r in rows[1:]] == pytest.approx([r[2] for r in expected], rel=1e-3)
    assert explored.links(view, "k0")["k0"].input == "k0"
    (entry,) = [p for p in explored.walk(view) if getattr(p, "id", None) == {"text": "query"}]
    (button,) = [p for p in explored.walk(view) if getattr(p, "id", None) == {"submit": "query"}]
    assert (entry.value, button.children) == (query, "Run")


def test_examples_run_and_are_drawn(db, tmp_path):
    unlabelled = explored.store(tmp_path / "s.nrm", labels=[None] * 12)
    for store in (db, unlabelled):
        offered = sql.examples(store)
        assert len(offered) == 3
        for example in offered:
            view = sql.render(asked(store, example.query, chart=example.chart))
            assert len(explored.cells(view, "result")) > 1
            assert "role='alert'" not in str(view)
            if example.chart:
                assert len(explored.figure(view, "chart").data[0].y) > 0
        links = explored.links(sql.render(explored.page(store, view="sql"))).values()
        assert [e.query for e in offered] == [address.query for address in links]


def test_tables_are_listed_with_their_columns(db):
    listed = sql.tables(db)
    assert set(listed) == set(db._tables().names)
    assert listed["inputs"] == db.sql("SELECT * FROM inputs").columns
    text = explored.texts(sql.render(explored.page(db, view="sql")))
    assert "dst_name, src_name" in text


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("INSERT INTO inputs VALUES (1)", "SELECT"),
        ("DROP TABLE inputs", "SELECT"),
        ("COPY inputs TO '/tmp/out.csv'", "SELECT"),
        ("ATTACH '/tmp/x.db'", "SELECT"),
        ("SELECT 1; SELECT 2", "one"),
        ("SELECT * FROM read_csv('/etc/passwd')", "read_csv"),
        ("SELECT * FROM '/etc/passwd'", "passwd"),
        ("SELECT nothing FROM inputs", "nothing"),
        ("SELECT * FROM range(1, 10)  x JOIN", "syntax"),
        ("SET memory_limit = '9GB'", "SELECT"),
    ],
)
def test_what_is_no_reading_of_the_store_is_refused_in_a_sentence(db, query, sentence):
    view = sql.render(asked(db, query))
    (alert,) = [p for p in explored.walk(view) if getattr(p, "role", None) == "alert"]
    assert sentence.lower() in alert.children.lower()
    assert "\n" not in alert.children


def test_rows_are_limited_and_said_to_be(db):
    page = asked(db, "SELECT i FROM range(20000) t(i) ORDER BY i * 7919 % 20011")
    found = sql.answer(page)
    assert found.more
    assert (
        found.rows["i"].to_pylist() == sorted(range(20000), key=lambda i: i * 7919 % 20011)[:10000]
    )
    text = explored.texts(sql.render(page))
    assert "The first 10,000 rows: there are more" in text
    assert "9,800 more rows" in text


def test_time_is_limited(db, monkeypatch):
    monkeypatch.setattr(sql, "SECONDS", 0.2)
    query = "SELECT count(*) FROM range(100000000) a(i), range(1000000) b(j) WHERE i * j % 7 = 3"
    with pytest.raises(QueryError, match=r"stopped after timeout=0\.2 s"):
        sql.answer(asked(db, query))


def test_memory_is_limited_and_the_library_s_own_queries_are_not(db, monkeypatch):
    monkeypatch.setattr(sql, "MEMORY", "40MB")
    query = "SELECT list(i) AS l FROM range(6000000) t(i)"
    with pytest.raises(QueryError, match="more than 40MB of memory"):
        sql.answer(asked(db, query))
    assert db.sql("SELECT len(list(i)) FROM range(6000000) t(i)").fetchall() == [(6000000,)]


def test_cells_columns_and_names_that_come_again(db):
    page = asked(
        db, "SELECT 1 AS a, 2 AS a, 3 AS \"a (2)\", repeat('x', 5000) AS long, [1, 2] AS l"
    )
    rows = sql.answer(page).rows
    assert len(rows["long"][0].as_py()) == sql.LETTERS + 1
    assert rows["l"].to_pylist() == ["[1, 2]"]
    head, row = explored.cells(sql.render(page), "result")
    assert head == ["a", "a (2)", "a (2) (2)", "long", "l"]
    assert row[:3] == ["1", "2", "3"]
    assert len(row[3]) == sql.SHOWN + 1
    wide = ", ".join(f"{i} AS c{i}" for i in range(100))
    view = sql.render(asked(db, f"SELECT {wide}"))
    assert len(explored.cells(view, "result")[0]) == sql.COLUMNS
    assert "of whose 100 columns 40 are shown" in explored.texts(view)


@pytest.mark.parametrize("kind", ["bar", "line", "points"])
def test_charts_show_the_first_columns(db, kind):
    query = (
        "SELECT label, count(*) AS n, sum(target) AS s FROM inputs GROUP BY label ORDER BY label"
    )
    figure = explored.figure(sql.render(asked(db, query, chart=kind)), "chart")
    assert [(list(t.x), list(t.y), t.name) for t in figure.data] == [
        ([0, 1], [6, 6], "n"),
        ([0, 1], [12, 12], "s"),
    ]
    assert list(figure.layout.xaxis.ticktext) == ["a", "b"]
    query = "SELECT i, i * i AS square, 'nan'::DOUBLE AS gap FROM range(3) t(i)"
    figure = explored.figure(sql.render(asked(db, query, chart=kind)), "chart")
    assert [list(t.y) for t in figure.data] == [[0, 1, 4], [None] * 3]
    assert list(figure.data[0].x) == [0, 1, 2]
    view = sql.render(asked(db, "SELECT i FROM range(9000) t(i)", chart=kind))
    assert len(explored.figure(view, "chart").data[0].y) == 2000
    assert "the chart is of the first 2,000" in explored.texts(view)
    view = sql.render(asked(db, "SELECT key FROM inputs", chart=kind))
    assert "a chart takes rows with a column of numbers" in explored.texts(view)


def test_a_query_is_run_once(db, monkeypatch):
    page = asked(db, "SELECT count(*) AS n FROM edges")
    first = sql.answer(page)
    monkeypatch.setattr(sql, "_run", None)
    assert sql.answer(page) is first


def test_hostile_texts_are_shown_as_text(tmp_path):
    hostile = explored.HOSTILE
    db = explored.store(tmp_path / "s.nrm", labels=[hostile] * 12, key=hostile + "{}")
    query = f'SELECT label, 1 AS "{hostile.replace(chr(34), 2 * chr(34))}", key FROM inputs'
    view = sql.render(asked(db, query, chart="bar"))
    figure = json.dumps(explored.figure(view, "chart"), cls=plotly.utils.PlotlyJSONEncoder)
    assert "<b onload" not in figure
    assert explored.cells(view, "result")[1][0] == tame(hostile, 200)
    for example in sql.examples(db):
        assert len(sql.answer(asked(db, example.query)).rows) > 0
    sent = json.dumps(html.Div(view), cls=plotly.utils.PlotlyJSONEncoder)
    assert "dangerously" not in sent


def test_what_is_sent_is_small(db):
    query = "SELECT repeat('x', 3000) AS a, repeat('y', 3000) AS b, i FROM range(3000) t(i)"
    view = sql.render(asked(db, query, chart="points"))
    assert len(json.dumps(html.Div(view), cls=plotly.utils.PlotlyJSONEncoder)) < 500_000
