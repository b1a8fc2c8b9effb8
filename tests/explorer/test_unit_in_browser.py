"""The view of a unit in a real browser: its numbers are those of Python and SQL."""

from __future__ import annotations

import pytest

import nrm_graph as ng
from nrm_graph.events.parser import parse
from nrm_graph.explorer.address import Address
from nrm_graph.explorer.parts import number
from nrm_graph.explorer.unit_references import SHOWN

pytestmark = pytest.mark.slow

KEY, LAYER, UNIT = "test-00000", "features.6", 1
EVENT = ng.Layer(LAYER)[UNIT]
BY_LABEL = """
SELECT label, sum(coalesce(relevance, 0)) / count(*), count(*), count(relevance)
FROM inputs LEFT JOIN (
  SELECT input_id, relevance FROM nodes JOIN layers USING (layer_id)
  WHERE layers.name = ? AND unit = ?) USING (input_id)
GROUP BY label
"""


def references(looked, db, ranked):
    """The cards are the references that Python gives."""
    rows = db.references(EVENT, k=SHOWN, by=ranked).table.to_pylist()
    cards = looked.texts(".reference-cards .card")
    assert len(cards) == len(rows) == SHOWN
    for row, card in zip(rows, cards, strict=True):
        assert card.startswith(row["key"])
        said = f"R {number(row['relevance'])}, activation {number(row['activation'])}"
        assert card.endswith(said)
    return rows


def test_its_numbers_are_those_of_python_and_sql(looked, db):
    looked.open(Address(view="unit", unit=repr(EVENT)), ".reference-cards")
    rows = references(looked, db, "relevance")
    pictures = looked.chrome.execute_script(
        "return Array.from(document.querySelectorAll('.reference'), (e) => e.naturalWidth)"
    )
    assert len(pictures) == 2 * SHOWN
    assert min(pictures) > 20
    by_label = {row[0]: row[1:] for row in db.sql(BY_LABEL, params=[LAYER, UNIT]).fetchall()}
    shown = {cells[0]: cells for cells in looked.cells(".labels")}
    assert len(shown) == len(by_label) + 1
    for label, (mean, inputs, present) in by_label.items():
        assert shown[label][2] == number(mean)
        assert shown[label][4:] == [str(inputs), str(present)]
    looked.pick("ranked", "activation")
    looked.until(lambda: "activation" in looked.texts(".references .note")[0].partition(",")[0])
    assert references(looked, db, "activation") != rows


def test_of_the_chosen_input_they_are_exact_and_lead_to_it(looked, db):
    looked.open(Address(view="unit", unit=repr(EVENT), input=KEY), ".of-input")
    m = db.measure(KEY)
    assert f"R(unit) = {m(EVENT):.6g}" in looked.texts(".of-input .exact")[0]
    rows = [cells for cells in looked.cells(".of-input") if "[" in cells[0]]
    assert len({cells[0].partition("[")[0] for cells in rows}) == 2
    for name, _, relevance in rows:
        assert float(relevance) == pytest.approx(m(EVENT & parse(name)), rel=6e-4, abs=1e-12)
    looked.follow("condition the flow on it")
    looked.until_event(repr(EVENT))
    looked.until(looked.facts)
    assert float(looked.facts()["R(event)"]) == m.given(EVENT).condition_relevance


def test_a_unit_is_chosen_from_its_layer(looked):
    looked.open(Address(view="unit"), ".layers")
    looked.follow(LAYER)
    looked.until(lambda: looked.texts(".strongest h2"))
    first = looked.cells(".strongest")[0][0]
    looked.follow(first)
    looked.see(".unit-heading")
    assert first in looked.texts(".unit-heading h2")[0]
    looked.fill("unit", "nowhere[3]")
    looked.see(".problem")
    assert "there is no layer 'nowhere'" in looked.texts(".problem")[0]
    looked.fill("unit", first)
    looked.see(".reference-cards")
