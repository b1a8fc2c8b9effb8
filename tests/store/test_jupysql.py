"""``%sql`` of jupysql in an IPython shell, over ``db.connect()``."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers.tiny_stores import make, record, write

import nrm_graph as ng


@pytest.fixture
def shell(monkeypatch, tmp_path):
    monkeypatch.setenv("PLOOMBER_STATS_ENABLED", "false")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    from IPython.core.interactiveshell import InteractiveShell

    opened = InteractiveShell()
    opened.run_cell("%load_ext sql").raise_error()
    yield opened
    opened.run_cell("%sql --close nrm").raise_error()


def test_magics(shell, tmp_path):
    path = write(make(tmp_path / "s.nrm"), [record(n, label="ab"[n % 2]) for n in range(3)])
    with ng.open(path) as db, db.connect() as con:
        shell.push({"con": con})
        shell.run_cell("%sql con --alias nrm").raise_error()

        def ask(query, magic="%sql"):
            ran = shell.run_cell(f"{magic} {query}")
            ran.raise_error()
            return ran.result

        counts = ask("SELECT label, count(*) AS n FROM inputs GROUP BY label ORDER BY label")
        assert [tuple(row) for row in counts] == [("a", 2), ("b", 1)]
        assert counts.PolarsDataFrame()["n"].to_list() == [2, 1]
        shell.run_cell("label = 'b'")
        query = "SELECT key, sum(relevance) FROM flows WHERE label = 'b' GROUP BY key"
        frame = ask("\n" + query.replace("'b'", "'{{label}}'"), "%%sql").DataFrame()
        assert isinstance(frame, pd.DataFrame)
        expected = db.sql(query)
        assert [tuple(row) for row in frame.itertuples(index=False)] == expected.fetchall()
        assert len(ask("PIVOT inputs ON label USING count(*) GROUP BY target")) == 1
        assert len(ask("DESCRIBE nodes")) == 5
        assert len(ask("SUMMARIZE edges")) == 7
        for answer in (db, db.inputs):
            assert "<table>" in shell.display_formatter.format(answer)[0]["text/html"]
        before = sorted(path.rglob("*"))
        file = db.files("edges")[0]
        for statement in (f"COPY nodes TO '{file}'", f"SELECT * FROM read_parquet('{file}')"):
            assert not shell.run_cell(f"%sql {statement}").success
        assert sorted(path.rglob("*")) == before
