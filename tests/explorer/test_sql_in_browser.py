"""SQL in a real browser: run by button and by keys, drawn, refused and stopped."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from nrm_graph.explorer import sql
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.parts import number

pytestmark = pytest.mark.slow

QUERY = "SELECT label, count(*) AS n, avg(logit) AS mean FROM inputs GROUP BY label ORDER BY label"


def write(looked, text):
    area = looked.until(lambda: looked.one(".query"))
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys(Keys.DELETE)
    area.send_keys(text)
    return area


def test_a_query_runs_by_button_and_by_keys_and_is_drawn(looked, db):
    looked.open(Address(view="sql"), ".query")
    write(looked, QUERY)
    looked.one("button.button").click()
    expected = [[a, str(n), number(mean)] for a, n, mean in db.sql(QUERY).fetchall()]
    looked.until(lambda: looked.cells(".result") == expected)
    looked.pick("chart", "bars")
    script = (
        "const plot = document.querySelector('.result .js-plotly-plot');"
        "return plot && plot.data && plot.data.map((trace) => Array.from(trace.y))"
    )
    means = [mean for *_, mean in db.sql(QUERY).fetchall()]
    drawn = looked.until(lambda: looked.chrome.execute_script(script))
    assert drawn[1] == pytest.approx(means)
    write(looked, "SELECT 7 AS seven").send_keys(Keys.CONTROL, Keys.ENTER)
    looked.until(lambda: looked.cells(".result") == [["7"]])
    looked.chrome.back()
    looked.until(lambda: looked.cells(".result") == expected)
    write(looked, "SELECT key FROM inputs ORDER BY key LIMIT 1")
    looked.one("button.button").click()
    looked.until(lambda: looked.cells(".result") == [["test-00000"]])
    looked.follow("test-00000", ".result")
    looked.see(".side")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("DROP TABLE inputs", "only a single SELECT is allowed"),
        ("COPY inputs TO '/tmp/stolen.csv'", "only a single SELECT is allowed"),
        ("SELECT * FROM read_csv('/etc/passwd')", "read_csv"),
        ("SELECT nothing FROM inputs", "nothing"),
    ],
)
def test_what_writes_or_reads_elsewhere_is_refused(looked, query, sentence):
    looked.open(Address(view="sql"), ".query")
    write(looked, query).send_keys(Keys.CONTROL, Keys.ENTER)
    looked.see(".result .problem")
    (said,) = looked.texts(".problem")
    assert sentence in said
    assert "\n" not in said
    assert looked.cells(".result") == []


def test_a_query_is_stopped_by_its_limits(looked, monkeypatch):
    monkeypatch.setattr(sql, "SECONDS", 0.2)
    looked.open(Address(view="sql"), ".query")
    long = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b"
    write(looked, long).send_keys(Keys.CONTROL, Keys.ENTER)
    looked.see(".result .problem")
    assert "0.2" in looked.texts(".problem")[0]
    looked.open(Address(view="sql", query="SELECT range AS i FROM range(20000)"), ".result table")
    assert f"first {sql.ROWS:,} rows" in looked.texts(".result .note")[0]
