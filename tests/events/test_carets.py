"""Carets of parse errors stand under the place that they speak of, and so they do on one line."""

from __future__ import annotations

import unicodedata

import pytest
from helpers.tiny_stores import make, record, write

import nrm_graph as ng
from nrm_graph.cli import main
from nrm_graph.events import excerpt, parser

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("carets") / "s.nrm")
    return write(folder, [record(i) for i in range(3)])


@pytest.fixture(scope="module")
def db(path):
    with ng.open(path) as opened:
        yield opened


def columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def place(message: str) -> str:
    """What stands at the caret of a message of three lines, by columns of a terminal."""
    problem, shown, caret = message.split("\n")
    assert problem
    assert caret.strip() == "^"
    before = 0
    while columns(shown[:before]) < columns(caret) - 1:
        before += 1
    while before < len(shown) and unicodedata.combining(shown[before]):
        before += 1
    return shown[before:]


EXPRESSIONS = {
    "a[1] b[2]": "b[2]",
    "a[1]\tb[2]": "b[2]",
    "a[1] &\n\tb[2 c[3]": "c[3]",
    "'漢字'[1] b[2]": "b[2]",
    "漢字[1] ﬀ[2]": "ﬀ[2]",
    "'e\u0301'[1] b[2]": "b[2]",
    "a[1": "",
    " " * 50 + "a[1] b[2]": "b[2]",
    "a[" + "1, " * 60 + "x] & c[1]": "x] & c[1]",
    "'" + "漢" * 90 + "'[1] b[2]": "b[2]",
    "\u00e9[": "",
    "  ~": "",
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_carets_of_expressions(text):
    with pytest.raises(ng.EventError) as error:
        parser.parse(text)
    assert place(str(error.value)) == EXPRESSIONS[text]
    assert "\t" not in str(error.value)


QUERIES = {
    "SELECT key FRO inputs x": "inputs x",
    "SELECT ) 1": ") 1",
    "\tSELECT '漢字',\n\t) FROM inputs": ") FROM inputs",
    "SELECT key,\n  label\nFROM inputs WHERE )\nORDER BY key": ") ORDER BY key",
    "SELECT " + "1 + 1, " * 40 + ")": ")",
    "SELECT 'abc": "'abc",
    "SELECT 'é' || ) || ''": ") || ''",
    "SELECT 'a\udcff'": " '",
}


@pytest.mark.parametrize("query", QUERIES)
def test_carets_of_queries(db, query):
    with pytest.raises(ng.QueryError, match="the query cannot be parsed: ") as error:
        db.sql(query)
    assert place(str(error.value)) == QUERIES[query]


CONDITIONS = {
    "label IN )": ")",
    "label = 'a' AND\n\t) = 3": ") = 3",
    "label = '漢字' AND ) = 3": ") = 3",
    "label = 'a": "'a",
    "target = 1)": ")",
    "'é漢' = '' OR )": ")",
    "/* never": "/* never",
}
ENDING_EARLY = ("target = (", "target BETWEEN 1 AND", "target =", "target IN (1, 2")
"""DuckDB 2.0 points at the last word, 1.5 at the end."""


@pytest.mark.parametrize("where", [*CONDITIONS, *ENDING_EARLY])
def test_carets_of_conditions_point_into_what_was_written(db, where):
    for ask in (
        lambda: db.circuit(where),
        lambda: db.materialize(ng.Layer("1")[0], name="c", where=where),
    ):
        with pytest.raises(ng.QueryError, match="where cannot be parsed: ") as error:
            ask()
        at = place(str(error.value))
        assert at == CONDITIONS.get(where, at)
        assert where.endswith(at)
        message = str(error.value).split("\n")[0]
        for word in message[message.find("near ") :].split('"')[1:2]:  # and not what it is put in
            assert word in where


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT nokey FROM inputs", 'Referenced column "nokey" not found'),
        ("SELECT\t\tCAST(key AS INTEGER)\nFROM inputs", "Could not convert string 'input0'"),
        ("SELECT sum(key) FROM inputs", "No function matches"),
    ],
)
def test_other_errors_of_duckdb_are_one_line_without_a_caret(db, query, words):
    """DuckDB 1.5 writes the query anew and points into the one that it was."""
    with pytest.raises(ng.QueryError, match=words) as error:
        db.sql(query).fetchall()
    assert not {"\n", "^"} & set(str(error.value))
    assert "LINE" not in str(error.value)
    with pytest.raises(ng.QueryError, match="Could not convert") as error:
        db.circuit("CAST(key AS INTEGER) = 1")
    assert not {"\n", "^"} & set(str(error.value))


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_one_line_of_the_command_line(path, text, capsys):
    assert main.main(["relevance", str(path), "--input", "input0", text]) == 5
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    at = EXPRESSIONS[text].strip()
    assert shown.rstrip("\n").endswith(f"^{at}"), shown


def test_one_line_of_a_query(path, capsys):
    assert main.main(["sql", str(path), "SELECT key,\n )\n FROM inputs"]) == 7
    shown = capsys.readouterr().err
    assert shown.endswith('syntax error at or near ")", at ^ in: SELECT key, ^) FROM inputs\n')
    assert shown.count("\n") == 1
    assert main.main(["circuit", str(path), "--where", "label = = ("]) == 7
    assert "where cannot be parsed" in capsys.readouterr().err


def test_messages_without_a_caret_stay():
    for message in ("one", "one\n  two", "one ^", "^", "one\n\n", ""):
        assert excerpt.inline(message) == message
